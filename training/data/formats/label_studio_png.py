"""Label Studio's "Brush labels to PNG": a mask for each region, and a table that names the image of each task."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dinov3_seg_ros.frames.image_files import read_mask
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import drawn_classes
from training.data.formats.label_studio import find_uploaded_images
from training.data.reading.content import read_csv_table, read_json
from training.data.reading.paths import split_of
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.shapes import Drawing, Shape, ShapeReader, largest_first
from training.data.reading.tree import Tree

# task-7-annotation-12-by-who-tag-label-0.png; a region of several labels has them all, with dashes between them.
_LAYER = re.compile(
    r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[^-]*-(?P<tag>[^-]+)-(?P<label>.+)-(?P<number>\d+)\.png"
)
_HALF_OPAQUE = 128
_TABLES = (".json", ".csv")


class LabelStudioPng(Format):
    """``task-7-annotation-12-by-1-tag-road-0.png`` and its like, beside the images.

    The names of masks have the number of a task alone. Which image it is stands in the export "CSV", "JSON" or
    "JSON-MIN" of the same project, which must lie in the folder. Small regions lie over large ones; what no region
    covers is background. Of several annotations of a task the first counts.
    """

    name = "label_studio_png"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _layers(tree)
        # The JSON has the regions too, and all kinds of them.
        return Match(Sure.PROBABLY, f"{found[0].file} is named as by Label Studio") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        layers: dict[tuple[int, str], list[_Layer]] = {}
        masks, absent = _layers(tree), []
        tables = {name: _images_of_tasks(tree, name) for name in tree.with_suffix(*_TABLES)}
        for layer in masks:
            image = _image_of(layer, tables)
            if image is None:
                absent.append(layer.task)
                continue
            own = layers.setdefault((layer.task, image), [])
            if not own or own[0].annotation == layer.annotation:
                own.append(layer)
        if absent:
            tasks = len({layer.task for layer in masks})
            raise DatasetError(
                f"nothing in {tree.root} says which image task {absent[0]} is ({len({*absent})} of {tasks} tasks): "
                "export the same project as CSV or JSON too, and put that file and the images into the folder"
            )
        labels = {layer.label for own in layers.values() for layer in own}
        classes = drawn_classes(tree, labels, "the names of the masks")
        values = classes.value_of
        samples: dict[Split | None, list[Sample]] = {}
        for (_, image), own in layers.items():
            files = [tree.path(layer.file) for layer in own]
            entry = [(values[layer.label], file) for layer, file in zip(own, files, strict=True)]
            samples.setdefault(split_of(image), []).append(Sample(tree.path(image), files[0], entry))
        files_of_masks = [tree.path(layer.file) for layer in masks]
        unlabelled = len(tree.images) - len(masks) - len({image for _, image in layers})
        return LabelledFolder(classes, samples, ShapeReader(_parse), unlabelled=unlabelled, evidence=files_of_masks)


class _Layer(NamedTuple):
    """The mask of one region."""

    file: str
    task: int
    annotation: int
    label: str


def _layers(tree: Tree) -> list[_Layer]:
    """All masks, those of the first annotations first."""
    found = ((name, _LAYER.fullmatch(name.rpartition("/")[2])) for name in tree.with_suffix(".png"))
    layers = [
        _Layer(name, int(parts["task"]), int(parts["annotation"]), parts["label"]) for name, parts in found if parts
    ]
    return sorted(layers, key=lambda layer: (layer.task, layer.annotation, layer.file))


def _parse(sample: Sample) -> Drawing:
    shapes = [Shape(value, bitmap=read_mask(file).values >= _HALF_OPAQUE) for value, file in sample.entry]
    bitmap = shapes[0].bitmap
    return Drawing(largest_first(shapes), None if bitmap is None else (bitmap.shape[0], bitmap.shape[1]))


def _image_of(layer: _Layer, tables: Mapping[str, Mapping[int, str]]) -> str | None:
    """The image file of a mask's task, from the nearest tables alone, since each server counts its tasks anew.

    Raises:
        DatasetError: these tables differ.
    """
    shared = {
        name: len(posixpath.commonpath([f"/{name}", f"/{layer.file}"])) for name, images in tables.items() if images
    }
    nearest = [name for name, length in shared.items() if length == max(shared.values())]
    found = {tables[name][layer.task]: name for name in nearest if layer.task in tables[name]}
    if len(found) > 1:
        raise DatasetError(
            f"{' and '.join(sorted(found.values()))} differ in the image of task {layer.task} ({layer.file}); keep "
            "one, or put each export into a folder with its own masks"
        )
    return next(iter(found), None)


def _images_of_tasks(tree: Tree, name: str) -> dict[int, str]:
    """The image file of each task of a table."""
    texts = [(row["id"], text) for row in _rows(tree, name) for text in _texts(row)]
    images = find_uploaded_images(tree, name, (text for _, text in texts))
    found: dict[int, str] = {}
    for task, text in texts:
        if text in images:
            found.setdefault(int(task), images[text])
    return found


def _texts(row: Mapping[str, Any]) -> list[str]:
    """The texts of a task, of which one is the path or address of its image; none where the row has no number."""
    data = row.get("data")
    values = (data if isinstance(data, dict) else row).values() if str(row.get("id", "")).isdecimal() else ()
    return [value for value in values if isinstance(value, str)]


def _rows(tree: Tree, name: str) -> list[Mapping[str, Any]]:
    if name.endswith(".csv"):
        return list(read_csv_table(tree.path(name)))
    content = read_json(tree.path(name))
    return [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []
