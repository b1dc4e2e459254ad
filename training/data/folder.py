"""The data set for a folder of one's own images and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from dinov3_seg_ros.frames.classes import Byte, unlabelled_value
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Colour, DataSettings, ItemError, Split
from training.data.class_lists import Classes, checked_classes, read_classes
from training.data.files import (
    COLOUR_WEIGHTS,
    VALUE_COUNT,
    FileDataset,
    LabelTable,
    Pair,
    as_number,
    find_pairs,
    open_pairs,
    read_mask_values,
    split_pairs,
)

CLASSES_FILE = "classes.yaml"


class FolderData(DataSettings):
    """A folder of images and masks; a mask has the stem of its image.

    Every pixel of a mask holds a class id, or the colour of a class where `classes` gives colours.

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
    classes: Classes | None = None
    """Class names in the order of their ids, or a mapping of names to colours [r, g, b]. Default: root/classes.yaml,
    which holds the same."""
    ignore_values: tuple[Annotated[int, Field(ge=0, lt=VALUE_COUNT)], ...] | Literal["auto"] = "auto"
    """Mask values that belong to no class; auto: 255, above 255 classes 65535."""
    ignore_colours: tuple[tuple[Byte, Byte, Byte], ...] = ()
    """Colours, in masks of colours, that belong to no class."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the images kept for validation where root has no train and val folders."""

    def open(self, split: Split) -> FileDataset:
        """Find the files of one split.

        Raises:
            DatasetError: a folder is missing or empty, an image has no mask, the classes cannot be used, or an ignored
                value is a class.
        """
        classes = self._classes()
        read_mask = FolderMasks(classes, self._ignored_values(), self.ignore_colours)
        pairs, spare = self._pairs(split)
        return open_pairs(self.root, pairs, classes, read_mask, spare)

    def resolved(self) -> FolderData:
        """See `DataSettings.resolved`."""
        return (
            self if self.ignore_values != "auto" else self.model_copy(update={"ignore_values": self._ignored_values()})
        )

    def _ignored_values(self) -> tuple[int, ...]:
        return self.ignore_values if self.ignore_values != "auto" else (unlabelled_value(len(self._classes())),)

    def _classes(self) -> Classes:
        if self.classes:
            return checked_classes(self.classes, "data.classes")
        path = Path(self.root) / CLASSES_FILE
        try:
            return read_classes(path)
        except FileNotFoundError:
            raise DatasetError(
                f"the data set at {self.root} has no class names: list them under data.classes in the recipe, or in "
                f"{path}"
            ) from None

    def _pairs(self, split: Split) -> tuple[list[Pair], list[Path]]:
        """See `find_pairs`."""
        root = Path(self.root)
        if not root.is_dir():
            raise DatasetError(f"{root}: there is no such folder; set data.root to the folder of the data set")
        if any((root / folder).is_dir() for folder in get_args(Split)):
            if self.val_fraction is not None:
                raise DatasetError(f"{root} has folders for its splits: remove data.val_fraction, which is for others")
            return find_pairs(root / split / self.images, root / split / self.masks)
        pairs, spare = find_pairs(root / self.images, root / self.masks)
        if self.val_fraction is None:
            raise DatasetError(
                f"{root} has no train and val folders; make them, or set data.val_fraction to the share of the images "
                "to keep for validation"
            )
        return split_pairs(pairs, self.val_fraction, split), spare


class FolderMasks:
    """Reads masks of class ids, or of the classes' colours; each file may be of either kind.

    Args:
        classes: names, with colours or without.
        ignore_values, ignore_colours: values and colours that belong to no class.

    Raises:
        DatasetError: an ignored value or colour is that of a class.
    """

    def __init__(self, classes: Classes, ignore_values: Sequence[int], ignore_colours: Sequence[Colour]) -> None:
        count, ignored = len(classes), unlabelled_value(len(classes))
        _check_ignored("ignore_values", ignore_values, dict(enumerate(classes)), as_number)
        self._ids = LabelTable(
            {index: index for index in range(count)} | dict.fromkeys(ignore_values, ignored),
            count,
            as_number,
            f"allowed are 0 to {count - 1} (the {count} classes) and the ignore_values {sorted(set(ignore_values))}: "
            "correct the mask, or add the value to data.ignore_values",
        )
        self._colours = None
        if isinstance(classes, dict) and len(set(classes.values())) == count:
            class_of = {_number(colour): name for name, colour in classes.items()}
            ignored_numbers = [_number(colour) for colour in ignore_colours]
            _check_ignored("ignore_colours", ignored_numbers, class_of, _as_colour)
            self._colours = LabelTable(
                {number: index for index, number in enumerate(class_of)} | dict.fromkeys(ignored_numbers, ignored),
                count,
                _as_colour,
                "which no class has: correct the mask, or add the colour to data.ignore_colours",
            )

    def __call__(self, path: Path) -> np.ndarray:
        """See `training.data.files.MaskReader`."""
        values, coloured = read_mask_values(path)
        if not coloured:
            return self._ids.labels(values, path)
        if self._colours is None:
            raise ItemError(
                f"{path} is a colour image; give every class a colour (data.classes: a mapping of names to colours "
                "[r, g, b], no two the same), or store one class id per pixel (greyscale or palette PNG)",
                "value of no class",
            )
        return self._colours.labels(values, path)

    def mapping(self) -> dict[str, Any]:
        """See `training.data.files.MaskReader.mapping`."""
        return {"numbers": self._ids.mapping(), "colours": None if self._colours is None else self._colours.mapping()}


def _check_ignored(key: str, ignored: Iterable[int], class_of: Mapping[int, str], name: Callable[[int], str]) -> None:
    """Raise DatasetError where an ignored value is that of a class, since every pixel of it would be lost."""
    for value in ignored:
        if value in class_of:
            raise DatasetError(
                f"data.{key} holds {name(value)}, which is that of the class '{class_of[value]}': remove it from "
                f"data.{key}, or mark pixels without a class by another in the masks"
            )


def _number(colour: Colour) -> int:
    return int(np.dot(colour, COLOUR_WEIGHTS))


def _as_colour(number: int) -> str:
    return f"the colour [{number % 256}, {number // 256 % 256}, {number // 65536}]"
