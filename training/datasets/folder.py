"""Any folder of images and index masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import cv2
import numpy as np
import yaml
from PIL import Image
from pydantic import Field
from tyro.conf import Fixed

from dinov3_seg_ros.errors import DatasetError
from dinov3_seg_ros.overlay import default_palette
from training.datasets.base import Colour, Split, files_fingerprint, unlabelled_value
from training.section import Section

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
CLASSES_FILE = "classes.yaml"
# Pillow's modes whose pixels are numbers, not colours. A palette image ("P") holds the index of its colour.
_INDEX_MODES = ("1", "L", "P", "I", "I;16")

Classes = dict[str, Colour] | list[str]


class FolderData(Section):
    """A folder of images and masks; a mask has the stem of its image and holds a class id in every pixel.

    Either ``root/train/images``, ``root/train/masks``, ``root/val/images`` and ``root/val/masks``, or ``root/images``
    and ``root/masks`` with `val_fraction`.
    """

    name: Literal["folder"] = "folder"
    root: str
    """Folder of the data set."""
    images: str = "images"
    """Name of the folder of images in each split."""
    masks: str = "masks"
    """Name of the folder of masks in each split."""
    classes: Annotated[Classes | None, Fixed] = None
    """Class names in the order of their ids, or a mapping of names to colours [r, g, b]. Default: root/classes.yaml,
    which holds the same."""
    ignore_values: tuple[int, ...] = (255,)
    """Mask values that belong to no class."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the images kept for validation where root has no train and val folders."""

    def open(self, split: Split) -> FolderDataset:
        """Find the files of one split.

        Raises:
            DatasetError: a folder is missing or empty, or an image has no mask.
        """
        class_names, palette = named_colours(self._classes())
        pairs = self._pairs(split)
        return FolderDataset(pairs, class_names, palette, self.ignore_values)

    def _classes(self) -> Classes:
        if self.classes:
            return self.classes
        path = Path(self.root) / CLASSES_FILE
        try:
            classes = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DatasetError(
                f"the data set at {self.root} has no class names: list them under data.classes in the recipe, or in "
                f"{path}"
            ) from None
        except (OSError, yaml.YAMLError) as error:
            raise DatasetError(f"{path} cannot be read as YAML: {error}") from error
        return _checked_classes(classes, path)

    def _pairs(self, split: Split) -> list[tuple[Path, Path]]:
        root = Path(self.root)
        if not root.is_dir():
            raise DatasetError(f"{root}: there is no such folder; set data.root to the folder of the data set")
        if any((root / folder).is_dir() for folder in get_args(Split)):
            if self.val_fraction is not None:
                raise DatasetError(f"{root} has folders for its splits: remove data.val_fraction, which is for others")
            return find_pairs(root / split / self.images, root / split / self.masks)
        pairs = find_pairs(root / self.images, root / self.masks)
        if self.val_fraction is None:
            raise DatasetError(
                f"{root} has no train and val folders; make them, or set data.val_fraction to the share of the images "
                "to keep for validation"
            )
        held_out = _held_out(pairs, self.val_fraction)
        return [pair for pair in pairs if (pair in held_out) == (split == "val")]


