"""ADE20K, as the Scene Parsing Benchmark of 2016 distributes it."""

from __future__ import annotations

from typing import Literal

from training.data.base import DataSettings, Split
from training.data.classes.lists import published_classes
from training.data.classes.map import SourceClasses, number_map
from training.data.labelled_images import LabelledImages, complete
from training.data.published.layout import check_split, find_pairs, find_parts
from training.support.section import Folder

_FOLDER_OF = {"train": "training", "val": "validation"}


class Ade20kData(DataSettings):
    """ADE20K: 150 classes, 20,210 training images and 2,000 for validation.

    ``root`` is the folder ADEChallengeData2016 with images/training, images/validation, annotations/training and
    annotations/validation. Of the annotations' values 0 is ignored and 1 to 150 are the classes 0 to 149.

    Zhou et al., Semantic Understanding of Scenes through the ADE20K Dataset, 2018, arXiv:1608.05442.
    """

    name: Literal["ade20k"] = "ade20k"
    root: Folder
    """Folder ADEChallengeData2016."""

    def open(self, split: Split) -> LabelledImages:
        """See `DataSettings.open`."""
        check_split("ADE20K", split)
        folder = _FOLDER_OF[split]
        images, masks = find_parts("ADE20K", self.root, (f"images/{folder}",), (f"annotations/{folder}",))
        samples, spare = find_pairs(images, masks)
        return complete(LabelledImages(self.root, samples, number_map(ade20k_classes()), spare_masks=spare))


def ade20k_classes() -> SourceClasses:
    """The classes 1 to 150 of the annotations, of which 0 is ignored."""
    return published_classes("ade20k", range(1, 151), ignored=[0])
