"""Supervisely: a project of data sets, each with the folders img and ann."""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import classes_of_shapes
from training.data.reading.content import read_json
from training.data.reading.paths import parent, split_of
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.shapes import Drawing, Shape, ShapeReader, ellipse, rectangle, ring, thick_line
from training.data.reading.tree import Tree

_PROJECT = "meta.json"
_LINE_WIDTH, _POINT_RADIUS = 1, 1


class Supervisely(Format):
    """``meta.json``, and for each data set ``img/a.jpg`` with ``ann/a.jpg.json``. What no object covers is background.

    Several projects have the classes of all. Later objects lie over earlier ones. Data sets named train, val or test
    are the splits.
    """

    name = "supervisely"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _projects(tree)
        return Match(Sure.CERTAINLY, f"{found[0]}, and annotations in folders ann") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        projects = _projects(tree)
        if not projects:
            raise DatasetError(f"{tree.root} holds no {_PROJECT} with annotations in folders ann below its folder")
        names = (name for project in projects for name in _class_names(tree.path(project)))
        classes = classes_of_shapes(names, projects[0])
        samples: dict[Split | None, list[Sample]] = {}
        spare = []
        for name in _annotations(tree):
            named = f"{parent(parent(name))}/img/{name.rpartition('/')[2].removesuffix('.json')}".strip("/")
            image = tree.image_at(named)
            if image is None:
                spare.append(tree.path(name))
            else:
                samples.setdefault(split_of(name), []).append(Sample(tree.path(image), tree.path(name)))
        count = sum(map(len, samples.values()))
        unlabelled = sum("/img/" in f"/{image}" for image in tree.images) - count
        reader = ShapeReader(functools.partial(_parse, classes.value_of))
        return LabelledFolder(classes, samples, reader, spare, unlabelled)


def _parse(values: Mapping[str, int], sample: Sample) -> Drawing:
    """The drawing of an annotation."""
    content = read_json(sample.labels)
    size = content["size"]
    return Drawing([_shape(found, values) for found in content["objects"]], (int(size["height"]), int(size["width"])))


def _shape(found: dict[str, Any], values: Mapping[str, int]) -> Shape:
    title, kind = found["classTitle"], found["geometryType"]
    if title not in values:
        raise ValueError(f"{_PROJECT} does not list the class '{title}'")
    value = values[title]
    if kind == "bitmap":
        left, top = found["bitmap"]["origin"]
        return Shape(value, bitmap=decode_bitmap(found["bitmap"]["data"]), at=(int(top), int(left)))
    points = ring(found["points"]["exterior"])
    if kind == "polygon":
        return Shape(value, (points,), tuple(ring(hole) for hole in found["points"].get("interior", ())))
    if kind == "rectangle":
        return Shape(value, (rectangle(points),))
    if kind == "line":
        return Shape(value, thick_line(points, _LINE_WIDTH))
    if kind == "point":
        return Shape(value, (ellipse(points[0], (_POINT_RADIUS, _POINT_RADIUS)),))
    raise ValueError(f"geometryType {kind} is not known")


def decode_bitmap(data: str) -> np.ndarray:
    """A region (h, w) bool from a PNG, packed by zlib and written in base64.

    Raises:
        ValueError: it is damaged.
    """
    try:
        packed = np.frombuffer(zlib.decompress(base64.b64decode(data)), np.uint8)
        pixels = cv2.imdecode(packed, cv2.IMREAD_UNCHANGED)
    except (zlib.error, cv2.error) as error:
        raise ValueError(f"the bitmap of an object cannot be unpacked ({error})") from error
    if pixels is None:
        raise ValueError("the bitmap of an object is no image")
    channels = pixels.reshape(*pixels.shape[:2], -1)
    return np.asarray(channels[..., 3 if channels.shape[2] == 4 else 0] > 0)


def _annotations(tree: Tree) -> list[str]:
    return [name for name in tree.with_suffix(".json") if parent(name).rpartition("/")[2] == "ann"]


def _projects(tree: Tree) -> list[str]:
    """The file of each project that has annotations."""
    folders = {folder.as_posix() for name in _annotations(tree) for folder in PurePosixPath("/", name).parents}
    return [name for name in tree.named(_PROJECT) if f"/{parent(name)}" in folders]


def _class_names(path: Path) -> list[str]:
    content = read_json(path)
    try:
        return [str(found["title"]) for found in content["classes"]]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path} lists no classes ({error!r}); export the project anew") from error
