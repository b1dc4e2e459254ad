"""Data sets of image and mask files: finds the files, reads them, and turns mask values into class ids."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps

from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import IncompleteError, ItemError, Split
from training.data.class_lists import Classes, names_and_colours
from training.data.contents import Contents, digest_files

#: Version of `read_image` and `read_mask_values`. Raise it when they give other pixels for the same file.
READING_VERSION = 1

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

# Modes of Pillow whose pixels are numbers, not colours. A palette image ("P") holds the index of its colour.
_INDEX_MODES = ("1", "L", "P", "I", "I;16")
_COLOUR_MODES = ("RGB", "RGBA")
#: The value of a colour is its scalar product with these.
COLOUR_WEIGHTS = np.array([1, 256, 65536], np.uint32)
#: Values of a mask are below this: three bytes, as colours have.
VALUE_COUNT = 2**24
_EXIF_ORIENTATION = 0x0112
_NAMED = 3


class MaskReader(Protocol):
    """Reads mask files as labels."""

    def __call__(self, path: Path) -> np.ndarray:
        """Labels (H, W) of a mask file: class ids and the ignore value, uint8 (uint16 above 255 classes).

        Raises:
            ItemError: the file cannot be read, or a pixel has a value of no class.
        """

    def mapping(self) -> dict[str, Any]:
        """Which label each value of a file becomes, in JSON types: a part of the data set's content."""


class Pair(NamedTuple):
    """The files of one item."""

    image: Path
    mask: Path


