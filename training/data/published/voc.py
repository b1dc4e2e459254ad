"""Pascal VOC 2012, with the Semantic Boundaries Dataset's annotations where they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from training.data.base import DataSettings, Split
from training.data.classes.lists import published_classes
from training.data.classes.map import SourceClasses, number_map
from training.data.labelled_images import LabelledImages, complete
from training.data.published.layout import check_split, find_parts, listed_names
from training.data.reading.protocol import Sample
from training.support.section import Folder

_NAME = "Pascal VOC 2012"
_AUGMENTED_MASKS = "SegmentationClassAug"
# Where people put the lists, and what they call the augmented one.
_LIST_FOLDERS = ("ImageSets/Segmentation", "list", ".")
_LIST_NAMES = {"train_aug": ("train_aug.txt", "trainaug.txt"), "train": ("train.txt",), "val": ("val.txt",)}
_MASK_FOLDERS = {"train_aug": (_AUGMENTED_MASKS,), "train": ("SegmentationClass",)}
_VOID = 255
_VOID_COLOUR = (224, 224, 192)


class VocData(DataSettings):
    """Pascal VOC 2012: 21 classes; 1,464 training images, or 10,582 with SBD's annotations, and 1,449 for validation.

    ``root`` is the folder VOC2012 with JPEGImages, SegmentationClass and ImageSets/Segmentation; SBD's annotations are
    SegmentationClassAug and the list train_aug.txt, as people distribute them. The void border is ignored.

    Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015; Hariharan et al.,
    Semantic Contours from Inverse Detectors, ICCV 2011 (SBD).
    """

    name: Literal["voc"] = "voc"
    root: Folder
    """Folder VOC2012."""
    train_list: Literal["auto", "train_aug", "train"] = "auto"
    """Which images to train on: the 10,582 of train_aug or the 1,464 of train; auto: train_aug where root has
    SegmentationClassAug."""

    def open(self, split: Split) -> LabelledImages:
        """See `DataSettings.open`."""
        check_split(_NAME, split)
        wanted = "val" if split == "val" else self.resolved().train_list
        images, masks, listed = find_parts(
            _NAME,
            self.root,
            ("JPEGImages",),
            _MASK_FOLDERS.get(wanted, ("SegmentationClass", _AUGMENTED_MASKS)),
            tuple(Path(folder, name).as_posix() for name in _LIST_NAMES[wanted] for folder in _LIST_FOLDERS),
        )
        samples = [Sample(images / f"{name}.jpg", masks / f"{name}.png") for name in listed_names(listed)]
        return complete(LabelledImages(self.root, samples, number_map(voc_classes())))

    def resolved(self) -> VocData:
        """See `DataSettings.resolved`."""
        if self.train_list != "auto":
            return self
        augmented = (Path(self.root) / _AUGMENTED_MASKS).is_dir()
        return self.model_copy(update={"train_list": "train_aug" if augmented else "train"})


def voc_classes() -> SourceClasses:
    """The background and 20 classes; the void border is ignored."""
    return published_classes("voc", range(21), ignored=[_VOID], ignored_colours=[_VOID_COLOUR])
