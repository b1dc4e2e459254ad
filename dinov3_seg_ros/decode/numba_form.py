"""The decode by the compiled kernel: in which way, and in how many parts. Importing this module imports numba."""

from __future__ import annotations

import numpy as np

from dinov3_seg_ros.decode.geometry import Grid
from dinov3_seg_ros.decode.numba_kernel import compile_decode
from dinov3_seg_ros.decode.parallel import run_parts, thread_count

# Measured, in interpolated values: what looking at a cell costs at least, and with each of its classes.
_VALUES_WORTH_A_CELL = 800
_VALUES_WORTH_A_CLASS = 8
# About 0.1 ms of work, twice what handing it to a thread costs.
_VALUES_WORTH_A_THREAD = 200_000


def decode(logits: np.ndarray, grid: Grid, labels: np.ndarray, confidence: np.ndarray | None, reach: float) -> None:
    """Fill ``labels`` and ``confidence``, both (B, H, W), from float32 ``logits`` (B, C, h, w), in C order.

    ``reach`` is how far below the best logit a class still counts for the confidence.
    """
    kernel = compile_decode(grid.label_type)
    with_confidence = confidence is not None
    if confidence is None:
        confidence = np.empty((len(labels), 0, 0), np.uint8)
        reach = 0.0
    by_cells = _cells_pay(logits.shape[1], grid, with_confidence)

    def decode_part(part: int, parts: int) -> None:
        kernel(
            logits,
            grid.rows.arrays,
            grid.columns.arrays,
            labels,
            confidence,
            with_confidence,
            reach,
            by_cells,
            part,
            parts,
        )

    run_parts(decode_part, _part_count(logits.shape, grid, by_cells, with_confidence))


def _cells_pay(classes: int, grid: Grid, with_confidence: bool) -> bool:
    """Whether cells have enough pixels, or single map positions for corners."""
    if grid.copies_map:
        return not with_confidence
    return classes * grid.pixels >= _VALUES_WORTH_A_CELL * grid.cells


def _part_count(shape: tuple[int, ...], grid: Grid, by_cells: bool, with_confidence: bool) -> int:
    batch, classes, _, _ = shape
    values = grid.cells * _VALUES_WORTH_A_CLASS if by_cells and not with_confidence else grid.pixels
    return max(1, min(thread_count(), batch * classes * values // _VALUES_WORTH_A_THREAD))
