"""Data sets, one file each.

To add one: write a `Section` with a ``name`` of its own and a method ``open(split)`` that returns a
`SegmentationDataset`, and add it to `DataSection`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from training.datasets.base import Colour, SegmentationDataset, Split, unlabelled_value
from training.datasets.folder import FolderData
from training.datasets.scenes import ScenesData

DataSection: TypeAlias = Annotated[FolderData | ScenesData, Field(discriminator="name")]

#: Name in a recipe -> section.
DATASETS = {section.model_fields["name"].default: section for section in (FolderData, ScenesData)}

__all__ = ["DATASETS", "Colour", "DataSection", "SegmentationDataset", "Split", "unlabelled_value"]
