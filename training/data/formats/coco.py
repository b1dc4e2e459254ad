"""COCO instances: one JSON with the polygons of many images, as CVAT, Roboflow, Label Studio and others write it."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import classes_of_shapes
from training.data.reading.content import as_id, as_text, check_ids, laid_out_like, read_head, read_json, read_once
from training.data.reading.paths import parent, split_of, split_of_file
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, count_unlabelled
from training.data.reading.shapes import Drawing, Shape, ShapeReader, from_corner, largest_first, rectangle, ring
from training.data.reading.tree import Tree
from training.data.run_lengths import region_of_coco

_KEYS = ("images", "annotations", "categories")
# Files of COCO's that hold no regions, or those of other files again.
_PANOPTIC = "panoptic_"
_OTHER_TASKS = re.compile(rf"({_PANOPTIC}|person_keypoints_).*|(captions|image_info|stuff)_[a-z-]+\d{{4}}.*")
# Of what COCO's files begin with, one is there; so files of other tools are told from them without reading all.
_FIRST_KEYS = (b'"info"', b'"licenses"', *(f'"{key}"'.encode() for key in _KEYS))
_HEAD = 4096


class Coco(Format):
    """A JSON with ``images``, ``annotations`` and ``categories`` for each split, anywhere in the folder.

    Class 0 is the background: what no annotation covers. The other classes follow in the order of the category ids;
    categories of the same name are one class. Small regions lie over large ones.

    Lin et al., Microsoft COCO: Common Objects in Context, 2014, arXiv:1405.0312.
    """

    name = "coco"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _files(tree)
        if not found or _are_boxes(found):
            return None
        count = sum(len(file.images) for file in found.values())
        # COCO's own panoptic labels cover the whole image; its instances cover the things alone.
        panoptic = any(name.rpartition("/")[2].startswith(_PANOPTIC) for name in tree.with_suffix(".json"))
        sure = Sure.PROBABLY if panoptic else Sure.CERTAINLY
        return Match(sure, f"{next(iter(found))} holds COCO annotations ({count} images)")

    def nearly(self, tree: Tree) -> str | None:
        """See `Format.nearly`."""
        found = _files(tree)
        if not _are_boxes(found):
            return None
        return (
            f"{next(iter(found))} holds boxes, as for detection, and no regions: export the labels for segmentation. "
            "With data.format: coco each box is read as a filled rectangle"
        )

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        files = _files(tree)
        if not files:
            raise DatasetError(f"{tree.root} holds no JSON with images, annotations and categories")
        names = (name for file in files.values() for name in file.names.values())
        classes = classes_of_shapes(names, next(iter(files)))
        values = classes.value_of
        samples: dict[Split | None, list[Sample]] = {}
        for name, file in files.items():
            if not file.images:
                raise DatasetError(f"{tree.path(name)} lists no images; export it anew, or remove it")
            found = tree.find_images((image.name for image in file.images), name)
            for image, own in zip(file.images, found, strict=True):
                path = own or f"{parent(name)}/{image.name}".strip("/")
                split = split_of_file(name) or split_of(path)
                entry = image._replace(
                    regions=tuple((values[file.names[key]], region) for key, region in image.regions)
                )
                sample = Sample(tree.path(path), tree.path(name), entry, written=image.name)
                samples.setdefault(split, []).append(sample)
        return LabelledFolder(
            classes,
            {split: sorted(own, key=operator.itemgetter(0)) for split, own in samples.items()},
            ShapeReader(_parse),
            unlabelled=count_unlabelled(tree, samples),
            boxes=sum(file.boxes for file in files.values()),
        )


class _Image(NamedTuple):
    """An image of a JSON.

    Attributes:
        name: its file, as the JSON has it.
        size: height and width, pixels.
        regions: category and region of each annotation: polygons, or run lengths as COCO writes them.
    """

    name: str
    size: tuple[int, int]
    regions: tuple[tuple[int, tuple[np.ndarray, ...] | dict[str, Any]], ...]


class _File(NamedTuple):
    """What training needs of a JSON.

    Attributes:
        names: name of each category, by its id, in the order of the ids.
        images: in the order of their ids.
        boxes: number of annotations that have a box and no region.
    """

    names: dict[int, str]
    images: list[_Image]
    boxes: int


def _files(tree: Tree) -> dict[str, _File]:
    """Every JSON of COCO's form with regions, by its name."""
    found = {}
    for name in tree.with_suffix(".json"):
        path = tree.path(name)
        if not _OTHER_TASKS.fullmatch(path.name) and begins_like_coco(path):
            file = _read(path)
            if file is not None:
                found[name] = file
    return found


