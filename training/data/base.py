"""The protocol of data sets: what the rest of training knows of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from dinov3_seg_ros.frames.classes import Colour, MaskValues
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError
from training.data.contents import Contents
from training.support.section import Section

Split: TypeAlias = Literal["train", "val", "test"]


class SegmentationDataset(Protocol):
    """Images with a class id for every pixel; one split of a data set.

    Attributes:
        class_names: name of each class; its position is the class id.
        palette: RGB colour (0..255) of each class.
        ignore_value: the mask value of pixels that belong to no class, `unlabelled_value` of the class count.
        mask_values: how its mask files hold the classes; None where its labels are no mask files.
    """

    class_names: list[str]
    palette: list[Colour]
    ignore_value: int
    mask_values: MaskValues | None

    def __len__(self) -> int: ...

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB, and mask (H, W) uint8 (uint16 above 255 classes).

        Every mask value is a class id or ``ignore_value``.

        Raises:
            DatasetError: it cannot be read, or contradicts the data set's description; an `ItemError` says which.
        """

    def mask(self, index: int) -> np.ndarray:
        """The mask of an item, as `item` gives it, without reading its image.

        Raises:
            DatasetError: see `item`.
        """

    def describe(self, index: int) -> str:
        """Name of an item for people, such as its file name."""

    def contents(self) -> Contents:
        """Content of all items; reads every file, unless its digest is remembered (`contents.digest_files`).

        Raises:
            DatasetError: a file cannot be read.
        """


class Found(NamedTuple):
    """What lies in the folder of a data set.

    Attributes:
        kind: name of the data set, or of the format that was found.
        sure: how sure that is: certainly, probably or possibly.
        why: what shows it.
        notes: what else the user should know.
    """

    kind: str
    sure: str
    why: str
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same for people."""
        return [f"found: {self.kind}, {self.sure} ({self.why})", *(f"note: {note}" for note in self.notes)]


class DataSettings(Section, ABC):
    """The section ``data`` of a recipe; each data set has a subclass with a ``name`` of its own."""

    name: str

    @abstractmethod
    def open(self, split: Split) -> SegmentationDataset:
        """Find the items of one split; none is read yet.

        Raises:
            DatasetError: files are missing; the message says which, and how the folder must look.
        """

    def open_all(self) -> SegmentationDataset:
        """The items of all splits, and those of none.

        Raises:
            DatasetError: see `open`; or the data set's splits cannot be opened together.
        """
        raise DatasetError(f"data set '{self.name}' has no items but those of its splits; choose train or val")

    def for_other_folder(self, chosen: Container[str]) -> DataSettings:
        """The same section for another folder than that of its training, whose format, ignored value and split differ.

        Args:
            chosen: keys that keep their values.

        Raises:
            DatasetError: the folder cannot be read.
        """
        return self

    def resolved(self) -> DataSettings:
        """The section with every "auto" replaced by its value on this machine."""
        return self

    def found(self, all_splits: bool = False) -> Found:
        """What lies in the folder.

        Args:
            all_splits: for `open_all`: nothing is said of the split, nor of images in none.

        Raises:
            DatasetError: see `open`.
        """
        return Found(self.name, "certainly", "data.name says so")

    def robot_value_range(self) -> ValueRange:
        """Which values of 16-bit images the robot, too, must take for black and white; auto: those of its sensor."""
        return "auto"

    def empty_classes(self) -> frozenset[str]:
        """Names of the classes that have no pixel under these settings."""
        return frozenset()


class IncompleteError(DatasetError):
    """Some items of a data set lack a file.

    Attributes:
        missing: paths of the absent files.
        rest: data set of the complete items.
    """

    def __init__(self, message: str, missing: Sequence[str] = (), rest: SegmentationDataset | None = None) -> None:
        super().__init__(message)
        self.missing, self.rest = list(missing), rest
