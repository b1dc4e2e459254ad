"""Data sets; no other room of training but support is imported.

A folder of one's own is the data set ``auto`` (or ``folder``): its format is found among `training.data.formats`, one
module each. A published data set has a section of its own in `training.data.published`: to add one, write a subclass of
`DataSettings` with a ``name`` whose ``open(split)`` returns a `SegmentationDataset`, and add it to `DataSection`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from training.data.base import Found, IncompleteError, SegmentationDataset, Split
from training.data.labelled_folder import AutoData, FolderData
from training.data.published.ade20k import Ade20kData
from training.data.published.camvid import CamVidData
from training.data.published.cityscapes import CityscapesData
from training.data.published.coco_panoptic import CocoPanopticData
from training.data.published.penn_fudan import PennFudanData
from training.data.published.voc import VocData
from training.data.scenes import ScenesData

_AnyData: TypeAlias = (
    AutoData
    | FolderData
    | ScenesData
    | VocData
    | CocoPanopticData
    | PennFudanData
    | Ade20kData
    | CityscapesData
    | CamVidData
)

#: The section ``data`` of a recipe.
DataSection: TypeAlias = Annotated[_AnyData, Field(discriminator="name")]

#: From the name in a recipe to the section.
DATASETS = {section.model_fields["name"].default: section for section in get_args(_AnyData)}

__all__ = [
    "DATASETS",
    "DataSection",
    "Found",
    "IncompleteError",
    "SegmentationDataset",
    "Split",
]
