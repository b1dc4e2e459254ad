"""CamVid with 11 classes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from training.data.base import DataSettings, Split
from training.data.classes.lists import published_classes
from training.data.classes.map import number_map
from training.data.labelled_images import LabelledImages, complete
from training.data.published.layout import find_pairs, find_parts
from training.support.section import Folder
from training.support.spread import spread


class CamVidData(DataSettings):
    """CamVid: 11 classes, 367 training images and 101 for validation, in the split of the SegNet article.

    ``root`` has train/images, train/masks, val/images and val/masks, or train, trainannot, val and valannot. Masks
    hold the class ids 0 to 10, and 11 where nothing is evaluated.

    Brostow et al., Semantic object classes in video, Pattern Recognition Letters 2009; Badrinarayanan et al., SegNet,
    2015, arXiv:1511.00561.
    """

    name: Literal["camvid"] = "camvid"
    root: Folder
    """Folder of the data set."""
    train_images: Annotated[int, Field(ge=1)] | None = None
    """Train on so many images only, taken evenly over the drives; null: on all."""

    def open(self, split: Split) -> LabelledImages:
        """See `DataSettings.open`."""
        images, masks = find_parts("CamVid", self.root, (f"{split}/images", split), (f"{split}/masks", f"{split}annot"))
        classes = published_classes("camvid", range(11), ignored=[11])
        samples, spare = find_pairs(images, masks)
        if split == "train":
            samples = [samples[index] for index in spread(len(samples), self.train_images)]
        return complete(LabelledImages(self.root, samples, number_map(classes), spare_masks=spare))
