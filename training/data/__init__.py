"""Data sets, one file each; no other room of training but support is imported.

To add one: write a subclass of `DataSettings` with a ``name`` of its own whose ``open(split)`` returns a
`SegmentationDataset`, and add it to `DataSection`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from training.data.ade20k import Ade20kData
from training.data.base import Colour, IncompleteError, ItemError, SegmentationDataset, Split
from training.data.camvid import CamVidData
from training.data.cityscapes import CityscapesData
from training.data.coco_panoptic import CocoPanopticData
from training.data.folder import FolderData
from training.data.penn_fudan import PennFudanData
from training.data.scenes import ScenesData
from training.data.voc import VocData

_AnyData: TypeAlias = (
    FolderData | ScenesData | VocData | CocoPanopticData | PennFudanData | Ade20kData | CityscapesData | CamVidData
)

#: The section ``data`` of a recipe.
DataSection: TypeAlias = Annotated[_AnyData, Field(discriminator="name")]

#: From the name in a recipe to the section.
DATASETS = {section.model_fields["name"].default: section for section in get_args(_AnyData)}

__all__ = [
    "DATASETS",
    "Colour",
    "DataSection",
    "IncompleteError",
    "ItemError",
    "SegmentationDataset",
    "Split",
]
