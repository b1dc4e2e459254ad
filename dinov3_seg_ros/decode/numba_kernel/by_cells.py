"""The kernel's algorithm for large cells: leave out classes cell by cell, interpolate the few that are left."""

from __future__ import annotations

import numpy as np

from dinov3_seg_ros.decode.grid import AxisArrays, Bytes, Floats, Labels, Positions
from dinov3_seg_ros.decode.numba_kernel.shared import (
    LANES,
    SIXTY_FOURTH,
    compiled,
    compiled_for_finite,
    exp_of_64_times,
    is_ahead,
    pad_to_lanes,
    write_confidence,
)

_STRIPS_AT_A_TIME = 2  # neighbouring strips share a map row; alternating between parts shares the load
_TILE_PIXELS = 1024  # pixels of a cell that are decoded at a time: their arrays stay in the first-level cache


@compiled
def decode_cells(
    image: Floats,
    rows: AxisArrays,
    columns: AxisArrays,
    labels: Labels,
    confidence: Bytes,
    with_confidence: bool,
    reach: float,
    part: int,
    parts: int,
) -> None:
    """Decode this part's strips of one image (C, h, w), each cell from the classes that can win or count in it."""
    row_low, row_high, row_low_weight, row_high_weight, row_runs = rows
    column_low, column_high, column_low_weight, column_high_weight, column_runs = columns
    classes, _, map_width = image.shape
    strips, cells = len(row_runs) - 1, len(column_runs) - 1
    widest = _longest_run(column_runs)
    tile_rows = max(1, min(_longest_run(row_runs), _TILE_PIXELS // widest))

    scan = np.empty((2, map_width), np.float32)
    top_winner, bottom_winner = np.empty(map_width, np.int32), np.empty(map_width, np.int32)
    line = np.zeros(labels.shape[1], labels.dtype)
    open_cells = np.empty(cells, np.int32)
    floor, ceiling = np.empty(cells, np.float32), np.empty((cells, classes), np.float32)
    contenders, rated = np.empty(classes, np.int32), np.empty(classes, np.int32)
    corners, rated_corners = np.empty((4, classes), np.float32), np.empty((4, classes), np.float32)
    column_weights = np.zeros((2, pad_to_lanes(widest)), np.float32)
    ends, survivors = np.empty((2, classes), np.float32), np.empty(classes, np.int32)
    label_scratch = ends, survivors, np.empty(pad_to_lanes(widest), np.int32)
    tile_size = pad_to_lanes(tile_rows * widest) + LANES
    best, rate_scratch = np.empty(tile_size, np.float32), np.zeros((5, tile_size), np.float32)

    scanned = -1  # the map row that bottom_winner describes
    for block in range(part * _STRIPS_AT_A_TIME, strips, parts * _STRIPS_AT_A_TIME):
        for strip in range(block, min(block + _STRIPS_AT_A_TIME, strips)):
            first, last = row_runs[strip], row_runs[strip + 1]
            top, bottom = row_low[first], row_high[first]
            if top == scanned:
                top_winner, bottom_winner = bottom_winner, top_winner
            else:
                _find_map_winners(image, top, scan, top_winner)
            if bottom == top:
                bottom_winner[:] = top_winner
            else:
                _find_map_winners(image, bottom, scan, bottom_winner)
            scanned = bottom

            count_open = _settle_cells(top_winner, bottom_winner, columns, with_confidence, line, open_cells)
            for y in range(first, last):
                labels[y, :] = line
            _bound_cells(image, top, bottom, columns, open_cells[:count_open], floor, ceiling)
            for position in range(count_open):
                start, stop = column_runs[open_cells[position]], column_runs[open_cells[position] + 1]
                left, right = column_low[start], column_high[start]
                finite = min(top_winner[left], top_winner[right], bottom_winner[left], bottom_winner[right]) >= 0
                least = floor[position] if finite else np.float32(-np.inf)
                count = _choose_classes(ceiling[position], least, contenders)
                count_rated = _choose_classes(ceiling[position], least - reach, rated) if with_confidence else 1
                if finite and count == 1 and count_rated == 1:
                    labels[first:last, start:stop] = contenders[0]
                    confidence[first:last, start:stop] = 255
                    continue
                _gather_corners(image, top, bottom, left, right, contenders[:count], corners)
                if with_confidence:
                    _gather_corners(image, top, bottom, left, right, rated[:count_rated], rated_corners)
                column_weights[0, : stop - start] = column_low_weight[start:stop]
                column_weights[1, : stop - start] = column_high_weight[start:stop]
                for y in range(first, last, tile_rows):
                    tile = slice(y, min(y + tile_rows, last))
                    row_weights = row_low_weight[tile], row_high_weight[tile]
                    _label_tile(
                        corners,
                        contenders[:count],
                        row_weights,
                        column_weights,
                        finite,
                        with_confidence,
                        label_scratch,
                        best,
                        labels[tile, start:stop],
                    )
                    if with_confidence:
                        _rate_tile(
                            rated_corners[:, :count_rated],
                            row_weights,
                            column_weights,
                            best,
                            rate_scratch,
                            confidence[tile, start:stop],
                        )


@compiled
def _longest_run(runs: Positions) -> int:
    longest = 0
    for run in range(len(runs) - 1):
        longest = max(longest, runs[run + 1] - runs[run])
    return longest


@compiled
def _find_map_winners(image: Floats, row: int, scan: Floats, winner: Positions) -> None:
    """The best class at each position of a map row, the lowest of equals; -1 where some class is not finite."""
    best, residue = scan[0], scan[1]
    best[:] = -np.inf
    residue[:] = 0
    winner[:] = 0
    for c in range(len(image)):
        values = image[c, row]
        for x in range(len(values)):
            value = values[x]
            residue[x] += value - value  # zero, but NaN for what is not finite
            ahead = value > best[x]
            best[x] = value if ahead else best[x]
            winner[x] = c if ahead else winner[x]
    for x in range(len(winner)):
        if residue[x] != 0:
            winner[x] = -1


@compiled
def _settle_cells(
    top_winner: Positions,
    bottom_winner: Positions,
    columns: AxisArrays,
    with_confidence: bool,
    line: Labels,
    open_cells: Positions,
) -> int:
    """Write the labels of cells whose corners agree to ``line``; list the cells left to decode, return their number."""
    column_low, column_high, _, _, runs = columns
    count = 0
    for cell in range(len(runs) - 1):
        start, stop = runs[cell], runs[cell + 1]
        left, right = column_low[start], column_high[start]
        label = top_winner[left]
        agree = label == top_winner[right] and label == bottom_winner[left] and label == bottom_winner[right]
        if agree and label >= 0 and not with_confidence:
            line[start:stop] = label
        else:
            open_cells[count] = cell
            count += 1
    return count


@compiled
def _bound_cells(
    image: Floats, top: int, bottom: int, columns: AxisArrays, cells: Positions, floor: Floats, ceiling: Floats
) -> None:
    """For each of the cells, each class's largest corner (ceiling) and the largest smallest corner (floor)."""
    column_low, column_high, _, _, runs = columns
    floor[: len(cells)] = -np.inf
    for c in range(len(image)):
        top_row, bottom_row = image[c, top], image[c, bottom]
        for position in range(len(cells)):
            start = runs[cells[position]]
            left, right = column_low[start], column_high[start]
            lowest_top, highest_top = _sorted_pair(top_row[left], top_row[right])
            lowest_bottom, highest_bottom = _sorted_pair(bottom_row[left], bottom_row[right])
            lowest = lowest_top if lowest_top < lowest_bottom else lowest_bottom
            ceiling[position, c] = highest_top if highest_top > highest_bottom else highest_bottom
            floor[position] = lowest if lowest > floor[position] else floor[position]


@compiled
def _sorted_pair(a: float, b: float) -> tuple[float, float]:
    return (a, b) if a < b else (b, a)


@compiled
def _choose_classes(ceiling: Floats, least: float, chosen: Positions) -> int:
    """List the classes whose ceiling is not below ``least``, NaN among them; return their number."""
    count = 0
    for c in range(len(ceiling)):
        chosen[count] = c
        count += not ceiling[c] < least
    return count


@compiled
def _gather_corners(
    image: Floats, top: int, bottom: int, left: int, right: int, chosen: Positions, corners: Floats
) -> None:
    for k in range(len(chosen)):
        c = chosen[k]
        corners[0, k] = image[c, top, left]
        corners[1, k] = image[c, top, right]
        corners[2, k] = image[c, bottom, left]
        corners[3, k] = image[c, bottom, right]


@compiled
def _label_tile(
    corners: Floats,
    contenders: Positions,
    row_weights: tuple[Floats, Floats],
    column_weights: Floats,
    finite: bool,
    with_best: bool,
    scratch: tuple[Floats, Positions, Positions],
    best: Floats,
    labels: Labels,
) -> None:
    """Write the labels of a tile of one cell and, ``with_best``, the best logits, row after row."""
    ends, survivors, winner = scratch
    height, width = labels.shape
    padded = pad_to_lanes(width)
    for y in range(height):
        best_row = best[y * width : y * width + padded]
        _blend_down(corners, row_weights[0][y], row_weights[1][y], len(contenders), ends)
        if finite:
            remaining = _keep_survivors(ends, len(contenders), survivors)
            if remaining == 1 and not with_best:
                labels[y, :] = contenders[survivors[0]]
                continue
            _find_best(ends, survivors[:remaining], column_weights, best_row, winner)
        else:
            _find_best_plainly(ends, len(contenders), column_weights, best_row, winner)
        for x in range(width):
            labels[y, x] = contenders[winner[x]]


@compiled
def _blend_down(corners: Floats, low_weight: float, high_weight: float, count: int, ends: Floats) -> None:
    for k in range(count):
        ends[0, k] = low_weight * corners[0, k] + high_weight * corners[2, k]
        ends[1, k] = low_weight * corners[1, k] + high_weight * corners[3, k]


@compiled_for_finite
def _keep_survivors(ends: Floats, count: int, survivors: Positions) -> int:
    """List the classes that can win between the ends, and return their number: one where the ends agree."""
    left, right = ends[0], ends[1]
    floor = min(left[0], right[0])
    for k in range(count):
        floor = max(floor, min(left[k], right[k]))
    remaining = 0
    for k in range(count):
        survivors[remaining] = k
        remaining += max(left[k], right[k]) >= floor
    best_left = best_right = survivors[0]
    for position in range(1, remaining):
        k = survivors[position]
        best_left = k if left[k] > left[best_left] else best_left
        best_right = k if right[k] > right[best_right] else best_right
    if best_left == best_right:
        survivors[0] = best_left
        return 1
    return remaining


@compiled_for_finite
def _find_best(ends: Floats, survivors: Positions, column_weights: Floats, best: Floats, winner: Positions) -> None:
    low_weight, high_weight = column_weights[0], column_weights[1]
    k = survivors[0]
    left, right = ends[0, k], ends[1, k]
    for x in range(len(best)):
        best[x] = low_weight[x] * left + high_weight[x] * right
        winner[x] = k
    for position in range(1, len(survivors)):
        k = survivors[position]
        left, right = ends[0, k], ends[1, k]
        for x in range(len(best)):
            value = low_weight[x] * left + high_weight[x] * right
            ahead = value > best[x]
            best[x] = value if ahead else best[x]
            winner[x] = k if ahead else winner[x]


@compiled
def _find_best_plainly(ends: Floats, count: int, column_weights: Floats, best: Floats, winner: Positions) -> None:
    best[:] = -np.inf
    winner[:] = 0
    for k in range(count):
        left, right = ends[0, k], ends[1, k]
        for x in range(len(best)):
            value = column_weights[0, x] * left + column_weights[1, x] * right
            ahead = is_ahead(value, best[x])
            best[x] = value if ahead else best[x]
            winner[x] = k if ahead else winner[x]


@compiled
def _rate_tile(
    corners: Floats,
    row_weights: tuple[Floats, Floats],
    column_weights: Floats,
    best: Floats,
    scratch: Floats,
    confidence: Bytes,
) -> None:
    """Write the confidence of a tile of one cell whose best logits are known; they are overwritten."""
    above, below, before, after, total = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    height, width = confidence.shape
    pixels = pad_to_lanes(height * width)
    for y in range(height):
        row = slice(y * width, (y + 1) * width)
        above[row] = row_weights[0][y]
        below[row] = row_weights[1][y]
        before[row] = column_weights[0, :width]
        after[row] = column_weights[1, :width]
    for p in range(pixels):
        best[p] *= SIXTY_FOURTH
        total[p] = 0
    for k in range(corners.shape[1]):
        top_left, top_right = corners[0, k] * SIXTY_FOURTH, corners[1, k] * SIXTY_FOURTH
        bottom_left, bottom_right = corners[2, k] * SIXTY_FOURTH, corners[3, k] * SIXTY_FOURTH
        for p in range(pixels):
            # Blended in the order in which best was, so that the winner's own share is exp(0).
            left = above[p] * top_left + below[p] * bottom_left
            right = above[p] * top_right + below[p] * bottom_right
            total[p] += exp_of_64_times(before[p] * left + after[p] * right - best[p])
    write_confidence(total, best, confidence)
