"""The decode in NumPy, while numba's kernel is compiled and where numba is not installed: as exact, and slower.

The map is decoded in bands of cells. In each band a class is interpolated only inside the box around the cells in
which it can win (or, for the confidence, in which it counts).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.decode.grid import Axis, Bytes, Floats, Grid, Labels

_BAND_RUNS = 8
_BAND_CORNERS = 1 << 21  # corner values of one band: 8 MiB in float32

Box = tuple[slice, slice]
Mask = NDArray[np.bool_]


def decode(logits: Floats, grid: Grid, labels: Labels, confidence: Bytes | None) -> None:
    """Fill ``labels`` and, unless it is None, ``confidence``, both (B, H, W), from ``logits`` (B, C, h, w)."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for image, image_logits in enumerate(logits):
            for band in _bands(image_logits.shape[0], grid):
                rows = slice(grid.rows.runs[band.start], grid.rows.runs[band.stop])
                band_confidence = None if confidence is None else confidence[image, rows]
                _decode_band(image_logits, grid, band, labels[image, rows], band_confidence)


def _bands(classes: int, grid: Grid) -> Iterator[slice]:
    """Slices of row runs, each small enough for the cells' corners to fit in the cache."""
    runs = max(1, min(_BAND_RUNS, _BAND_CORNERS // (classes * grid.columns.run_count)))
    for start in range(0, grid.rows.run_count, runs):
        yield slice(start, min(start + runs, grid.rows.run_count))


def _decode_band(logits: Floats, grid: Grid, band: slice, labels: Labels, confidence: Bytes | None) -> None:
    lowest, highest, finite = _cell_bounds(logits, grid, band)
    margin = 0.0 if confidence is None else grid.reach
    counts = (highest >= lowest.max(axis=0) - np.float32(margin)) | ~finite
    classes = np.flatnonzero(counts.any(axis=(1, 2)))
    boxes = [_pixel_box(counts[index], grid, band) for index in classes]
    first_row = int(grid.rows.runs[band.start])

    best = np.full(labels.shape, -np.inf, np.float32)
    labels.fill(0)
    for index, box in zip(classes, boxes, strict=True):
        value = _interpolate(logits[index], grid, box, first_row)
        wins = value > best[box]
        if not finite.all():
            wins |= np.isnan(value) & ~np.isnan(best[box])
        np.copyto(best[box], value, where=wins)
        np.copyto(labels[box], labels.dtype.type(index), where=wins)
    if confidence is None:
        return

    total = np.zeros(labels.shape, np.float32)
    for index, box in zip(classes, boxes, strict=True):
        total[box] += np.exp(_interpolate(logits[index], grid, box, first_row) - best[box])
    share = np.where(np.isfinite(total), np.float32(255) / total, np.float32(0))
    confidence[:] = np.rint(share)


def _cell_bounds(logits: Floats, grid: Grid, band: slice) -> tuple[Floats, Floats, Mask]:
    """Smallest and largest corner of each class (C, rows, columns), and whether a cell is finite (rows, columns)."""
    row_starts, column_starts = grid.rows.runs[band], grid.columns.runs[:-1]
    top, bottom = logits[:, grid.rows.low[row_starts]], logits[:, grid.rows.high[row_starts]]
    left, right = grid.columns.low[column_starts], grid.columns.high[column_starts]
    corners = (top[:, :, left], top[:, :, right], bottom[:, :, left], bottom[:, :, right])
    finite = np.logical_and.reduce([np.isfinite(corner).all(axis=0) for corner in corners])
    return np.minimum.reduce(corners), np.maximum.reduce(corners), finite


def _pixel_box(cells: Mask, grid: Grid, band: slice) -> Box:
    """The smallest box of the band's pixels that covers the marked cells (rows, columns)."""
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    row_runs, column_runs = grid.rows.runs[band.start :], grid.columns.runs
    return (
        slice(row_runs[rows[0]] - row_runs[0], row_runs[rows[-1] + 1] - row_runs[0]),
        slice(column_runs[columns[0]], column_runs[columns[-1] + 1]),
    )


def _interpolate(channel: Floats, grid: Grid, box: Box, first_row: int) -> Floats:
    """One class (h, w) at the pixels of a box, whose rows count from ``first_row``; across first, then down."""
    rows = slice(box[0].start + first_row, box[0].stop + first_row)
    low, high = grid.rows.low[rows], grid.rows.high[rows]
    across = _blend(channel[low[0] : high[-1] + 1], grid.columns, box[1], axis=1, origin=0)
    return _blend(across, grid.rows, rows, axis=0, origin=int(low[0]))


def _blend(values: Floats, axis_plan: Axis, positions: slice, axis: int, origin: int) -> Floats:
    shape = (-1, 1) if axis == 0 else (1, -1)
    low = np.take(values, axis_plan.low[positions] - origin, axis=axis)
    high = np.take(values, axis_plan.high[positions] - origin, axis=axis)
    low *= axis_plan.low_weight[positions].reshape(shape)
    high *= axis_plan.high_weight[positions].reshape(shape)
    low += high
    return low
