"""COCO with panoptic annotations."""

from __future__ import annotations

from typing import Literal

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import DataSettings, Split
from training.data.classes.lists import known_classes, published_classes
from training.data.classes.map import number_map
from training.data.labelled_images import LabelledImages, complete
from training.data.published.layout import check_split, find_parts
from training.data.reading.panoptic import Panoptic, PanopticMasks, read_panoptic
from training.data.reading.protocol import Sample
from training.support.section import Folder


class CocoPanopticData(DataSettings):
    """COCO panoptic: 134 classes, 118,287 training images and 5,000 for validation.

    ``root`` has train2017, val2017, annotations/panoptic_train2017.json, annotations/panoptic_val2017.json and the
    folders panoptic_train2017 and panoptic_val2017, in annotations or beside it. Class 0 is the background; 1 to 80
    are the things and 81 to 133 the stuff, in the order of COCO's category ids. Crowds are of their category.

    Kirillov et al., Panoptic Segmentation, 2019, arXiv:1801.00868; Lin et al., Microsoft COCO, 2014, arXiv:1405.0312.
    """

    name: Literal["coco_panoptic"] = "coco_panoptic"
    root: Folder
    """Folder that holds train2017, val2017 and annotations."""
    background: Literal["class", "ignore"] = "class"
    """What unlabelled pixels are: class 0, or ignored; then no pixel is of class 0."""

    def open(self, split: Split) -> LabelledImages:
        """See `DataSettings.open`."""
        check_split("COCO panoptic", split)
        folder = f"panoptic_{split}2017"
        images, masks, annotations = find_parts(
            "COCO panoptic",
            self.root,
            (f"{split}2017", f"images/{split}2017"),
            (f"annotations/{folder}", folder),
            (f"annotations/{folder}.json",),
        )
        panoptic = read_panoptic(annotations)
        background, ignored = (None, [0]) if self.background == "ignore" else (0, [])
        classes = published_classes("coco_panoptic", [background, *range(1, 134)], ignored)
        return complete(
            LabelledImages(
                self.root,
                [Sample(images / image, masks / mask, index) for index, (image, mask) in enumerate(panoptic.files)],
                number_map(classes),
                PanopticMasks(panoptic, _class_of_category(panoptic)),
                evidence=[annotations],
                masks=False,
            )
        )

    def empty_classes(self) -> frozenset[str]:
        """See `DataSettings.empty_classes`."""
        return frozenset(("background",) if self.background == "ignore" else ())


def _class_of_category(panoptic: Panoptic) -> dict[int, int]:
    class_ids = {name: index for index, name in enumerate(known_classes("coco_panoptic"))}
    unknown = [name for name in panoptic.categories.values() if name not in class_ids]
    if unknown:
        raise DatasetError(f"{panoptic.path} has the category '{unknown[0]}', which is none of COCO panoptic's 133")
    return {category: class_ids[name] for category, name in panoptic.categories.items()}
