"""What a data set is to the rest of training."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np

from dinov3_seg_ros.support.errors import DatasetError
from training.support.section import Section

Colour: TypeAlias = tuple[int, int, int]
Split: TypeAlias = Literal["train", "val"]
Fault: TypeAlias = Literal["unreadable file", "sizes differ", "value of no class", "other"]


class SegmentationDataset(Protocol):
    """Images with a class id for every pixel; one split of a data set.

    Attributes:
        class_names: name of each class; its position is the class id.
        palette: RGB colour (0..255) of each class.
        ignore_value: the mask value of pixels that belong to no class, `unlabelled_value` of the class count.
    """

    class_names: list[str]
    palette: list[Colour]
    ignore_value: int

    def __len__(self) -> int: ...

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB, and mask (H, W) uint8 (uint16 above 255 classes).

        Every mask value is a class id or ``ignore_value``.

        Raises:
            DatasetError: it cannot be read, or contradicts the data set's description; an `ItemError` says which.
        """

    def mask(self, index: int) -> np.ndarray:
        """The mask of an item alone, as `item` gives it; its image is not read.

        Raises:
            DatasetError: see `item`.
        """

    def describe(self, index: int) -> str:
        """What a person would call this item, such as its file name."""

    def fingerprint(self) -> str:
        """Another text where any item is another: what is derived from items is kept under it."""


def files_fingerprint(paths: Iterable[Path], *others: object) -> str:
    """SHA-256 of the paths, sizes and times of change of files, and of ``others`` as they are printed."""
    digest = hashlib.sha256(repr(others).encode())
    for path in paths:
        state = path.stat()
        digest.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


class DataSettings(Section, ABC):
    """The section ``data`` of a recipe; each data set has a subclass with a ``name`` of its own."""

    @abstractmethod
    def open(self, split: Split) -> SegmentationDataset:
        """Find the items of one split; none is read yet.

        Raises:
            DatasetError: files are missing; the message says which, and how the folder must look.
        """

    def resolved(self) -> DataSettings:
        """The section with every "auto" replaced by what it stands for on this machine."""
        return self

    def empty_classes(self) -> frozenset[str]:
        """Names of the classes to which these settings leave no pixel."""
        return frozenset()


class ItemError(DatasetError):
    """One item of a data set cannot be used.

    Attributes:
        fault: what is wrong with it, in two or three words.
    """

    def __init__(self, message: str, fault: Fault = "other") -> None:
        super().__init__(message)
        self.fault = fault


class IncompleteError(DatasetError):
    """Some items of a data set lack a file.

    Attributes:
        missing: the files that are not there.
        rest: the items that lack none.
    """

    def __init__(self, message: str, missing: Sequence[str] = (), rest: SegmentationDataset | None = None) -> None:
        super().__init__(message)
        self.missing, self.rest = list(missing), rest