class FolderDataset:
    """Pairs of files; see `FolderData` and `training.datasets.base.SegmentationDataset`."""

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        class_names: list[str],
        palette: list[Colour],
        ignore_values: Sequence[int],
    ) -> None:
        self._pairs = list(pairs)
        self.class_names = class_names
        self.palette = palette
        self.ignore_value = unlabelled_value(len(class_names))
        self._ignore_values = sorted(set(ignore_values))

    def __len__(self) -> int:
        return len(self._pairs)

    def describe(self, index: int) -> str:
        """The image's file name."""
        return self._pairs[index][0].name

    def fingerprint(self) -> str:
        """See `SegmentationDataset.fingerprint`."""
        files = (path for pair in self._pairs for path in pair)
        return files_fingerprint(files, self.class_names, self._ignore_values)

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationDataset.item`."""
        image_path, mask_path = self._pairs[index]
        image, mask = read_image(image_path), read_index_mask(mask_path)
        if image.shape[:2] != mask.shape:
            raise DatasetError(
                f"{mask_path} is {mask.shape[1]}x{mask.shape[0]} pixels and its image {image_path} is "
                f"{image.shape[1]}x{image.shape[0]}; a mask must have the size of its image"
            )
        return image, self._class_ids(mask, mask_path)

    def _class_ids(self, mask: np.ndarray, path: Path) -> np.ndarray:
        count = len(self.class_names)
        ignored = np.isin(mask, self._ignore_values)
        wrong = ~ignored & ((mask < 0) | (mask >= count))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DatasetError(
                f"{path} has the value {mask[row, column]} at row {row}, column {column}; allowed are 0 to "
                f"{count - 1} (the {count} classes) and the ignore_values {self._ignore_values}: correct the mask, or "
                "add the value to data.ignore_values"
            )
        ids = np.where(ignored, self.ignore_value, mask)
        return ids.astype(np.uint8 if count <= 255 else np.uint16)


def find_pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Images with their masks, by stem, in the order of their names.

    Raises:
        DatasetError: a folder is missing or empty, two images share a stem, or an image has no mask.
    """
    image_of, mask_of = _files_by_stem(images, IMAGE_SUFFIXES), _files_by_stem(masks, MASK_SUFFIXES)
    unpaired = [image.name for stem, image in image_of.items() if stem not in mask_of]
    if unpaired:
        named = ", ".join(unpaired[:3]) + (", ..." if len(unpaired) > 3 else "")
        raise DatasetError(
            f"{len(unpaired)} of {len(image_of)} images in {images} have no mask of the same stem in {masks}: {named}"
        )
    return [(image, mask_of[stem]) for stem, image in image_of.items()]


def read_image(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, turned as its EXIF tag says.

    Raises:
        DatasetError: it is no image that can be read.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError(f"{path} cannot be read as an image; replace it or remove it with its mask")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_index_mask(path: Path) -> np.ndarray:
    """A mask file's pixel values as (H, W) integers; of a palette image, the indices.

    Raises:
        DatasetError: it cannot be read, or its pixels are colours.
    """
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}") from error
    if mode not in _INDEX_MODES:
        raise DatasetError(
            f"{path} is a colour picture (mode {mode}); a mask must hold one class id per pixel (greyscale or palette "
            "PNG)"
        )
    return values.astype(np.int32)


def named_colours(classes: Classes) -> tuple[list[str], list[Colour]]:
    """Class names and colours of either form of ``classes``."""
    if isinstance(classes, dict):
        return list(classes), list(classes.values())
    return list(classes), default_palette(len(classes))


def _checked_classes(classes: Any, path: Path) -> Classes:
    if isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes):
        return classes
    if isinstance(classes, dict) and classes:
        try:
            colours = {str(name): tuple(map(int, colour)) for name, colour in classes.items()}
        except (TypeError, ValueError):
            colours = {}
        if colours and all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in colours.values()):
            return colours
    raise DatasetError(
        f"{path} must hold a list of class names, or a mapping of names to colours [r, g, b] of 0 to 255"
    )


def _files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder; see training/datasets/folder.py for the layout")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise DatasetError(f"{files[path.stem]} and {path.name} have the same stem; remove one of them")
        files[path.stem] = path
    if not files:
        raise DatasetError(f"{folder} holds no file of the types {', '.join(suffixes)}")
    return files


def _held_out(pairs: list[tuple[Path, Path]], fraction: float) -> set[tuple[Path, Path]]:
    """At least one pair; which, depends on the stems alone, so that it is the same on every machine."""
    by_hash = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].stem.encode()).digest())
    return set(by_hash[: max(1, round(len(pairs) * fraction))])