@read_once
def _read(path: Path) -> _File | None:
    """Read a JSON; None where it is of another form.

    Raises:
        DatasetError: the file is of COCO's form and contradicts itself.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _KEYS):
        return None
    with laid_out_like("COCO's annotations", path):
        return None if any("segments_info" in found for found in content["annotations"][:1]) else _file(content)


def _file(content: Mapping[str, Any]) -> _File:
    for key in ("categories", "images"):
        check_ids(content[key], key)
    used = Counter(annotation["category_id"] for annotation in content["annotations"])
    categories = sorted(content["categories"], key=operator.itemgetter("id"))
    # Roboflow begins with a category that stands for the project and that no annotation has.
    parents = {category.get("supercategory") for category in categories}
    names = {
        category["id"]: str(category["name"])
        for category in categories
        if used[category["id"]] or category["id"] != 0 or category["name"] not in parents
    }
    unlisted = [category for category in used if category not in names]
    if unlisted:
        raise ValueError(f"an annotation has the category {unlisted[0]}, which is not listed")
    boxes = 0
    regions: dict[str, list[tuple[int, Any]]] = {as_id(image["id"]): [] for image in content["images"]}
    for annotation in content["annotations"]:
        own = regions.get(as_id(annotation["image_id"]))
        if own is None:
            raise ValueError(f"an annotation is of the image {annotation['image_id']}, which is not listed")
        region = _region(annotation)
        if not region and (region := _box(annotation)):
            boxes += 1
        if region:
            own.append((annotation["category_id"], region))
    images = [
        _Image(
            as_text(image["file_name"]),
            (int(image["height"]), int(image["width"])),
            tuple(regions[as_id(image["id"])]),
        )
        for image in content["images"]
    ]
    return _File(names, images, boxes)


def _region(annotation: Mapping[str, Any]) -> tuple[np.ndarray, ...] | dict[str, Any] | None:
    """Polygons or run lengths of an annotation; None where it has neither."""
    written = annotation.get("segmentation")
    if isinstance(written, dict):
        return written
    return tuple(ring(points) for points in written or () if len(points) >= 6) or None


def _box(annotation: Mapping[str, Any]) -> tuple[np.ndarray, ...] | None:
    """The box of an annotation as a polygon; None where it has none."""
    if not annotation.get("bbox"):
        return None
    left, top, width, height = annotation["bbox"]
    return (rectangle(np.array([[left, top], [left + width - 1, top + height - 1]], np.float32)),)


def _are_boxes(files: Mapping[str, _File]) -> bool:
    """Whether there are annotations, and all of them are boxes alone."""
    boxes = sum(file.boxes for file in files.values())
    return 0 < boxes == sum(len(image.regions) for file in files.values() for image in file.images)


def _parse(sample: Sample) -> Drawing:
    image: _Image = sample.entry
    shapes = []
    for value, region in image.regions:
        if isinstance(region, dict):
            shapes.append(Shape(value, bitmap=region_of_coco(region, image.size)))
        else:
            shapes.append(Shape(value, tuple(map(from_corner, region))))
    return Drawing(largest_first(shapes), image.size)


def begins_like_coco(path: Path) -> bool:
    """Whether the first bytes of a JSON may be those of COCO's annotations."""
    head = read_head(path, _HEAD)
    return any(key in head for key in _FIRST_KEYS)
