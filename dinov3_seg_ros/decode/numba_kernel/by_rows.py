"""The kernel's algorithm for small cells: interpolate all classes everywhere, several rows at a time."""

from __future__ import annotations

import numpy as np

from dinov3_seg_ros.decode.grid import AxisArrays, Bytes, Floats, Labels, Positions
from dinov3_seg_ros.decode.numba_kernel.shared import (
    ONE,
    SIXTY_FOURTH,
    compiled,
    exp_of_64_times,
    is_ahead,
    pad_to_lanes,
    unsigned,
    write_confidence,
)

_TILE_PIXELS = 8192  # pixels of whole rows that are decoded at a time: several rows that share their map rows


@compiled
def decode_rows(
    logits: Floats,
    rows: AxisArrays,
    columns: AxisArrays,
    labels: Labels,
    confidence: Bytes,
    with_confidence: bool,
    part: int,
    parts: int,
) -> None:
    """Decode this part's tiles of rows of each image, from all classes everywhere.

    Where output rows share map rows, those are stretched to the output's columns once and then blended; elsewhere
    they are blended first, so that only one line is stretched for a row.
    """
    row_low, row_high, row_low_weight, row_high_weight, row_runs = rows
    column_low, column_high, column_low_weight, column_high_weight, _ = columns
    _, height, width = labels.shape
    tile_rows = max(1, min(_TILE_PIXELS // width, (height + parts - 1) // parts))
    tile_size = pad_to_lanes(tile_rows * width)
    left, apart, step = column_low[0], column_high[0] - column_low[0], _even_step(column_low, column_high)
    shared = len(row_runs) - 1 < height

    line = np.empty(column_high[width - 1] - left + 1, np.float32)
    value, best = np.zeros(tile_size, np.float32), np.empty(tile_size, np.float32)
    total, winner = np.empty(tile_size, np.float32), np.empty(tile_size, np.int32)
    # Shared rows are less than about one apart.
    stretched = np.empty((2 * tile_rows + 2) * width, np.float32) if shared else value

    for image in range(len(logits)):
        for start in range(part * tile_rows, height, parts * tile_rows):
            stop = min(start + tile_rows, height)
            pixels = pad_to_lanes((stop - start) * width)
            top = row_low[start]
            lines = row_high[stop - 1] - top + 1 if shared else stop - start
            for p in range(pixels):
                best[p], winner[p], total[p] = -np.inf, 0, 0
            for c in range(logits.shape[1]):
                for k in range(lines):
                    if shared:
                        _copy_line(logits, image, c, top + k, left, line)
                    else:
                        y = start + k
                        low_weight, high_weight = row_low_weight[y], row_high_weight[y]
                        _blend_lines(logits, image, c, row_low[y], row_high[y], left, low_weight, high_weight, line)
                    if step == 1:
                        _shift(line, apart, column_low_weight, column_high_weight, stretched, k * width)
                    elif step == 2:
                        _halve(line, column_low_weight, column_high_weight, stretched, k * width)
                    else:
                        _stretch(
                            line, column_low, column_high, column_low_weight, column_high_weight, stretched, k * width
                        )
                if shared:
                    for y in range(start, stop):
                        above, below = (row_low[y] - top) * width, (row_high[y] - top) * width
                        low_weight, high_weight, first = row_low_weight[y], row_high_weight[y], (y - start) * width
                        _blend_stretched(stretched, above, below, low_weight, high_weight, value, first, width)
                if with_confidence:
                    _challenge_and_add(value, pixels, c, best, winner, total)
                else:
                    _challenge(value, pixels, c, best, winner)
            for y in range(start, stop):
                for x in range(width):
                    labels[image, y, x] = winner[unsigned((y - start) * width + x)]
            if with_confidence:
                write_confidence(total, best, confidence[image, start:stop])


@compiled
def _copy_line(logits: Floats, image: int, c: int, row: int, left: int, line: Floats) -> None:
    for x in range(len(line)):
        line[x] = logits[image, c, row, unsigned(left + x)]


@compiled
def _blend_lines(
    logits: Floats,
    image: int,
    c: int,
    above: int,
    below: int,
    left: int,
    low_weight: float,
    high_weight: float,
    line: Floats,
) -> None:
    for x in range(len(line)):
        column = unsigned(left + x)
        line[x] = low_weight * logits[image, c, above, column] + high_weight * logits[image, c, below, column]


@compiled
def _shift(line: Floats, apart: int, low_weight: Floats, high_weight: Floats, stretched: Floats, first: int) -> None:
    """``_stretch`` for columns that lie one map position apart."""
    for x in range(len(low_weight)):
        value = low_weight[x] * line[x] + high_weight[x] * line[unsigned(x + apart)]
        stretched[unsigned(first + x)] = value


@compiled
def _halve(line: Floats, low_weight: Floats, high_weight: Floats, stretched: Floats, first: int) -> None:
    """``_stretch`` for columns that lie two map positions apart."""
    for x in range(len(low_weight)):
        value = low_weight[x] * line[unsigned(2 * x)] + high_weight[x] * line[unsigned(2 * x + 1)]
        stretched[unsigned(first + x)] = value


@compiled
def _stretch(
    line: Floats,
    low: Positions,
    high: Positions,
    low_weight: Floats,
    high_weight: Floats,
    stretched: Floats,
    first: int,
) -> None:
    """Interpolate a line of the map, from the first column's place on, at the output's columns."""
    left = low[0]
    for x in range(len(low)):
        value = low_weight[x] * line[unsigned(low[x] - left)] + high_weight[x] * line[unsigned(high[x] - left)]
        stretched[unsigned(first + x)] = value


@compiled
def _blend_stretched(
    stretched: Floats,
    above: int,
    below: int,
    low_weight: float,
    high_weight: float,
    value: Floats,
    first: int,
    width: int,
) -> None:
    for x in range(width):
        blended = low_weight * stretched[unsigned(above + x)] + high_weight * stretched[unsigned(below + x)]
        value[unsigned(first + x)] = blended


@compiled
def _even_step(low: Positions, high: Positions) -> int:
    """How many map positions columns lie apart, if always 1 or always 2, to be read without a table; else 0."""
    step = low[1] - low[0] if len(low) > 1 else 1
    for x in range(1, len(low)):
        if low[x] - low[x - 1] != step or high[x] - high[x - 1] != step:
            return 0
    return step if step <= 2 else 0


@compiled
def _challenge(value: Floats, pixels: int, label: int, best: Floats, winner: Positions) -> None:
    """Make ``label`` the winner where its values are ahead."""
    for p in range(pixels):
        ahead = is_ahead(value[p], best[p])
        best[p] = value[p] if ahead else best[p]
        winner[p] = label if ahead else winner[p]


@compiled
def _challenge_and_add(value: Floats, pixels: int, label: int, best: Floats, winner: Positions, total: Floats) -> None:
    """As ``_challenge``, keeping the sum of exp(value - best) over the labels so far in ``total``."""
    for p in range(pixels):
        lead = value[p] - best[p]
        ahead = is_ahead(value[p], best[p])
        share = exp_of_64_times((-lead if ahead else lead) * SIXTY_FOURTH)
        total[p] = total[p] * share + ONE if ahead else total[p] + share
        best[p] = value[p] if ahead else best[p]
        winner[p] = label if ahead else winner[p]
