"""Draws labels from shapes: polygons, run lengths, small masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np

from dinov3_seg_ros.frames.image_files import MaskPixels, image_size
from dinov3_seg_ros.support.errors import ItemError
from training.data.reading.content import DAMAGED
from training.data.reading.protocol import Sample

# No image is so large; farther corners come from damaged files, and would overflow.
_FARTHEST = 1e6

#: (n, 2) float32: x and y of corners, pixels. The centre of the first pixel is (0, 0).
Polygon: TypeAlias = np.ndarray


@dataclass(frozen=True)
class Shape:
    """A region of one class.

    Attributes:
        value: of its pixels.
        rings: outer borders; what several of them cover is covered.
        holes: inner borders, which are taken from the rings.
        bitmap: or the region itself, (h, w) bool.
        at: where the bitmap's first pixel lies, (row, column).
    """

    value: int
    rings: tuple[Polygon, ...] = ()
    holes: tuple[Polygon, ...] = ()
    bitmap: np.ndarray | None = None
    at: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for corners in (*self.rings, *self.holes):
            if not len(corners):
                raise ValueError("a shape has no corners")
            if not (np.abs(corners) < _FARTHEST).all():  # nor is NaN
                raise ValueError(f"a corner lies at {corners[~(np.abs(corners) < _FARTHEST).all(1)][0].tolist()}")

    def area(self) -> float:
        """Number of pixels, about; of rings the sum, without holes."""
        if self.bitmap is not None:
            return float(self.bitmap.sum())
        return float(sum(cv2.contourArea(np.asarray(ring, np.float32)) for ring in self.rings if len(ring) >= 3))


class Drawing(NamedTuple):
    """What is drawn on one image.

    Attributes:
        shapes: in the order of drawing; later ones lie over earlier ones.
        size: height and width for which the shapes are; None for those of the image.
    """

    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None


def draw(drawing: Drawing, size: tuple[int, int]) -> MaskPixels:
    """Values of the shapes where they are, and 0 elsewhere.

    Args:
        drawing: the shapes.
        size: height and width of the result.
    """
    values = np.zeros(size, np.int32)
    for shape in drawing.shapes:
        if shape.bitmap is not None:
            _paste(values, shape)
        elif shape.holes:
            region = np.zeros(size, np.uint8)
            _fill(region, shape.rings, 1)
            _fill(region, shape.holes, 0)
            values[region == 1] = shape.value
        else:
            _fill(values, shape.rings, shape.value)
    return MaskPixels(values.astype(np.uint32))


def largest_first(shapes: Iterable[Shape]) -> list[Shape]:
    """Shapes in an order of drawing in which small ones are seen: for formats that do not say which lies on top."""
    return sorted(shapes, key=lambda shape: -shape.area())


class ShapeReader:
    """Reads the labels of samples whose labels are shapes.

    Args:
        parse: gives the drawing of a sample; it can be pickled.
    """

    def __init__(self, parse: Callable[[Sample], Drawing]) -> None:
        self._parse = parse

    def __call__(self, sample: Sample) -> MaskPixels:
        """See `training.data.reading.protocol.ReadLabels`."""
        try:
            drawing = self._parse(sample)
            if drawing.size is not None and not 0 < min(drawing.size) <= max(drawing.size) < _FARTHEST:
                raise ValueError(f"the image is said to have {drawing.size[1]}x{drawing.size[0]} pixels")
        except DAMAGED as error:
            raise ItemError(
                f"{sample.labels} does not describe the labels of {sample.image.name} as its format says ({error!r}); "
                "export it anew",
                "unreadable file",
            ) from error
        return draw(drawing, drawing.size or image_size(sample.source()))


def ring(points: Any, offset: float = 0.0) -> Polygon:
    """Corners of a polygon from pairs of x and y, or from a flat list of them.

    Args:
        points: the numbers.
        offset: is added to all, such as -0.5 where (0, 0) is the corner of the first pixel, not its centre.
    """
    corners: Polygon = np.asarray(points, np.float32).reshape(-1, 2)
    moved: Polygon = corners + np.float32(offset)
    return moved


def from_corner(points: Polygon) -> Polygon:
    """Corners whose coordinates count from the corner of the first pixel, as the pixels in which they lie."""
    corners: Polygon = np.floor(points).astype(np.float32)
    return corners


def rectangle(points: Polygon) -> Polygon:
    """The corners of an upright rectangle from two opposite ones."""
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def turned(corners: Polygon, degrees: float, around: np.ndarray | None = None) -> Polygon:
    """Corners turned clockwise around a point, by default their middle."""
    if degrees == 0:
        return corners
    turn, middle = np.deg2rad(degrees), corners.mean(0) if around is None else around
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], np.float32)
    return np.asarray((corners - middle) @ rotation + middle, np.float32)


def ellipse(centre: Sequence[float], radii: Sequence[float], degrees: float = 0.0) -> Polygon:
    """Corners on an ellipse, one for each pixel of its border or more."""
    count = max(16, int(8 * max(radii)))
    angles = np.linspace(0, 2 * np.pi, min(count, 720), endpoint=False)
    turn = np.deg2rad(degrees)
    x, y = radii[0] * np.cos(angles), radii[1] * np.sin(angles)
    points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1)
    corners: Polygon = (points + np.asarray(centre)).astype(np.float32)
    return corners


def thick_line(points: Polygon, width: float) -> tuple[Polygon, ...]:
    """Outlines of the parts of a line of some width, pixels, and of a disc at each of its corners."""
    parts = [ellipse(point, (width / 2, width / 2)) for point in points]
    for start, end in itertools.pairwise(points):
        along = end - start
        length = float(np.hypot(*along))
        if length > 0:
            across = np.array([-along[1], along[0]], np.float32) * np.float32(width / 2 / length)
            parts.append(np.stack([start + across, end + across, end - across, start - across]))
    return tuple(parts)


def _fill(values: np.ndarray, rings: Iterable[Polygon], value: int) -> None:
    """Fill each polygon, with the pixels on its border."""
    for corners in rings:
        cv2.fillPoly(values, [np.rint(corners).astype(np.int32)], value)


def _paste(values: np.ndarray, shape: Shape) -> None:
    """Set the pixels of a bitmap; what lies outside is cut off."""
    if shape.bitmap is None:
        return
    (top, left), (height, width) = shape.at, shape.bitmap.shape
    rows, columns = slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width))
    target = values[rows, columns]
    inside = shape.bitmap[max(0, -top) :, max(0, -left) :][: target.shape[0], : target.shape[1]]
    target[inside] = shape.value
