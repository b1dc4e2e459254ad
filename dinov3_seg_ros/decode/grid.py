"""Where each output pixel falls in the map of logits."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.support.errors import ParameterError

Floats: TypeAlias = NDArray[np.float32]
Positions: TypeAlias = NDArray[np.int32]
Bytes: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
AxisArrays: TypeAlias = tuple[Positions, Positions, Floats, Floats, Positions]  # the fields of `Axis`, in their order

MOST_CLASSES = 65535
_WINDOW_SLACK = 1e-3  # logit cells by which rounding may push a window over the edge of the map


@dataclass(frozen=True, eq=False)
class Axis:
    """Bilinear sampling along one axis; arrays of one entry per output position.

    A *run* is a stretch of output positions that lie between the same two source positions: the side of a cell.
    """

    low: Positions  # (size,): the source position before
    high: Positions  # (size,): the source position after
    low_weight: Floats  # (size,) in 0..1
    high_weight: Floats  # (size,) in 0..1; the two sum to one
    runs: Positions  # (number of runs + 1,): where each run starts, and where the last one ends

    @property
    def run_count(self) -> int:
        """How many runs there are."""
        return len(self.runs) - 1

    @property
    def size(self) -> int:
        """How many output positions there are."""
        return len(self.low)

    @cached_property
    def arrays(self) -> AxisArrays:
        """The fields in their order, as compiled code takes them."""
        return self.low, self.high, self.low_weight, self.high_weight, self.runs


@dataclass(frozen=True, eq=False)
class Grid:
    """What one decode needs besides the logits.

    It is planned once for each shape, since planning takes longer than decoding a small map.
    """

    rows: Axis
    columns: Axis
    classes: int
    shape: tuple[int, int, int]  # (B, H, W) of labels and confidence
    label_type: np.dtype[Any]  # uint8 up to 255 classes, else uint16

    @cached_property
    def axes(self) -> tuple[AxisArrays, AxisArrays]:
        """``arrays`` of the rows and of the columns."""
        return self.rows.arrays, self.columns.arrays

    @cached_property
    def cells(self) -> int:
        """Cells of one image."""
        return self.rows.run_count * self.columns.run_count

    @cached_property
    def values(self) -> int:
        """Interpolated logits of all images."""
        return math.prod(self.shape) * self.classes

    @cached_property
    def values_per_cell(self) -> float:
        """Interpolated logits for each cell of an image."""
        return self.classes * self.rows.size * self.columns.size / self.cells

    @cached_property
    def reach(self) -> float:
        """How far below the best logit a class can be left out of the softmax.

        All classes left out together then weigh less than 1/512 of the best one: half a level in 255.
        """
        return math.log(512.0 * self.classes)


@lru_cache(maxsize=64)
def plan_grid(shape: tuple[int, ...], size: tuple[int, ...], window: tuple[float, float, float, float] | None) -> Grid:
    """Plan the grid that samples logits of ``shape`` (B, C, h, w) at ``size`` (H, W).

    Args:
        shape: of the logits.
        size: of the output, in pixels.
        window: the part of the map that the output covers, (top, left, height, width) in logit cells; None for all.

    Raises:
        ParameterError: the shape, the size or the window cannot be used.
    """
    if len(shape) != 4 or 0 in shape:
        raise ParameterError(f"logits have shape {shape}; pass a non-empty array of four axes (B, C, h, w)")
    batch, classes, map_height, map_width = shape
    if classes > MOST_CLASSES:
        raise ParameterError(f"logits have {classes} classes; a 16-bit mask holds {MOST_CLASSES} at most")
    height, width = _checked_size(size)
    top, left, window_height, window_width = _checked_window(window, map_height, map_width)
    return Grid(
        rows=_plan_axis(map_height, height, top, window_height),
        columns=_plan_axis(map_width, width, left, window_width),
        classes=classes,
        shape=(batch, height, width),
        label_type=np.dtype(np.uint8 if classes <= 255 else np.uint16),
    )


def _checked_size(size: tuple[int, ...]) -> tuple[int, int]:
    try:
        height, width = (operator.index(length) for length in size)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"size is {size}; pass two whole numbers (height, width)") from error
    if height < 1 or width < 1:
        raise ParameterError(f"size is {size}; height and width must be at least 1")
    return height, width


def _checked_window(
    window: tuple[float, float, float, float] | None, map_height: int, map_width: int
) -> tuple[float, float, float, float]:
    if window is None:
        return 0.0, 0.0, float(map_height), float(map_width)
    try:
        top, left, height, width = (float(value) for value in window)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"window is {window}; pass four numbers (top, left, height, width)") from error
    bottom, right = top + height, left + width
    if not all(math.isfinite(value) for value in (top, left, bottom, right)) or height <= 0 or width <= 0:
        raise ParameterError(f"window is {window}; pass finite numbers with a height and width above 0")
    if min(top, left) < -_WINDOW_SLACK or bottom > map_height + _WINDOW_SLACK or right > map_width + _WINDOW_SLACK:
        raise ParameterError(
            f"window {window} (top, left, height, width) reaches outside the map of {map_height} x {map_width} "
            "logits; give it in logit cells, inside the map"
        )
    return top, left, height, width


def _plan_axis(source: int, size: int, start: float, length: float) -> Axis:
    whole_map = start == 0 and length == source
    scale = float(np.float32(source / size)) if whole_map else length / size
    positions = scale * (np.arange(size) + 0.5) + (start - 0.5)
    if whole_map:
        positions = positions.astype(np.float32)  # one rounding after a fused multiply-add: torch's positions, exactly
    np.maximum(positions, 0, out=positions)
    low = np.minimum(positions.astype(np.int32), np.int32(source - 1))
    high = np.minimum(low + np.int32(1), np.int32(source - 1))
    if whole_map and size == source:
        high = low  # as torch does; it matters for 0 * infinity
    high_weight = np.clip(positions - low, 0, 1).astype(np.float32)
    starts = np.flatnonzero(np.diff(low, prepend=np.int32(-1)))
    axis = Axis(
        low=low,
        high=high,
        low_weight=np.float32(1) - high_weight,
        high_weight=high_weight,
        runs=np.append(starts, size).astype(np.int32),
    )
    for array in axis.arrays:
        array.flags.writeable = False  # grids are cached and shared
    return axis
