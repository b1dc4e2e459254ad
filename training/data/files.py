"""What data sets of image and mask files share: finding the files, reading them, and giving masks their class ids."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import IncompleteError, ItemError, Split, files_fingerprint
from training.data.class_lists import Classes, names_and_colours

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")

# Pillow's modes whose pixels are numbers, not colours. A palette image ("P") holds the index of its colour.
_INDEX_MODES = ("1", "L", "P", "I", "I;16")
_COLOUR_MODES = ("RGB", "RGBA")
#: The number of a colour is its scalar product with these.
COLOUR_WEIGHTS = np.array([1, 256, 65536], np.uint32)
#: Values of a mask are below this: three bytes, as colours have.
VALUE_COUNT = 2**24
_EXIF_ORIENTATION = 0x0112
_NAMED = 3

#: Reads a mask file as labels (H, W): class ids and the ignore value, uint8 (uint16 above 255 classes).
MaskReader: TypeAlias = Callable[[Path], np.ndarray]


class Pair(NamedTuple):
    """The files of one item."""

    image: Path
    mask: Path


class FileDataset:
    """Pairs of files; see `training.data.base.SegmentationDataset`.

    Args:
        pairs: files of each item, which need not exist yet.
        classes: names, with colours or without.
        read_mask: turns a mask file into labels.
        spare_masks: masks that lie among the others without being of any image.

    Attributes:
        spare_masks: as given; nothing reads them.
    """

    def __init__(
        self, pairs: Sequence[Pair], classes: Classes, read_mask: MaskReader, spare_masks: Sequence[Path] = ()
    ) -> None:
        self._pairs, self._read_mask = list(pairs), read_mask
        self.spare_masks = list(spare_masks)
        self.class_names, self.palette = names_and_colours(classes)
        self.ignore_value = unlabelled_value(len(self.class_names))

    def __len__(self) -> int:
        return len(self._pairs)

    def describe(self, index: int) -> str:
        """The image's file name."""
        return self._pairs[index].image.name

    def fingerprint(self) -> str:
        """See `SegmentationDataset.fingerprint`."""
        files = (path for pair in self._pairs for path in pair)
        return files_fingerprint(files, self.class_names, pickle.dumps(self._read_mask))

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
    """Which label each value in a mask stands for.

    Args:
        label_of: class id, or ignore value, of each value that may occur; values below `VALUE_COUNT`.
        class_count: number of classes.
        name: what people call a value, such as `as_number`.
        advice: what to do about a value that may not occur.
    """

    def __init__(self, label_of: Mapping[int, int], class_count: int, name: Callable[[int], str], advice: str) -> None:
        self._values = np.array(list(label_of), np.uint32)
        self._labels = np.array(list(label_of.values()), np.uint8 if class_count <= 255 else np.uint16)
        self._name, self._advice = name, advice

    def labels(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Labels (H, W), uint8 (uint16 above 255 classes), of the values (H, W) uint32 that ``path`` holds.

        Raises:
            ItemError: a value may not occur.
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
        label_of: class id, or ignore value, of each number that may occur.
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


def find_parts(data_set: str, root: str | Path, *parts: tuple[str, ...]) -> list[Path]:
    """The files and folders that a data set is made of.

    Args:
        data_set: its name for people.
        root: folder that holds them.
        parts: for each, one relative path, or several ways in which people lay it out.

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
    return found


def find_pairs(images: Path, masks: Path, mask_suffix: str = "") -> tuple[list[Pair], list[Path]]:
    """The images of a folder with their masks, by stem, in the order of their names.

    Args:
        images, masks: the two folders.
        mask_suffix: what a mask's stem may have beyond its image's.

    Returns:
        Pairs, of which a mask that is not there is named as it should be; and the masks that are of no image.

    Raises:
        DatasetError: a folder is missing or empty, or two files share a stem.
    """
    image_of, mask_of = _files_by_stem(images, IMAGE_SUFFIXES), _files_by_stem(masks, MASK_SUFFIXES, mask_suffix)
    pairs = [Pair(image, mask_of.get(stem, masks / f"{stem}{mask_suffix}.png")) for stem, image in image_of.items()]
    return pairs, [mask for stem, mask in mask_of.items() if stem not in image_of]


def split_pairs(pairs: Sequence[Pair], val_fraction: float, split: Split) -> list[Pair]:
    """The share of the pairs that is kept for validation, at least one, or the others.

    Which pair is which depends on the stems alone, so that it is the same on every machine.

    Raises:
        DatasetError: the others are wanted, and there are none.
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
    """So many of the pairs, at equal distances; all, where there are no more."""
    count = min(count, len(pairs))
    return [pairs[(2 * index + 1) * len(pairs) // (2 * count)] for index in range(count)]


def listed_names(path: Path) -> list[str]:
    """The items that a text file lists, one in a line: stems, or paths whose stems count.

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
    pairs: Sequence[Pair], classes: Classes, read_mask: MaskReader, spare_masks: Sequence[Path] = ()
) -> FileDataset:
    """The data set of pairs of files that all exist; see `FileDataset`.

    Raises:
        IncompleteError: some do not; the message names the first of them.
    """
    names_in = {folder: _names_in(folder) for folder in {path.parent for pair in pairs for path in pair}}
    missing = {pair: [path for path in pair if path.name not in names_in[path.parent]] for pair in pairs}
    whole = [pair for pair in pairs if not missing[pair]]
    dataset = FileDataset(whole, classes, read_mask, spare_masks)
    if len(whole) < len(pairs):
        files = [str(path) for paths in missing.values() for path in paths]
        named = ", ".join(files[:_NAMED]) + (", ..." if len(files) > _NAMED else "")
        raise IncompleteError(
            f"{len(pairs) - len(whole)} of {len(pairs)} images have no mask, or are not there themselves; there is no "
            f"{named}",
            files,
            dataset,
        )
    return dataset


def read_image(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, turned as its EXIF tag says.

    Raises:
        ItemError: it is no image that can be read, is cut short, or has more than 8 bits per channel.
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
    """What a mask file holds in its pixels, as it is.

    Returns:
        (H, W) uint32, and whether the file holds colours: if it does, the values are R + 256 G + 65536 B, otherwise the
        pixels' numbers, of a palette picture the indices.

    Raises:
        ItemError: it cannot be read.
    """
    with _picture(path) as picture:
        if picture.mode in _INDEX_MODES:
            return np.array(picture).astype(np.uint32), False
        if picture.mode in _COLOUR_MODES:
            return np.array(picture)[..., :3] @ COLOUR_WEIGHTS, True
        raise ItemError(f"{path} is a picture of mode {picture.mode}, which no mask should have", "unreadable file")


def as_number(value: int) -> str:
    """What people call a value of an index mask."""
    return f"the value {value}"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers for people: 255, 0, 1, 2 is "0 to 2 and 255"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " and ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


@contextlib.contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """The picture in a file, within a ``with`` block; what Pillow has against it becomes an ItemError."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ItemError(
            f"{path} cannot be read as an image ({error}); replace it, or remove it and its partner", "unreadable file"
        ) from error


def _files_by_stem(folder: Path, suffixes: Sequence[str], stem_suffix: str = "") -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder; see training/datasets/folder.py for the layout")
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