class FileDataset:
    """Pairs of image and mask files; see `training.data.base.SegmentationDataset`.

    Args:
        root: folder of the data set; names in `contents` are relative to it.
        pairs: files of each item, which need not exist yet.
        classes: names, with colours or without.
        read_mask: turns a mask file into labels.
        spare_masks: masks without an image.

    Attributes:
        spare_masks: as given; nothing reads them.
    """

    def __init__(
        self,
        root: str | Path,
        pairs: Sequence[Pair],
        classes: Classes,
        read_mask: MaskReader,
        spare_masks: Sequence[Path] = (),
    ) -> None:
        self._root, self._pairs, self._read_mask = Path(root), list(pairs), read_mask
        self.spare_masks = list(spare_masks)
        self.class_names, self.palette = names_and_colours(classes)
        self.ignore_value = unlabelled_value(len(self.class_names))

    def __len__(self) -> int:
        return len(self._pairs)

    def describe(self, index: int) -> str:
        """File name of an item's image."""
        return self._pairs[index].image.name

    def contents(self) -> Contents:
        """See `SegmentationDataset.contents`."""
        # How often each item is listed: the digests below have each file once.
        counts = Counter(os.path.relpath(pair.image, self._root) for pair in self._pairs)
        repeated = {name: count for name, count in counts.items() if count > 1}
        settings = {
            "reading": READING_VERSION,
            "repeated": repeated,
            "classes": self.class_names,
            "labels": self._read_mask.mapping(),
        }
        try:
            return Contents(settings, digest_files(self._root, (path for pair in self._pairs for path in pair)))
        except OSError as error:
            raise DatasetError(f"a file of the data set cannot be read ({error}); check data.root") from error

    def mask(self, index: int) -> np.ndarray:
        """See `SegmentationDataset.mask`."""
        return self._read_mask(self._pairs[index].mask)

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationDataset.item`."""
        pair = self._pairs[index]
        image, mask = read_image(pair.image), self.mask(index)
        if image.shape[:2] != mask.shape:
            raise ItemError(
                f"{pair.mask} is {mask.shape[1]}x{mask.shape[0]} pixels and its image {pair.image} is "
                f"{image.shape[1]}x{image.shape[0]}; a mask must have the size of its image",
                "sizes differ",
            )
        return image, mask


class LabelTable:
    """Table from the values of a mask to labels.

    Args:
        label_of: class id, or ignore value, of each allowed value; values below `VALUE_COUNT`.
        class_count: number of classes.
        name: describes a value for people, such as `as_number`.
        advice: what to do about a value that is not allowed; ends the error message.
    """

    def __init__(self, label_of: Mapping[int, int], class_count: int, name: Callable[[int], str], advice: str) -> None:
        self._values = np.array(list(label_of), np.uint32)
        self._labels = np.array(list(label_of.values()), np.uint8 if class_count <= 255 else np.uint16)
        self._name, self._advice = name, advice

    def mapping(self) -> list[list[int]]:
        """Pairs of value and label, in the order of the values."""
        return [[int(self._values[index]), int(self._labels[index])] for index in np.argsort(self._values)]

    def labels(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Labels (H, W), uint8 (uint16 above 255 classes), of the values (H, W) uint32 that ``path`` holds.

        Raises:
            ItemError: a value is not allowed.
        """
        # Zero means unknown; the last entry stands for everything beyond the largest value. The system provides zeros
        # only where they are touched, so that a table of 16 million colours costs little.
        wide = np.uint16 if self._labels.dtype == np.uint8 else np.uint32
        table = np.zeros(int(self._values.max()) + 2, wide)
        table[self._values] = self._labels.astype(wide) + 1
        found = table.take(values, mode="clip")
        if not found.all():
            row, column = np.argwhere(found == 0)[0]
            raise ItemError(
                f"{path} has {self._name(int(values[row, column]))} at row {row}, column {column}; {self._advice}",
                "value of no class",
            )
        return (found - 1).astype(self._labels.dtype)


class IndexMasks:
    """Reads masks that hold a number in every pixel.

    Args:
        label_of: class id, or ignore value, of each allowed number.
        class_count: number of classes.
    """

    def __init__(self, label_of: Mapping[int, int], class_count: int) -> None:
        advice = f"allowed are {ranges(label_of)}: replace the file by the data set's own"
        self._table = LabelTable(label_of, class_count, as_number, advice)

    def __call__(self, path: Path) -> np.ndarray:
        """See `MaskReader`."""
        values, coloured = read_mask_values(path)
        if coloured:
            raise ItemError(f"{path} is a colour picture; its pixels must hold numbers", "unreadable file")
        return self._table.labels(values, path)

    def mapping(self) -> dict[str, Any]:
        """See `MaskReader.mapping`."""
        return {"numbers": self._table.mapping()}


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


def find_pairs(images: Path, masks: Path, mask_suffix: str = "") -> tuple[list[Pair], list[Path]]:
    """Pair the images of a folder with masks of the same stem, in the order of their names.

    Args:
        images, masks: the two folders.
        mask_suffix: optional ending of a mask's stem after its image's stem.

    Returns:
        Pairs, where an absent mask has the path that it should have; and the masks without an image.

    Raises:
        DatasetError: a folder is missing or empty, or two files share a stem.
    """
    image_of, mask_of = _files_by_stem(images, IMAGE_SUFFIXES), _files_by_stem(masks, MASK_SUFFIXES, mask_suffix)
    pairs = [Pair(image, mask_of.get(stem, masks / f"{stem}{mask_suffix}.png")) for stem, image in image_of.items()]
    return pairs, [mask for stem, mask in mask_of.items() if stem not in image_of]


def split_pairs(pairs: Sequence[Pair], val_fraction: float, split: Split) -> list[Pair]:
    """Pairs of one split: a share of them, at least one, for validation, and the others for training.

    The split depends on the stems alone, so that it is the same on every machine.

    Raises:
        DatasetError: no pair is left for training.
    """
    by_hash = sorted(pairs, key=lambda pair: hashlib.sha256(pair.image.stem.encode()).digest())
    held_out = set(by_hash[: max(1, round(len(pairs) * val_fraction))])
    if split == "train" and len(held_out) == len(pairs):
        raise DatasetError(
            f"data.val_fraction is {val_fraction:g}, which leaves no image of {len(pairs)} to train on; lower it, or "
            "add images"
        )
    return [pair for pair in pairs if (pair in held_out) == (split == "val")]


def spread_evenly(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Choose ``count`` pairs at equal distances; all of them where there are fewer."""
    count = min(count, len(pairs))
    return [pairs[(2 * index + 1) * len(pairs) // (2 * count)] for index in range(count)]


def listed_names(path: Path) -> list[str]:
    """Stems that a text file lists, one in a line, alone or as the paths of files.

    Raises:
        DatasetError: it cannot be read or lists nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not names:
        raise DatasetError(f"{path} lists no image")
    return names


def open_pairs(
    root: str | Path,
    pairs: Sequence[Pair],
    classes: Classes,
    read_mask: MaskReader,
    spare_masks: Sequence[Path] = (),
) -> FileDataset:
    """Open a data set of pairs of files, once all of them exist; see `FileDataset`.

    Raises:
        IncompleteError: some files are absent; the message names the first of them.
    """
    names_in = {folder: _names_in(folder) for folder in {path.parent for pair in pairs for path in pair}}
    missing = {pair: [path for path in pair if path.name not in names_in[path.parent]] for pair in pairs}
    whole = [pair for pair in pairs if not missing[pair]]
    dataset = FileDataset(root, whole, classes, read_mask, spare_masks)
    if len(whole) < len(pairs):
        files = [str(path) for paths in missing.values() for path in paths]
        named = ", ".join(files[:_NAMED]) + (", ..." if len(files) > _NAMED else "")
        raise IncompleteError(
            f"{len(pairs) - len(whole)} of {len(pairs)} images have no mask, or are absent themselves; there is no "
            f"{named}",
            files,
            dataset,
        )
    return dataset


def read_image(path: Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, turned as its EXIF tag says.

    Raises:
        ItemError: the file is no image, is cut short, or has more than 8 bits per channel.
    """
    with _picture(path) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ItemError(
                f"{path} has more than 8 bits per pixel (mode {picture.mode}); convert it to 8 bits, as the robot's "
                "images have",
                "unreadable file",
            )
        if picture.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        return np.array(picture.convert("RGB"))


def read_mask_values(path: Path) -> tuple[np.ndarray, bool]:
    """Read the values of a mask file's pixels, without interpretation.

    Returns:
        Values (H, W) uint32, and whether the file holds colours. A colour is R + 256 G + 65536 B; the value of a
        palette image is its index.

    Raises:
        ItemError: the file cannot be read.
    """
    with _picture(path) as picture:
        if picture.mode in _INDEX_MODES:
            return np.array(picture).astype(np.uint32), False
        if picture.mode in _COLOUR_MODES:
            return np.array(picture)[..., :3] @ COLOUR_WEIGHTS, True
        raise ItemError(f"{path} is a picture of mode {picture.mode}, which no mask should have", "unreadable file")


def as_number(value: int) -> str:
    """Describe a value of an index mask for people."""
    return f"the value {value}"


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers as ranges for people: 255, 0, 1, 2 becomes "0 to 2 and 255"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " and ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


@contextlib.contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """Open an image file for a ``with`` block; errors of Pillow become an ItemError."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ItemError(
            f"{path} cannot be read as an image ({error}); replace it, or remove it and its partner", "unreadable file"
        ) from error


def _files_by_stem(folder: Path, suffixes: Sequence[str], stem_suffix: str = "") -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder; training/data/folder.py describes the layout")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.stem.removesuffix(stem_suffix)
        if stem in files:
            raise DatasetError(f"{files[stem]} and {path.name} have the same stem; remove one of them")
        files[stem] = path
    if not files:
        raise DatasetError(f"{folder} holds no file of the types {', '.join(suffixes)}")
    return files


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
