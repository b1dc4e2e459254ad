"""Cityscapes with its fine annotations."""

from __future__ import annotations

from typing import Literal

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import DataSettings, Split
from training.data.classes.lists import published_classes
from training.data.classes.map import SourceClasses, number_map
from training.data.labelled_images import LabelledImages, complete
from training.data.published.layout import check_split, find_parts
from training.data.reading.protocol import Sample
from training.support.section import Folder

IMAGE_ENDING, MASK_ENDING = "_leftImg8bit.png", "_gtFine_labelIds.png"
_LABEL_COUNT = 34
# The label id of each class, in the order of the train ids.
_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class CityscapesData(DataSettings):
    """Cityscapes: 19 classes, 2,975 training images and 500 for validation.

    ``root`` has leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png. Labels
    that are not evaluated are ignored.

    Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, 2016, arXiv:1604.01685.
    """

    name: Literal["cityscapes"] = "cityscapes"
    root: Folder
    """Folder that holds leftImg8bit and gtFine."""

    def open(self, split: Split) -> LabelledImages:
        """See `DataSettings.open`."""
        check_split("Cityscapes", split)
        images, masks = find_parts("Cityscapes", self.root, (f"leftImg8bit/{split}",), (f"gtFine/{split}",))
        samples = [
            Sample(image, masks / image.parent.name / (image.name.removesuffix(IMAGE_ENDING) + MASK_ENDING))
            for image in sorted(images.glob(f"*/*{IMAGE_ENDING}"))
        ]
        if not samples:
            raise DatasetError(
                f"{images} holds no folder of a city with images *{IMAGE_ENDING}; unpack the data set anew"
            )
        spare = sorted(set(masks.glob(f"*/*{MASK_ENDING}")).difference(sample.labels for sample in samples))
        return complete(LabelledImages(self.root, samples, number_map(cityscapes_classes()), spare_masks=spare))


def cityscapes_classes(train_ids: bool = False) -> SourceClasses:
    """The 19 classes that are evaluated, for masks of label ids or of train ids; the other labels are ignored."""
    if train_ids:
        return published_classes("cityscapes", range(len(_EVALUATED)), ignored=(255,))
    return published_classes("cityscapes", _EVALUATED, ignored=set(range(_LABEL_COUNT)).difference(_EVALUATED))
