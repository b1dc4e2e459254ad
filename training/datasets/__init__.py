"""Data sets, one file each.

To add one: write a subclass of `DataSettings` with a ``name`` of its own whose ``open(split)`` returns a
`SegmentationDataset`, and add it to `DataSection`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from training.datasets.ade20k import Ade20kData
from training.datasets.base import Colour, IncompleteError, ItemError, SegmentationDataset, Split, unlabelled_value
from training.datasets.camvid import CamVidData
from training.datasets.cityscapes import CityscapesData
from training.datasets.coco_panoptic import CocoPanopticData
from training.datasets.folder import FolderData
from training.datasets.penn_fudan import PennFudanData
from training.datasets.scenes import ScenesData
from training.datasets.voc import VocData

_AnyData: TypeAlias = (
    FolderData | ScenesData | VocData | CocoPanopticData | PennFudanData | Ade20kData | CityscapesData | CamVidData
)

#: The section ``data`` of a recipe.
DataSection: TypeAlias = Annotated[_AnyData, Field(discriminator="name")]

#: Name in a recipe -> section.
DATASETS = {section.model_fields["name"].default: section for section in get_args(_AnyData)}

__all__ = [
    "DATASETS",
    "Colour",
    "DataSection",
    "IncompleteError",
    "ItemError",
    "SegmentationDataset",
    "Split",
    "unlabelled_value",
]
