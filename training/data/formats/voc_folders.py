"""The folders of Pascal VOC, as many tools write them: JPEGImages, SegmentationClass, ImageSets/Segmentation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.classes.map import SourceClasses
from training.data.formats.folder import open_masks
from training.data.published.voc import voc_classes
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.tree import Paths, Tree, parent, path_ends, plain, read_text, split_named, stem

_LISTS = "ImageSets/Segmentation"
_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"
# Lists of one class say behind each name whether the image shows it.
_SECOND_COLUMN = re.compile(r"\s+(-1|0|1)$")
_WITH_SUFFIX = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))[\"']?(?:\s|$)", re.IGNORECASE)


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

    Images that no list names have no split; most of VOC's own images have no mask and are left out.

    Raises:
        DatasetError: there is no image with a mask.
    """
    if patterns == Patterns():
        patterns = Patterns(_IMAGES, _MASKS)
    folder = open_masks(tree, patterns, classes)
    path_of = {sample: sample.image.relative_to(tree.root).as_posix() for sample in folder.all_samples()}
    split_of = _lists(tree, path_of.values())
    samples: dict[Split | None, list[Sample]] = {}
    left_out = 0
    for own in folder.samples.values():
        for sample in own:
            split = split_of.get(path_of[sample])
            if split is None and not sample.labels.is_file():
                left_out += 1
            else:
                samples.setdefault(split, []).append(sample)
    return dataclasses.replace(folder, samples=samples, unlabelled=left_out)


def _is_voc2012(tree: Tree) -> bool:
    folders = {folder for name in tree.files for folder in parent(name).split("/")}
    return {"Annotations", "SegmentationObject"} <= folders


def _lists(tree: Tree, images: Iterable[str]) -> dict[str, Split]:
    """The split of each listed image; a list whose name is no split's, such as CVAT's default.txt, tells none."""
    image_of = {stem(image): image for image in images}
    paths = Paths(image_of)
    ending: dict[str, list[str]] = {}
    for path in image_of:
        for end in path_ends(plain(path)):
            ending.setdefault(end, []).append(path)

    def find(entry: str, folder: str) -> str | None:
        """The image in the folders of its list, or else the only one whose path ends as the longest end of it."""
        alike = next((ending[end] for end in path_ends(plain(entry)) if end in ending), [])
        path = paths.find(f"{folder}{_IMAGES}/{entry}") or (alike[0] if len(alike) == 1 else "")
        return image_of.get(path)

    split_of: dict[str, Split] = {}
    for name in tree.with_suffix(".txt"):
        split, (folder, lists, _) = split_named(stem(name).rpartition("/")[2]), name.rpartition(f"{_LISTS}/")
        if split is None or not lists:
            continue
        for line in read_text(tree.path(name)).splitlines():
            listed = next(filter(None, (find(entry, folder) for entry in _entries(line))), None)
            if listed is not None:
                split_of.setdefault(listed, split)
    return split_of


def _entries(line: str) -> list[str]:
    """What a line may name, the likeliest first: the image of a pair of paths, all of it, or its first column."""
    text = line.strip().replace("\\", "/")
    file = _WITH_SUFFIX.match(text)
    written = [stem(file[1])] if file else [text, _SECOND_COLUMN.sub("", text)]
    return [path.strip("\"'").strip("/") for path in written]
