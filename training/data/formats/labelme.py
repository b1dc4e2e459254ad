"""labelme: a JSON of shapes beside each image."""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
import posixpath
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3_seg_ros.frames.image_files import StoredImage, read_mask
from dinov3_seg_ros.support.errors import DatasetError, ItemError
from training.data.base import Split
from training.data.classes.lists import drawn_classes, is_ignored_name, plain_name
from training.data.classes.map import SourceClass, SourceClasses
from training.data.reading.content import read_json, read_once
from training.data.reading.paths import parent, split_of, stem
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, count_unlabelled
from training.data.reading.shapes import Drawing, Shape, ShapeReader, ellipse, rectangle, ring, thick_line
from training.data.reading.tree import Tree

# As labelme's own conversion to masks draws them, pixels.
_LINE_WIDTH, _POINT_RADIUS = 10, 5
_LOOKED_AT = 10
# Characters of base64 that hold the header of an image.
_BEGINNING = 64


class Labelme(Format):
    """A JSON with ``shapes`` and ``imagePath`` for each image. What no shape covers is background.

    An image that is no file is taken out of the JSON. Later shapes lie over earlier ones. Lines are 10 pixels wide and
    points have a radius of 5, as in labelme's own conversion. ``__ignore__`` is ignored.
    """

    name = "labelme"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = [name for name in tree.with_suffix(".json")[:_LOOKED_AT] if _is_labelme(tree, name)]
        return Match(Sure.CERTAINLY, f"{found[0]} has shapes and imagePath") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        samples: dict[Split | None, list[Sample]] = {}
        spare, labels = [], Counter[str]()
        files = {name: _read(tree.path(name)) or _File() for name in tree.with_suffix(".json")}
        named = _named_images(tree, files)
        for name, file in files.items():
            sample = _sample(tree, name, file, named[name])
            if sample is None:
                if file != _File():
                    spare.append(tree.path(name))
                continue
            labels.update(file.labels)
            split = split_of(name) or split_of(sample.image.relative_to(tree.root).as_posix())
            samples.setdefault(split, []).append(sample)
        if not samples:
            raise DatasetError(f"{tree.root} holds no JSON of labelme whose image is there")
        classes = _classes(tree, labels)
        return LabelledFolder(
            classes,
            samples,
            ShapeReader(functools.partial(_parse, classes.value_of, classes.ignored.values[0])),
            spare,
            unlabelled=count_unlabelled(tree, samples),
        )


class _File(NamedTuple):
    """What a JSON says of its image: its path, the labels of its shapes, and how the image inside begins, in base64."""

    image: str = ""
    labels: tuple[str, ...] = ()
    inside: str = ""


def _parse(values: Mapping[str, int], ignored: int, sample: Sample) -> Drawing:
    """The drawing of a JSON."""
    content = read_json(sample.labels)
    shapes = [_shape(shape, values, ignored) for shape in content["shapes"]]
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return Drawing(shapes, (int(height), int(width)) if height and width else None)


def _shape(shape: dict[str, Any], values: Mapping[str, int], ignored: int) -> Shape:
    label = shape["label"]
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"a shape has the label {label!r}")
    value = ignored if is_ignored_name(label) else values[plain_name(label)]
    kind, points = shape.get("shape_type") or "polygon", ring(shape["points"])
    if kind == "mask":
        return _mask(shape["mask"], points, value)
    if kind == "polygon":
        return Shape(value, (points,))
    if kind == "rectangle":
        return Shape(value, (rectangle(points),))
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        return Shape(value, (ellipse(points[0], (radius, radius)),))
    if kind in ("line", "linestrip"):
        return Shape(value, thick_line(points, _LINE_WIDTH))
    if kind in ("point", "points"):
        return Shape(value, tuple(ellipse(point, (_POINT_RADIUS, _POINT_RADIUS)) for point in points))
    raise ValueError(f"shape_type {kind} is not known")


def _mask(encoded: str, corners: np.ndarray, value: int) -> Shape:
    """A small mask, a PNG in base64, whose corners are given."""
    bitmap = read_mask(StoredImage(base64.b64decode(encoded), "the mask of a shape")).values > 0
    left, top = np.rint(corners.min(0)).astype(int).tolist()
    return Shape(value, bitmap=bitmap, at=(top, left))


def _classes(tree: Tree, names: Counter[str]) -> SourceClasses:
    """The classes, and one value more for what is ignored."""
    labels = {plain_name(name) for name in names if not is_ignored_name(name)}
    classes = drawn_classes(tree, labels, "the labelme files")
    return dataclasses.replace(classes, ignored=SourceClass("", (len(classes.classes),)))


def _named_images(tree: Tree, files: Mapping[str, _File]) -> dict[str, str | None]:
    """The image that each JSON names, wherever it lies; those of one folder lie together."""
    paths: dict[str, dict[str, str]] = {}
    for name, file in files.items():
        written = posixpath.join(parent(name), file.image.replace("\\", "/"))
        paths.setdefault(parent(name), {})[name] = posixpath.normpath(written)
    found: dict[str, str | None] = {}
    for folder, own in paths.items():
        found |= zip(own, tree.find_images(own.values(), f"{folder}/"), strict=True)
    return found


def _sample(tree: Tree, name: str, file: _File, named: str | None) -> Sample | None:
    """The image that a JSON names as seen from its folder, or of its own stem, or inside it, or ``named`` anywhere.

    None where there is none.
    """
    path, folder, written = tree.path(name), parent(name), file.image.replace("\\", "/")
    file_name = written.rpartition("/")[2]
    image = tree.image_at(posixpath.normpath(f"{folder}/{written}").lstrip("/"))
    image = image or tree.image_at(f"{folder}/{file_name}".lstrip("/")) or tree.image_of_stem.get(stem(name))
    if image is None and file.inside:
        inner = functools.partial(_inner_image, path, file.inside)
        return Sample(path.with_name(file_name or f"{path.stem}.png"), path, content=inner)
    image = image or named
    return None if image is None else Sample(tree.path(image), path)


def _inner_image(path: Path, beginning: str, size: int) -> bytes:
    """The image inside a JSON, or its first ``size`` bytes; these few are taken from the text that it begins with.

    Raises:
        ItemError: it is damaged.
    """
    try:
        text = beginning if 0 <= size <= _BEGINNING // 4 * 3 else read_json(path)["imageData"]
        return base64.b64decode(text, validate=True)[: size if size >= 0 else None]
    except (KeyError, TypeError, ValueError) as error:
        raise ItemError(f"{path} holds no image in imageData ({error!r}); save it anew", "unreadable file") from error


@read_once
def _read(path: Path) -> _File | None:
    """What tells samples and classes of a JSON, which may hold its image too; None where it is of another form."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list) or "imagePath" not in content:
        return None
    # What is damaged is told when the file is read as labels.
    labels = [shape.get("label") for shape in content["shapes"] if isinstance(shape, dict)]
    image = content["imagePath"]
    return _File(
        image if isinstance(image, str) else "",
        tuple(label for label in labels if isinstance(label, str) and label.strip()),
        str(content.get("imageData") or "")[:_BEGINNING],
    )


def _is_labelme(tree: Tree, name: str) -> bool:
    try:
        return _read(tree.path(name)) is not None
    except DatasetError:
        return False
