"""Penn-Fudan's pedestrians."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dinov3_seg_ros.frames.image_files import MaskPixels, read_mask
from dinov3_seg_ros.frames.mask_labels import LabelTable, MaskLabels, as_number
from training.data.base import DataSettings, Split
from training.data.classes.lists import known_classes
from training.data.classes.map import ClassMap
from training.data.labelled_images import LabelledImages, complete
from training.data.published.layout import check_split, find_pairs, find_parts
from training.data.reading.protocol import Sample
from training.data.splits import split_samples
from training.support.section import Folder

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
    root: Folder
    """Folder PennFudanPed."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 24 / 170
    """Share of the images kept for validation where root has no folders for its splits; default: 24 of them."""

    def open(self, split: Split) -> LabelledImages:
        """See `DataSettings.open`."""
        check_split("Penn-Fudan", split)
        if any((Path(self.root) / images).exists() for images, _ in _FOLDERS_OF.values()):
            parts: list[tuple[str, ...]] = [(folder,) for folder in _FOLDERS_OF[split]]
        else:
            parts = [*zip(_ORIGINAL_FOLDERS, _FOLDERS_OF[split], strict=True)]
        images, masks = find_parts("Penn-Fudan", self.root, *parts)
        samples, spare = find_pairs(images, masks, _MASK_SUFFIX)
        if images.name in _ORIGINAL_FOLDERS:
            samples = split_samples(samples, self.val_fraction, split, group="none")  # photos, no video
        classes = known_classes("penn_fudan")
        persons = LabelTable({0: 0}, len(classes), as_number, "", rest=1)
        class_map = ClassMap(list(classes), list(classes.values()), MaskLabels(persons))
        return complete(LabelledImages(self.root, samples, class_map, _read_persons, spare))


def _read_persons(sample: Sample) -> MaskPixels:
    """A mask whose values number the persons; in a mask of colours, all but black is a person."""
    return MaskPixels(read_mask(sample.labels).values)
