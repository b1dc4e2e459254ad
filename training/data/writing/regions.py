"""From labels to regions: connected parts of one class, as masks and as polygons without holes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

# COCO's and labelme's readers refuse polygons of fewer corners.
_LEAST_CORNERS = 3


class Region(NamedTuple):
    """A connected region of one class.

    Attributes:
        label: number of the class.
        mask: (h, w) bool.
        at: row and column of the mask's first pixel in the image.
        polygons: (n, 2) int32 each: x and y of border pixels, the first pixel of the image being (0, 0). Together they
            cover the region; no two overlap.
    """

    label: int
    mask: np.ndarray
    at: tuple[int, int]
    polygons: list[np.ndarray]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())


def find_regions(
    labels: np.ndarray, count: int, least_area: int = 0, tolerance: float = 0.0, left_open: int | None = None
) -> list[Region]:
    """All regions of an image, the largest first.

    A hole is not written as such, which most formats cannot: a region with holes is cut into polygons without.

    Args:
        labels: (H, W); values from ``count`` on are of no class.
        count: number of classes.
        least_area: smaller regions are left open, pixels; where one region encloses them, they join it.
        tolerance: how far polygons may lie from the border, pixels. With 0 they cover exactly the region.
        left_open: the label of what is left open, whose regions may be of any size; None: it has none.
    """
    if least_area:
        labels = _without_specks(labels, count, least_area, count if left_open is None else left_open)
    found: list[Region] = []
    for label in np.unique(labels[labels < count]).tolist():
        for mask, at in _components(labels == label):
            polygons = [_polygon(part, place, tolerance) for part, place in _without_holes(mask, at)]
            found.append(Region(label, mask, at, polygons))
    return sorted(found, key=lambda region: -region.area)


def _components(region: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Connected parts (8 neighbours) of a region, each cut out, and where it lies."""
    count, numbers, boxes, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        left, top, width, height = (int(value) for value in boxes[number][:4])
        yield numbers[top : top + height, left : left + width] == number, (top, left)


def _without_specks(labels: np.ndarray, count: int, least_area: int, left_open: int) -> np.ndarray:
    """Labels in which small regions are left open, or belong to the region that encloses them."""
    cleaned: np.ndarray = labels.copy()
    classes = [label for label in np.unique(labels[labels < count]).tolist() if label != left_open]
    for label in classes:
        _, numbers, boxes, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=8)
        small = boxes[:, cv2.CC_STAT_AREA] < least_area
        small[0] = False
        cleaned[small[numbers]] = left_open
    for label in classes:
        for mask, (top, left) in _components(cleaned == label):
            own = cleaned[top : top + mask.shape[0], left : left + mask.shape[1]]
            of_a_class = (own < count) & (own != left_open)
            own[_small_holes(mask, of_a_class, least_area)] = label
    return cleaned


def _small_holes(mask: np.ndarray, of_a_class: np.ndarray, least_area: int) -> np.ndarray:
    """Small holes of a region in which nothing has a class."""
    around = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, numbers, boxes, _ = cv2.connectedComponentsWithStats(around, connectivity=4)
    small = boxes[:, cv2.CC_STAT_AREA] < least_area
    small[[0, numbers[0, 0]]] = False
    numbers = numbers[1:-1, 1:-1]
    small[np.unique(numbers[of_a_class & ~mask])] = False
    return np.asarray(small[numbers])


def _without_holes(mask: np.ndarray, at: tuple[int, int]) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Parts of a connected region that have no holes; each cut goes down a column through the largest hole."""
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = [contour for contour, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0]
    if not holes:
        yield mask, at
        return
    left, _, width, _ = max((cv2.boundingRect(hole) for hole in holes), key=lambda box: box[2] * box[3])
    # The contour of a hole runs through the pixels around it.
    column = left + width // 2
    for start, part in ((0, mask[:, :column]), (column, mask[:, column:])):
        for piece, (row, offset) in _components(part):
            yield from _without_holes(piece, (at[0] + row, at[1] + start + offset))


def _polygon(mask: np.ndarray, at: tuple[int, int], tolerance: float) -> np.ndarray:
    """The outer border of a connected region."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contour = contours[0]
    if tolerance:
        contour = cv2.approxPolyDP(contour, tolerance, closed=True)
    corners = contour[:, 0].astype(np.int32) + np.array(at[::-1], np.int32)
    missing = _LEAST_CORNERS - len(corners)
    return np.concatenate([corners, np.repeat(corners[-1:], missing, axis=0)]) if missing > 0 else corners
