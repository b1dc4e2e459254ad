"""CVAT's own format, "CVAT for images 1.1": one XML with the shapes of all images."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import classes_of_shapes
from training.data.reading.content import laid_out_like, read_head, read_once
from training.data.reading.paths import parent, split_named, split_of
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, count_unlabelled
from training.data.reading.shapes import (
    Drawing,
    Shape,
    ShapeReader,
    ellipse,
    from_corner,
    rectangle,
    ring,
    thick_line,
    turned,
)
from training.data.reading.tree import Tree
from training.data.run_lengths import region_of

_ROOT = b"<annotations>"
_HEAD = 4096
# Points, tags, skeletons and cuboids are no regions.
_REGIONS = ("polygon", "mask", "box", "ellipse", "polyline")
_LINE_WIDTH = 1


class CvatImages(Format):
    """``annotations.xml``, with the images anywhere in the folder.

    Polygons, masks, boxes, ellipses and lines are read, in the order of their ``z_order``; what none covers is
    background. Subsets named train, validation or test are the splits, or else folders of these names, those of images
    before those of the XML.
    """

    name = "cvat_images"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _files(tree)
        return Match(Sure.CERTAINLY, f"{found[0]} begins like CVAT's annotations") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        files = {name: _read(tree.path(name)) for name in _files(tree)}
        if not files:
            raise DatasetError(f"{tree.root} holds no XML of CVAT's (<annotations>)")
        labels = (label for file in files.values() for label in file.labels)
        classes = classes_of_shapes(labels, next(iter(files)))
        reader = ShapeReader(functools.partial(_parse, classes.value_of))
        samples: dict[Split | None, list[Sample]] = {}
        for name, file in files.items():
            top = f"{parent(name)}/images".strip("/")
            for subset in dict.fromkeys(image.subset for image in file.images):
                images = [image for image in file.images if image.subset == subset]
                near = [f"{top}/{subset}".strip("/"), top]
                found = tree.find_images((image.name for image in images), name, near)
                for image, own in zip(images, found, strict=True):
                    path = own or f"{near[0]}/{image.name}"
                    split = split_named(subset) or split_of(path) or split_of(name)
                    sample = Sample(tree.path(path), tree.path(name), image, written=image.name)
                    samples.setdefault(split, []).append(sample)
        ordered = {split: sorted(own, key=operator.itemgetter(0)) for split, own in samples.items()}
        return LabelledFolder(classes, ordered, reader, unlabelled=count_unlabelled(tree, samples))


class _Region(NamedTuple):
    """A shape: its label, its kind, and its attributes as the XML has them."""

    label: str
    kind: str
    attributes: Mapping[str, str]


class _Image(NamedTuple):
    """An image: its file as the XML has it, its subset, height and width, and its regions in the order of drawing."""

    name: str
    subset: str
    size: tuple[int, int]
    regions: tuple[_Region, ...]


class _File(NamedTuple):
    """What training needs of an XML."""

    labels: list[str]
    images: list[_Image]


def _parse(values: Mapping[str, int], sample: Sample) -> Drawing:
    """The drawing of an image."""
    image: _Image = sample.entry
    return Drawing([_shape(region, values) for region in image.regions], image.size)


def _shape(region: _Region, values: Mapping[str, int]) -> Shape:
    if region.label not in values:
        raise ValueError(f"the label '{region.label}' is not listed")
    value, written = values[region.label], region.attributes
    if region.kind == "mask":
        at = int(written["top"]), int(written["left"])
        lengths = [int(length) for length in written["rle"].split(",")]
        return Shape(value, bitmap=region_of(lengths, int(written["height"]), int(written["width"])), at=at)
    if region.kind == "ellipse":
        centre, radii = _numbers(written, "cx", "cy"), _numbers(written, "rx", "ry")
        return Shape(value, (ellipse(centre, radii, float(written.get("rotation", 0))),))
    if region.kind == "box":
        corners = rectangle(ring([*_numbers(written, "xtl", "ytl"), *_numbers(written, "xbr", "ybr")]))
        return Shape(value, (from_corner(turned(corners, float(written.get("rotation", 0)))),))
    points = ring([[float(number) for number in pair.split(",")] for pair in written["points"].split(";")])
    if region.kind == "polyline":
        return Shape(value, thick_line(points, _LINE_WIDTH))
    return Shape(value, (from_corner(points),))


def _numbers(written: Mapping[str, str], *keys: str) -> list[float]:
    return [float(written[key]) for key in keys]


def _files(tree: Tree) -> list[str]:
    return [name for name in tree.with_suffix(".xml") if _ROOT in read_head(tree.path(name), _HEAD)]


@read_once
def _read(path: Path) -> _File:
    """Read an XML.

    Raises:
        DatasetError: it cannot be read, or has tracks of a video in place of images.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DatasetError(f"{path} cannot be read as XML: {error}; export it anew") from error
    images = root.findall("image")
    if not images:
        kind = "tracks of a video" if root.find("track") is not None else "no images"
        raise DatasetError(f"{path} holds {kind}: export the task as 'CVAT for images 1.1', with the images")
    with laid_out_like("CVAT's annotations", path):
        labels = [name.text or "" for name in root.iterfind("meta//label/name")]
        return _File(labels, [_image(found) for found in images])


def _image(found: ElementTree.Element) -> _Image:
    shapes = sorted((shape for shape in found if shape.tag in _REGIONS), key=lambda shape: int(shape.get("z_order", 0)))
    regions = tuple(_Region(shape.attrib["label"], shape.tag, dict(shape.attrib)) for shape in shapes)
    size = int(found.attrib["height"]), int(found.attrib["width"])
    return _Image(found.attrib["name"], found.get("subset", ""), size, regions)
