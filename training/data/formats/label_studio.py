"""Label Studio: one JSON with the regions of all tasks, brush masks among them."""

from __future__ import annotations

import codecs
import functools
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import drawn_classes
from training.data.reading.content import as_text, laid_out_like, read_head, read_json, read_once
from training.data.reading.paths import split_of
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, count_unlabelled
from training.data.reading.shapes import Drawing, Shape, ShapeReader, ellipse, rectangle, ring, turned
from training.data.reading.tree import Tree

_KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
# Regions that cover pixels, and would be background if they were left out.
_UNREAD_KINDS = ("bitmasklabels", "labels")
_HALF_OPAQUE = 128
_SHAPES = ("polygon", "rectangle", "ellipse", "brush", "bitmask")
_KEYS_OF_SHAPES = {"points", "rle", "radiusX", "height"}
_KEYS_OF_ANSWERS = {"choices", "text", "taxonomy", "rating", "number", "datetime"}
# Uploaded files lie in a folder for each project of the server, whose name is a number.
_UPLOADS = "/data/upload/"
_UPLOADED = re.compile("[0-9a-f]{8}-(.+)")
_HEAD = 16


class LabelStudio(Format):
    """Label Studio's exports "JSON" and "JSON-MIN", with the images anywhere in the folder.

    Brush masks, polygons, rectangles and ellipses are read; later regions lie over earlier ones. What no region covers
    is background. Of several annotations of a task the first that was not cancelled counts.
    """

    name = "label_studio"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _exports(tree)
        return Match(Sure.CERTAINLY, f"{next(iter(found))} holds tasks with regions") if found else None

    def nearly(self, tree: Tree) -> str | None:
        """See `Format.nearly`."""
        return next(filter(None, (_unread(name, tasks) for name, tasks in _all_tasks(tree))), None)

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        exports = _exports(tree)
        unread = next(filter(None, (_unread(name, tasks) for name, tasks in exports.items())), None)
        if unread is not None:
            raise DatasetError(unread)
        labels = {region.label for tasks in exports.values() for task in tasks for region in task.regions}
        classes = drawn_classes(tree, labels, next(iter(exports), ""))
        samples: dict[Split | None, list[Sample]] = {}
        for name, tasks in exports.items():
            absent = []
            found = find_uploaded_images(tree, name, (written for task in tasks for written in task.data))
            for task in tasks:
                image = next(filter(None, map(found.get, task.data)), None)
                if image is None:
                    absent.append(_image_of(task.data))
                    continue
                sample = Sample(tree.path(image), tree.path(name), task, written=_image_of(task.data))
                samples.setdefault(split_of(image) or split_of(name), []).append(sample)
            if absent:
                raise DatasetError(
                    f"{len(absent)} images of {name} are not in {tree.root}, or in several of its folders, such as "
                    f"{absent[0]}; put the images beside the JSON, which does not hold them, or into a folder images "
                    "there"
                )
        reader = ShapeReader(functools.partial(_parse, classes.value_of))
        return LabelledFolder(classes, samples, reader, unlabelled=count_unlabelled(tree, samples))


class _Region(NamedTuple):
    """A region: its label, kind, value as Label Studio writes it, and (height, width) of the image."""

    label: str
    kind: str
    value: dict[str, Any]
    size: tuple[int, int]


class _Task(NamedTuple):
    """What training needs of a task.

    Attributes:
        data: its texts, of which one is the path or address of its image.
        regions: of its annotation.
        is_empty: whether its annotation says that there is nothing, as "JSON" can.
    """

    data: tuple[str, ...]
    regions: tuple[_Region, ...]
    is_empty: bool


def _parse(values: Mapping[str, int], sample: Sample) -> Drawing:
    """The drawing of a task."""
    task: _Task = sample.entry
    shapes = [_shape(region, values[region.label]) for region in task.regions]
    return Drawing(shapes, task.regions[0].size if task.regions else None)


