"""VGG Image Annotator: a JSON with the regions of all images."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import drawn_classes
from training.data.reading.content import as_text, laid_out_like, read_head, read_json, read_once
from training.data.reading.paths import parent, split_of
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, count_unlabelled
from training.data.reading.shapes import Drawing, Shape, ShapeReader, ellipse, rectangle, ring, thick_line
from training.data.reading.tree import Tree

_MARK = b"regions"
_METADATA = "_via_img_metadata"
_HEAD = 1 << 20
_LINE_WIDTH = 1


class Via(Format):
    """``via_region_data.json`` or a saved project, with the images anywhere in the folder.

    The class of a region is its one attribute with a value. Polygons, rectangles, circles, ellipses and lines are read;
    later regions lie over earlier ones, and what none covers is background.
    """

    name = "via"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _files(tree)
        return Match(Sure.CERTAINLY, f"{next(iter(found))} holds regions of VGG Image Annotator") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        files = _files(tree)
        if not files:
            raise DatasetError(f"{tree.root} holds no JSON with regions of VGG Image Annotator")
        labels = {label for images in files.values() for image in images for label, _ in image.regions}
        classes = drawn_classes(tree, labels, next(iter(files)))
        reader = ShapeReader(functools.partial(_parse, classes.value_of))
        samples: dict[Split | None, list[Sample]] = {}
        for name, images in files.items():
            found = tree.find_images((image.name for image in images), name)
            for image, own in zip(images, found, strict=True):
                path = own or f"{parent(name)}/{image.name}".strip("/")
                split = split_of(name) or split_of(path)
                sample = Sample(tree.path(path), tree.path(name), image, written=image.name)
                samples.setdefault(split, []).append(sample)
        return LabelledFolder(classes, samples, reader, unlabelled=count_unlabelled(tree, samples))


class _Image(NamedTuple):
    """An image: its file as the JSON has it, and the label and shape of each region."""

    name: str
    regions: tuple[tuple[str, Mapping[str, Any]], ...]


def _parse(values: Mapping[str, int], sample: Sample) -> Drawing:
    """The drawing of an image."""
    image: _Image = sample.entry
    return Drawing([_shape(values[label], written) for label, written in image.regions])


def _shape(value: int, written: Mapping[str, Any]) -> Shape:
    kind = written["name"]
    if kind == "rect":
        left, top = written["x"], written["y"]
        return Shape(value, (rectangle(ring([left, top, left + written["width"], top + written["height"]])),))
    if kind in ("circle", "ellipse"):
        radii = (written["r"], written["r"]) if kind == "circle" else (written["rx"], written["ry"])
        turn = np.rad2deg(written.get("theta", 0.0))
        return Shape(value, (ellipse((written["cx"], written["cy"]), radii, float(turn)),))
    points = ring(np.stack([written["all_points_x"], written["all_points_y"]], -1))
    if kind == "polyline":
        return Shape(value, thick_line(points, _LINE_WIDTH))
    if kind == "polygon":
        return Shape(value, (points,))
    raise ValueError(f"a region is a {kind}, which is not known")


def _files(tree: Tree) -> dict[str, tuple[_Image, ...]]:
    """The images of each JSON of VGG Image Annotator; none where no image has a region."""
    found = {}
    for name in tree.with_suffix(".json"):
        path = tree.path(name)
        images = _read(path) if _MARK in read_head(path, _HEAD) else ()
        if images:
            found[name] = images
    return found if any(image.regions for images in found.values() for image in images) else {}


@read_once
def _read(path: Path) -> tuple[_Image, ...]:
    """Images of a file; none where it is of another form."""
    content = read_json(path)
    content = content.get(_METADATA, content) if isinstance(content, dict) else {}
    images = [image for image in content.values() if isinstance(image, dict)] if isinstance(content, dict) else []
    if not images or not all({"filename", "regions"} <= image.keys() for image in images):
        return ()
    with laid_out_like("VGG Image Annotator's regions", path):
        return tuple(map(_image, images))


def _image(image: dict[str, Any]) -> _Image:
    written = image["regions"]
    regions = written.values() if isinstance(written, dict) else written  # version 1 numbers them
    name = as_text(image["filename"])
    return _Image(name, tuple((_label(found, name), found["shape_attributes"]) for found in regions))


def _label(region: dict[str, Any], image: str) -> str:
    """The class of a region: the value of its attribute, or the chosen one of several.

    Raises:
        ValueError: it has none, or several.
    """
    values = []
    for value in region["region_attributes"].values():
        values += [key for key, chosen in value.items() if chosen] if isinstance(value, dict) else [value]
    labels = [value for value in values if isinstance(value, str) and value]
    if len(labels) != 1:
        raise ValueError(f"a region of {image} has {len(labels)} attributes with a value, not one: {labels}")
    return labels[0]
