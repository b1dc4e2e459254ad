"""Penn-Fudan's pedestrians."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from training.data.base import DataSettings, Split
from training.data.class_lists import known_classes
from training.data.files import FileDataset, find_pairs, find_parts, open_pairs, read_mask_values, split_pairs

_FOLDERS_OF = {"train": ("train_images", "train_masks"), "val": ("valid_images", "valid_masks")}
_ORIGINAL_FOLDERS = ("PNGImages", "PedMasks")
_MASK_SUFFIX = "_mask"


class PennFudanData(DataSettings):
    """Penn-Fudan: background and person; 170 images.

    ``root`` is the folder PennFudanPed as its authors distribute it, with PNGImages and PedMasks, of which
    `val_fraction` is kept for validation; or it has train_images, train_masks, valid_images and valid_masks. Masks
    number the persons: every value above 0 is a person.

    Wang et al., Object Detection Combining Recognition and Segmentation, ACCV 2007.
    """

    name: Literal["penn_fudan"] = "penn_fudan"
    root: str
    """Folder PennFudanPed."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 24 / 170
    """Share of the images kept for validation where root has no folders for its splits; default: 24 of them."""

    def open(self, split: Split) -> FileDataset:
        """See `DataSettings.open`."""
        if any((Path(self.root) / images).exists() for images, _ in _FOLDERS_OF.values()):
            parts: list[tuple[str, ...]] = [(folder,) for folder in _FOLDERS_OF[split]]
        else:
            parts = [*zip(_ORIGINAL_FOLDERS, _FOLDERS_OF[split], strict=True)]
        images, masks = find_parts("Penn-Fudan", self.root, *parts)
        pairs, spare = find_pairs(images, masks, _MASK_SUFFIX)
        if images.name in _ORIGINAL_FOLDERS:
            pairs = split_pairs(pairs, self.val_fraction, split)
        return open_pairs(self.root, pairs, known_classes("penn_fudan"), PersonMasks(), spare)


class PersonMasks:
    """Reads masks in which every value above 0, or every colour but black, is a person."""

    def __call__(self, path: Path) -> np.ndarray:
        """See `training.data.files.MaskReader`."""
        values, _ = read_mask_values(path)
        return (values > 0).astype(np.uint8)

    def mapping(self) -> dict[str, Any]:
        """See `training.data.files.MaskReader.mapping`."""
        return {"persons": "above 0"}