def _shape(region: _Region, value: int) -> Shape:
    """The shape of a region; its numbers are percent of the image's size."""
    height, width = region.size
    written = region.value
    if region.kind == "brushlabels":
        pixels = decode_brush(written["rle"]).reshape(height, width, 4)
        return Shape(value, bitmap=pixels[..., 3] >= _HALF_OPAQUE)
    scale = np.array([width, height], np.float32) / 100
    if region.kind == "polygonlabels":
        return Shape(value, (ring(written["points"]) * scale - 0.5,))
    if region.kind == "rectanglelabels":
        corner = np.array([written["x"], written["y"]])
        corners = rectangle(np.stack([corner, corner + np.array([written["width"], written["height"]])])) * scale
        return Shape(value, (turned(corners, written.get("rotation", 0), around=corners[0]) - 0.5,))
    centre = np.array([written["x"], written["y"]]) * scale - 0.5
    radii = np.array([written["radiusX"], written["radiusY"]]) * scale
    return Shape(value, (ellipse(centre.tolist(), radii.tolist(), written.get("rotation", 0)),))


def decode_brush(data: bytes) -> np.ndarray:
    """The words that Label Studio packs by run lengths, uint8: red, green, blue and alpha of each pixel.

    The packing is that of the package rle-pack: 32 bits for the number of words, 5 for their length, four times 4 for
    the lengths of counters; then blocks of a bit that says whether one word is repeated, 2 for the counter's length,
    the counter, and the word or the words.
    """
    bits = _Bits(data)
    count, length = bits.read(32), bits.read(5) + 1
    if length != 8:
        raise ValueError(f"words of a brush mask have {length} bits, not 8")
    lengths = [bits.read(4) + 1 for _ in range(4)]
    words = np.zeros(count, np.uint8)
    position = 0
    while position < count:
        repeated = bits.read(1)
        end = position + 1 + bits.read(lengths[bits.read(2)])
        if repeated:
            words[position:end] = bits.read(8)
        else:
            run = bits.read(8 * (end - position)).to_bytes(end - position, "big")
            words[position:end] = np.frombuffer(run, np.uint8)
        position = end
    return words


