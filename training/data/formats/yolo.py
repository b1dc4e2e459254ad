"""YOLO segmentation: a text file of polygons for each image."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from dinov3_seg_ros.frames.image_files import image_size
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import BACKGROUND, READERS, agreed, find_classes, read_yaml_classes
from training.data.classes.map import SourceClass, SourceClasses
from training.data.reading.content import read_once, read_text, read_yaml
from training.data.reading.paths import Paths, parent, plain, stem
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.shapes import Drawing, Shape, ShapeReader, largest_first, rectangle
from training.data.reading.tree import Tree
from training.data.reading.yaml_splits import YamlSplits, read_splits

_IN_IMAGES = re.compile("(.*)images/(.*)", re.IGNORECASE | re.DOTALL)
_CONFIGURATIONS = (".yaml", ".yml")
# As tools call the file. Another YAML file that cannot be read may be anything, such as a camera's calibration.
_OWN_NAMES = ("data", "dataset")
_LOOKED_AT = 20
# Words of a line: its class, centre, width and height.
_LENGTH_OF_BOX = 5
# By how much shares may differ from 0.5; tools round, and some let shapes leave the image.
_MOST_OUTSIDE = 1.0


class Yolo(Format):
    """``images/a.jpg`` with ``labels/a.txt``, whose lines are ``class x1 y1 x2 y2 ...`` in shares of the image's size.

    Names stand in the YAML file beside them, and for each split folders or text files that list its images. Where a
    split has a list, only images that it names are in it, as in Ultralytics. The class 0 is the background, which
    Ultralytics' files do not name. Small polygons lie over large ones, as in Ultralytics' own conversion. Boxes among
    polygons are filled. An image without a text file is all background, if the YAML file names it or its folder, or
    images beside it have texts: others are masks, results and the like.
    """

    name = "yolo"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        labels = _label_files(tree)
        not_empty = (name for name in labels.values() if read_text(tree.path(name)).strip())
        shown = itertools.islice(not_empty, _LOOKED_AT)
        polygons = next((name for name in shown if _has_polygons(tree, name)), None)
        if polygons is None:
            return None
        return Match(Sure.CERTAINLY, f"{polygons} holds polygons in shares of the image's size")

    def nearly(self, tree: Tree) -> str | None:
        """See `Format.nearly`."""
        boxes = next((name for name in _label_files(tree).values() if _has_boxes(tree, name)), None)
        if boxes is None:
            return None
        return (
            f"{boxes} holds boxes, as for detection, and no polygons: export the labels for segmentation. With "
            "data.format: yolo each box is read as a filled rectangle"
        )

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        labels = _label_files(tree)
        if not labels:
            raise DatasetError(f"{tree.root} holds no image with a text file of labels (images/a.jpg, labels/a.txt)")
        names, splits = _configuration(tree)
        folders, unlabelled = set(map(_folder, labels.values())), 0
        samples: dict[Split | None, list[Sample]] = {}
        for image in tree.images:
            text = labels.get(image)
            if text is None and not splits.name(image) and folders.isdisjoint(map(_folder, _places_of_text(image))):
                unlabelled += 1
                continue
            labelled = Sample(tree.path(image), tree.path(text or image), entry=text is not None)
            samples.setdefault(splits.of(image), []).append(labelled)
        known = {*labels.values(), *tree.named(*READERS)}
        texts = [name for name in tree.with_suffix(".txt") if "labels" in plain(name).split("/")]
        spare = [tree.path(name) for name in texts if name not in known]
        count = max(value for entry in names.classes for value in entry.values)
        read = ShapeReader(functools.partial(_parse, count))
        boxes = sum(_count_boxes(sample.labels) for own in samples.values() for sample in own if sample.entry)
        return LabelledFolder(names, samples, read, spare, unlabelled, splits.absent, boxes=boxes)


def _label_files(tree: Tree) -> dict[str, str]:
    """The text file of each image: in a folder ``labels`` in place of ``images``, or beside it."""
    known = set(tree.with_suffix(".txt"))
    exact = {image: next((text for text in _places_of_text(image) if text in known), None) for image in tree.images}
    others = Paths(known.difference(filter(None, exact.values())))
    found = {
        image: text or next(filter(None, map(others.find, _places_of_text(image))), None)
        for image, text in exact.items()
    }
    return {image: text for image, text in found.items() if text is not None}


def _places_of_text(image: str) -> list[str]:
    """Where the text file of an image may be, the likeliest first."""
    beside, inside = f"{stem(image)}.txt", _IN_IMAGES.match(image)
    return [beside] if inside is None else [f"{inside[1]}labels/{stem(inside[2])}.txt", beside]


def _folder(name: str) -> str:
    """Folder of a file as file systems compare names."""
    return plain(parent(name))


def _configuration(tree: Tree) -> tuple[SourceClasses, YamlSplits]:
    """Names of the classes, and the splits, from the YAML file or from a list of names.

    Raises:
        DatasetError: neither is there, or two files of one name differ; or see `read_splits`.
    """
    damaged: list[DatasetError] = []
    found: dict[str, Mapping[str, object]] = {}
    for name in sorted(tree.with_suffix(*_CONFIGURATIONS), key=lambda name: name.count("/")):
        if any(PurePosixPath(name).name != PurePosixPath(other).name for other in found):
            continue
        try:
            content = read_yaml(tree.path(name))
        except DatasetError as error:
            if stem(name).rpartition("/")[2] in _OWN_NAMES:
                raise
            damaged.append(error)
            continue
        if isinstance(content, dict) and "names" in content:
            found[name] = content
    if found:
        listed = agreed([read_yaml_classes(tree.path(name)) for name in found])
        return _with_background(listed), read_splits(tree, found)
    listed = find_classes(tree)
    if listed.classes:
        return _with_background(listed), YamlSplits()
    if damaged:
        raise damaged[0]
    raise DatasetError(f"{tree.root} has no data.yaml with the names of the classes; export it with the labels")


def _with_background(listed: SourceClasses) -> SourceClasses:
    """The background before the classes, whose values are one more than in the text files."""
    values = {BACKGROUND: [0]}
    for entry in listed.classes:
        values.setdefault(entry.name, []).extend(value + 1 for value in entry.values)
    classes = tuple(SourceClass(name, tuple(own)) for name, own in values.items())
    return SourceClasses(classes, listed.origin, drawn=True)


def _parse(count: int, sample: Sample) -> Drawing:
    """The drawing of a text file, whose classes are below a count."""
    if not sample.entry:
        return Drawing([])
    size = image_size(sample.source())
    lines = [line for line in read_text(sample.labels).splitlines() if line.strip()]
    return Drawing(largest_first(_shape(line, count, size) for line in lines), size)


def _shape(line: str, count: int, size: tuple[int, int]) -> Shape:
    number, *numbers = line.split()
    if not 0 <= int(number) < count:
        raise ValueError(f"a line has the class {number}, but {count} classes have names")
    points = np.array(numbers, np.float64).reshape(-1, 2)
    if len(points) == 2:  # a box: centre, width and height
        points = rectangle(np.stack([points[0] - points[1] / 2, points[0] + points[1] / 2]))
    if np.abs(points - 0.5).max() > _MOST_OUTSIDE:
        raise ValueError(f"the line '{line[:40]}' has no shares of the image's size from 0 to 1")
    height, width = size
    # Shares count from the corner of the first pixel.
    return Shape(int(number) + 1, (np.floor(points * (width, height) + 1e-3),))


def _has_boxes(tree: Tree, name: str) -> bool:
    """Whether every line of a file is a class, a centre, width and height."""
    lines = _lines(tree.path(name))
    return bool(lines) and all(len(line) == _LENGTH_OF_BOX and line[0].isdecimal() for line in lines)


def _has_polygons(tree: Tree, name: str) -> bool:
    """Whether every line of a file is a class and at least three points."""
    lines = _lines(tree.path(name))
    try:
        shares = [[float(number) for number in line[1:]] for line in lines if line[0].isdecimal()]
    except ValueError:
        return False
    return bool(lines) and len(shares) == len(lines) and all(len(own) >= 6 and len(own) % 2 == 0 for own in shares)


@read_once
def _count_boxes(path: Path) -> int:
    """Number of boxes in a file; 0 where it cannot be read, as reading its labels will tell."""
    with contextlib.suppress(DatasetError):
        return sum(len(line) == _LENGTH_OF_BOX for line in _lines(path))
    return 0


def _lines(path: Path) -> list[list[str]]:
    """The words of each line that is not empty."""
    return [line.split() for line in read_text(path).splitlines() if line.strip()]
