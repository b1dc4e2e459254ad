"""The folders of Pascal VOC, as many tools write them: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

from __future__ import annotations

import dataclasses

from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.classes.map import SourceClasses
from training.data.formats.folder import open_masks
from training.data.published.voc import voc_classes
from training.data.reading.content import read_text
from training.data.reading.paths import parent
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.split_lists import read_split_lists, split_lists
from training.data.reading.tree import Tree

_LISTS = "ImageSets/Segmentation"
_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"


class VocFolders(Format):
    """``JPEGImages/a.jpg`` with ``SegmentationClass/a.png``; the lists in ``ImageSets/Segmentation`` tell the splits.

    Names stand in class_names.txt, as labelme writes it, or in another list of classes. Pascal VOC 2012 itself has no
    such list; it has boxes and masks of objects too.
    """

    name = "voc_folders"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        folders = {folder for name in tree.images for folder in parent(name).split("/")}
        if not {_IMAGES, _MASKS} <= folders or tree.named("labelmap.txt"):
            return None
        return Match(Sure.CERTAINLY, f"it has the folders {_IMAGES} and {_MASKS}")

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        classes = find_classes(tree)
        if not classes.classes and _is_voc2012(tree):
            classes = voc_classes()
        return open_voc(tree, patterns, classes)


def open_voc(tree: Tree, patterns: Patterns, classes: SourceClasses) -> LabelledFolder:
    """Find the samples in Pascal VOC's folders.

    Images of no list stay in the split of their folders, if no list is of that split. Most of VOC's own images have no
    mask and are left out.

    Raises:
        DatasetError: there is no image with a mask; or a list for training or validation names none of the images, and
            no folder tells that split.
    """
    if patterns == Patterns():
        patterns = Patterns(_IMAGES, _MASKS)
    folder = open_masks(tree, patterns, classes)
    path_of = {sample: sample.image.relative_to(tree.root).as_posix() for sample in folder.all_samples()}
    mask_of = {path: sample.labels.relative_to(tree.root).as_posix() for sample, path in path_of.items()}
    lists = [
        (name, split)
        for name, split in split_lists(tree)
        if f"{_LISTS}/" in name
        and read_text(tree.path(name)).strip()  # tools write empty ones for splits without images
    ]
    listed = read_split_lists(tree, lists, mask_of)
    listed.check(tree, folder.samples, next(iter(path_of.values())))
    covered = set(listed.split_of.values())
    samples: dict[Split | None, list[Sample]] = {}
    left_out = 0
    for told, own in folder.samples.items():
        other = None if told in covered else told
        for sample in own:
            split = listed.split_of.get(path_of[sample])
            if split is None and not sample.labels.is_file():
                left_out += 1
            else:
                samples.setdefault(split or other, []).append(sample)
    return dataclasses.replace(folder, samples=samples, unlabelled=left_out, absent=listed.absent)


def _is_voc2012(tree: Tree) -> bool:
    folders = {folder for name in tree.files for folder in parent(name).split("/")}
    return {"Annotations", "SegmentationObject"} <= folders