class _Bits:
    """Reads numbers of any count of bits, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def read(self, count: int) -> int:
        start, end = self._position, self._position + count
        if end > 8 * len(self._data):
            raise ValueError("the run lengths of a brush mask end too early")
        self._position = end
        covering = int.from_bytes(self._data[start // 8 : -(-end // 8)], "big")
        return covering >> (-end % 8) & ((1 << count) - 1)


def _exports(tree: Tree) -> dict[str, tuple[_Task, ...]]:
    """The tasks of each JSON of Label Studio; none where no task has a region that can be read."""
    found = {
        name: tasks
        for name, tasks in _all_tasks(tree)
        if any(task.regions for task in tasks) or (tasks and all(task.is_empty for task in tasks))
    }
    regions = (region for tasks in found.values() for task in tasks for region in task.regions)
    return found if any(region.kind in _KINDS for region in regions) else {}


def _all_tasks(tree: Tree) -> Iterator[tuple[str, tuple[_Task, ...]]]:
    """The tasks of each JSON that holds a list."""
    for name in tree.with_suffix(".json"):
        path = tree.path(name)
        if read_head(path, _HEAD).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield name, _read(path)


def _unread(name: str, tasks: Iterable[_Task]) -> str | None:
    """What to do about regions that cannot be read; None where there are none."""
    found = [(region, task) for task in tasks for region in task.regions if region.kind in _UNREAD_KINDS]
    if not found:
        return None
    region, task = found[0]
    return (
        f"{name} holds {len(found)} regions of the kind {region.kind}, such as '{region.label}' of "
        f"{_image_of(task.data)}, which cannot be read: label with BrushLabels, PolygonLabels, RectangleLabels or "
        "EllipseLabels, or remove these regions"
    )


@read_once
def _read(path: Path) -> tuple[_Task, ...]:
    """Tasks of a file; none where it is of another form."""
    content = read_json(path)
    tasks = [task for task in content if isinstance(task, dict)] if isinstance(content, list) else []
    with laid_out_like("Label Studio's tasks", path):
        return tuple(found for task in tasks if (found := _task(task)) is not None)


def _task(task: dict[str, Any]) -> _Task | None:
    """A task of "JSON" or of "JSON-MIN"; None where it has no annotation."""
    if isinstance(task.get("annotations"), list):
        done = [found for found in task["annotations"] if isinstance(found, dict) and not found.get("was_cancelled")]
        data = task.get("data", {})
        texts = tuple(value for value in data.values() if isinstance(value, str)) if isinstance(data, dict) else ()
        if not done or not texts:
            return None
        result = done[0].get("result")
        return _Task(texts, tuple(_regions(result, _image_of(texts))), is_empty=not result)
    image = task.get("image")
    if not isinstance(image, str):
        return None
    regions = [region for value in task.values() if isinstance(value, list) for region in _regions(value, image)]
    return _Task((image,), tuple(regions), is_empty=False)


def _regions(written: Any, image: str) -> Iterator[_Region]:
    """The regions of an annotation of an image.

    Raises:
        ValueError: one has no label.
    """
    results = [result for result in written if isinstance(result, dict)] if isinstance(written, list) else []
    results = [result for result in results if "original_width" in result]
    labelled = {result.get("id") for result in results if _kind(result)} - {None}
    for result in results:
        value, kind = result.get("value", result), _kind(result)
        if kind is None:
            if _is_shape(result) and result.get("id") not in labelled:
                raise ValueError(f"a region of {image} has no label")
            continue
        size = int(result["original_height"]), int(result["original_width"])
        if "rle" in value:  # a list of numbers takes thirty times as much memory
            value = {**value, "rle": bytes(value["rle"])}
        yield _Region(as_text(value[kind][0]), kind, value, size)


def _kind(result: dict[str, Any]) -> str | None:
    """Under which key a result has its label; None where it has none."""
    value = result.get("value", result)
    return next((kind for kind in (*_KINDS, *_UNREAD_KINDS) if value.get(kind)), None)


def _is_shape(region: dict[str, Any]) -> bool:
    """Whether a result is a shape, and no point of interest or answer to a question; "JSON-MIN" has no types."""
    if "type" in region:
        return str(region["type"]).removesuffix("labels") in _SHAPES
    return not _KEYS_OF_SHAPES.isdisjoint(region) and _KEYS_OF_ANSWERS.isdisjoint(region)


def find_uploaded_images(tree: Tree, name: str, written: Iterable[str]) -> dict[str, str]:
    """The image file of each text of a file's tasks that is its path or address, and whose image is there."""
    paths = {text: _paths_of(text) for text in written}
    all_paths = list(dict.fromkeys(path for own in paths.values() for path in own))
    images = dict(zip(all_paths, tree.find_images(all_paths, name), strict=True))
    found = {text: next(filter(None, map(images.get, own)), None) for text, own in paths.items()}
    return {text: image for text, image in found.items() if image is not None}


def _paths_of(text: str) -> list[str]:
    """Paths of an image. Label Studio puts eight characters and a dash before the names of uploaded files."""
    path = urllib.parse.unquote(text.partition("?d=")[2]) or text
    if _UPLOADS in path:
        path = path.rpartition("/")[2]
    uploaded = _UPLOADED.fullmatch(path.rpartition("/")[2])
    return [path, uploaded[1]] if uploaded else [path]


def _image_of(texts: Sequence[str]) -> str:
    """Which of a task's texts names its image."""
    return next((text for text in texts if text.lower().endswith(IMAGE_SUFFIXES)), texts[0])
