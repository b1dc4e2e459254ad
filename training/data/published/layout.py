"""Finds the files of published data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinov3_seg_ros.frames.image_files import MASK_SUFFIXES
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.reading.content import read_text
from training.data.reading.protocol import Sample


def check_split(data_set: str, split: Split) -> None:
    """Raise DatasetError where a split is asked for that a data set's authors keep without labels."""
    if split == "test":
        raise DatasetError(f"{data_set} has no labels for its test images; its splits are: train, val")


def find_parts(data_set: str, root: str | Path, *parts: tuple[str, ...]) -> list[Path]:
    """Find the files and folders of a data set.

    Args:
        data_set: its name for people.
        root: folder that holds them.
        parts: for each, its relative path, or several that are in use.

    Returns:
        For each part, the first of its paths that exists.

    Raises:
        DatasetError: says what is missing and how the folder must look.
    """
    folder = Path(root)
    found = [next((folder / path for path in paths if (folder / path).exists()), None) for paths in parts]
    missing = [paths[0] for path, paths in zip(found, parts, strict=True) if path is None]
    if missing:
        absent = ", no ".join(missing) if folder.is_dir() else "such folder"
        layout = "; ".join(" or ".join(paths) for paths in parts)
        raise DatasetError(
            f"{folder} does not hold {data_set}: there is no {absent}. Set data.root to a folder that has: {layout}"
        )
    return [path for path in found if path is not None]


def find_pairs(images: Path, masks: Path, mask_suffix: str = "") -> tuple[list[Sample], list[Path]]:
    """Pair the images of a folder with masks of the same stem, in the order of their names.

    Args:
        images, masks: the two folders.
        mask_suffix: optional ending of a mask's stem after its image's stem.

    Returns:
        Samples, where an absent mask has the path that it should have; and the masks without an image.

    Raises:
        DatasetError: a folder is missing or empty, or two files share a stem.
    """
    image_of, mask_of = _files_by_stem(images, IMAGE_SUFFIXES), _files_by_stem(masks, MASK_SUFFIXES, mask_suffix)
    samples = [Sample(image, mask_of.get(stem, masks / f"{stem}{mask_suffix}.png")) for stem, image in image_of.items()]
    return samples, [mask for stem, mask in mask_of.items() if stem not in image_of]


def listed_names(path: Path) -> list[str]:
    """Stems that a text file lists, one in a line, alone or as the paths of files.

    Raises:
        DatasetError: it cannot be read or lists nothing.
    """
    names = [Path(line.split()[0]).stem for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise DatasetError(f"{path} lists no image; unpack the data set anew")
    return names


def _files_by_stem(folder: Path, suffixes: Sequence[str], stem_suffix: str = "") -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; unpack the data set anew")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.stem.removesuffix(stem_suffix)
        if stem in files:
            raise DatasetError(f"{files[stem]} and {path.name} have the same stem; remove one of them")
        files[stem] = path
    if not files:
        raise DatasetError(f"{folder} holds no file of the types {', '.join(suffixes)}; unpack the data set anew")
    return files
