"""The decode by the compiled kernel: by which algorithm, and in how many parts. Importing this module imports numba."""

from __future__ import annotations

import numpy as np

from dinov3_seg_ros.decode.grid import Bytes, Floats, Grid, Labels
from dinov3_seg_ros.decode.numba_kernel.entry import compile_decode
from dinov3_seg_ros.decode.parallel import run_parts, thread_count

# Costs as measured, in interpolated values: of a cell, and of each class in a cell.
_VALUES_WORTH_A_CELL = 1000
_VALUES_WORTH_A_CLASS = 8
# About 0.1 ms of work: twice what it costs to hand work to a thread.
_VALUES_WORTH_A_THREAD = 200_000


def decode(logits: Floats, grid: Grid, labels: Labels, confidence: Bytes | None) -> None:
    """Fill ``labels`` and ``confidence``, both (B, H, W), from ``logits`` (B, C, h, w); all contiguous.

    Args:
        logits: what to decode.
        grid: the plan for logits of this shape.
        labels: of the grid's ``label_type``.
        confidence: None where none is wanted.
    """
    kernel = compile_decode(grid.label_type)
    with_confidence = confidence is not None
    reach = grid.reach if with_confidence else 0.0
    if confidence is None:
        confidence = np.empty((len(labels), 0, 0), np.uint8)
    rows, columns = grid.axes
    by_cells = grid.values_per_cell >= _VALUES_WORTH_A_CELL

    def decode_part(part: int, parts: int) -> None:
        kernel(logits, rows, columns, labels, confidence, with_confidence, reach, by_cells, part, parts)

    run_parts(decode_part, _part_count(grid, by_cells, with_confidence))


def _part_count(grid: Grid, by_cells: bool, with_confidence: bool) -> int:
    values = grid.values
    if by_cells and not with_confidence:
        values = grid.shape[0] * grid.classes * grid.cells * _VALUES_WORTH_A_CLASS
    parts = values // _VALUES_WORTH_A_THREAD
    return min(thread_count(), parts) if parts > 1 else 1
