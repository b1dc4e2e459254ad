"""Datumaro's own JSON, which CVAT exports as "Datumaro 1.0"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import classes_of_shapes
from training.data.reading.content import as_text, laid_out_like, read_head, read_json, read_once
from training.data.reading.paths import parent, split_of, split_of_file
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, count_unlabelled
from training.data.reading.shapes import Drawing, Shape, ShapeReader, from_corner, rectangle, ring, thick_line, turned
from training.data.reading.tree import Tree
from training.data.run_lengths import region_of_coco

_MARKS = (b'"categories"', b'"dm_format_version"', b'"items"')
_HEAD = 4096
_NO_REGIONS = (
    "label",
    "caption",
    "points",
    "skeleton",
    "cuboid_2d",
    "cuboid_3d",
    "hash_key",
    "feature_vector",
    "tabular",
)
_LINE_WIDTH = 1


class Datumaro(Format):
    """``annotations/train.json`` with ``categories`` and ``items``, and the images anywhere in the folder.

    Polygons, masks, boxes and lines are read, in the order of their ``z_order``; what none covers is background.
    """

    name = "datumaro"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _files(tree)
        return Match(Sure.CERTAINLY, f"{next(iter(found))} holds Datumaro's items") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        files = _files(tree)
        if not files:
            raise DatasetError(f"{tree.root} holds no JSON with Datumaro's categories and items")
        labels = (label for file in files.values() for label in file.labels)
        classes = classes_of_shapes(labels, next(iter(files)))
        values = classes.value_of
        samples: dict[Split | None, list[Sample]] = {}
        for name, file in files.items():
            found = tree.find_images((item.image for item in file.items), name)
            for item, own in zip(file.items, found, strict=True):
                path = own or f"{parent(name)}/{item.image}".strip("/")
                entry = item._replace(
                    regions=tuple((values[file.labels[label]], region) for label, region in item.regions)
                )
                split = split_of_file(name) or split_of(path)
                sample = Sample(tree.path(path), tree.path(name), entry, written=item.image)
                samples.setdefault(split, []).append(sample)
        return LabelledFolder(classes, samples, ShapeReader(_parse), unlabelled=count_unlabelled(tree, samples))


class _Item(NamedTuple):
    """An image: its file as the JSON has it, height and width, and class and content of its regions, in order."""

    image: str
    size: tuple[int, int] | None
    regions: tuple[tuple[int, dict[str, Any]], ...]


class _File(NamedTuple):
    """What training needs of a JSON."""

    labels: list[str]
    items: list[_Item]


def _files(tree: Tree) -> dict[str, _File]:
    """Every JSON of Datumaro's, by its name."""
    found = {}
    for name in tree.with_suffix(".json"):
        path = tree.path(name)
        head = read_head(path, _HEAD)
        file = _read(path) if any(mark in head for mark in _MARKS) else None
        if file is not None:
            found[name] = file
    return found


@read_once
def _read(path: Path) -> _File | None:
    """Read a JSON; None where it is of another form."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("items"), list):
        return None
    if not isinstance(content.get("categories"), dict):
        return None
    with laid_out_like("Datumaro's items", path):
        labels = [as_text(label["name"]) for label in content["categories"]["label"]["labels"]]
        return _File(labels, [_item(item, labels) for item in content["items"]])


def _item(item: dict[str, Any], labels: Sequence[str]) -> _Item:
    media = item.get("image") or item.get("media") or {}
    regions = [found for found in item["annotations"] if found["type"] not in _NO_REGIONS]
    unknown = [found["label_id"] for found in regions if not 0 <= int(found["label_id"]) < len(labels)]
    if unknown:
        raise ValueError(f"a region has the label {unknown[0]}, but {len(labels)} labels are listed")
    ordered = sorted(regions, key=lambda found: int(found.get("z_order", 0)))
    height, width = media.get("size") or (None, None)
    return _Item(
        as_text(media.get("path") or item["id"]),
        (int(height), int(width)) if height and width else None,
        tuple((int(found["label_id"]), found) for found in ordered),
    )


def _parse(sample: Sample) -> Drawing:
    item: _Item = sample.entry
    return Drawing([_shape(value, found, item.size) for value, found in item.regions], item.size)


def _shape(value: int, found: dict[str, Any], size: tuple[int, int] | None) -> Shape:
    if found["type"] == "mask":
        return Shape(value, bitmap=region_of_coco(found["rle"], size))
    if found["type"] == "bbox":
        left, top, width, height = found["bbox"]
        corners = rectangle(ring([left, top, left + width, top + height]))
        rotation = (found.get("attributes") or {}).get("rotation", 0)  # as CVAT writes it
        return Shape(value, (from_corner(turned(corners, float(rotation))),))
    if found["type"] == "polyline":
        return Shape(value, thick_line(ring(found["points"]), _LINE_WIDTH))
    if found["type"] == "polygon":
        return Shape(value, (from_corner(ring(found["points"])),))
    raise ValueError(f"an annotation is of the type {found['type']}, which is not known")
