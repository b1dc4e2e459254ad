"""The decode as a compiled kernel. Importing this module imports numba.

A call does one part of the work, without holding the interpreter's lock and without starting threads, so that parts
may run in any Python threads at once. (numba's own threading layers are not an option: the only one that its wheels
are sure to bring aborts the process when two threads enter it.)

Names: a *strip* is one run of output rows and a *cell* one run of rows crossed with one run of columns. The *corners*
are the four logits around a cell, (4, classes): top left, top right, bottom left, bottom right. The *ends* are the
logits at the left and the right side of a cell in one row of pixels, (2, classes). ``rows`` and ``columns`` are
``Axis.arrays``.

The innermost loops run over whole blocks of ``_LANES`` pixels, on arrays padded to that, so that they become vector
code without a remainder; what the padding holds is computed and never read. Where little is done at a time, they are
functions of one loop, given whole arrays and where to begin: slices, tuples and branches inside a function count
references, which takes longer than interpolating a short line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import numba
import numpy as np
from numba import types

_logger = logging.getLogger(__name__)

_LANES = 16
_STRIPS_AT_A_TIME = 2  # neighbouring strips share a map row; alternating between parts shares the load
_CELL_TILE_PIXELS = 1024  # pixels of a cell in work at a time: their arrays stay in the first-level cache
_ROW_TILE_PIXELS = 8192  # pixels of whole rows in work at a time: several rows that share their map rows

_LEAST_EXPONENT = np.float32(-24 / 64)  # 65535 classes of exp(-24) weigh less than a thousandth of a level
_ONE = np.float32(1)
_HALF = np.float32(1 / 2)
_SIXTH = np.float32(1 / 6)
_SIXTY_FOURTH = np.float32(1 / 64)
_LEVELS = np.float32(255)

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
_compiled = numba.njit(**_OPTIONS)
_compiled_for_finite = numba.njit(**{**_OPTIONS, "fastmath": {"contract", "nnan", "nsz"}})


def decode_part(logits, rows, columns, labels, confidence, with_confidence, reach, by_cells, part, parts) -> None:
    """Decode one part of the output.

    Args:
        logits: (B, C, h, w) float32.
        rows, columns: ``Axis.arrays`` of the two axes.
        labels: (B, H, W) uint8 or uint16, written.
        confidence: (B, H, W) uint8, written; (B, 0, 0) without confidence.
        with_confidence: whether to compute it.
        reach: float32, how far below the best logit a class counts; 0 without confidence.
        by_cells: leave out classes cell by cell, rather than interpolate them all.
        part, parts: which part, from 0, of how many.
    """
    if not by_cells:
        _decode_rows(logits, rows, columns, labels, confidence, with_confidence, part, parts)
        return
    for index in range(len(logits)):
        image, image_labels, image_confidence = logits[index], labels[index], confidence[index]
        _decode_cells(image, rows, columns, image_labels, image_confidence, with_confidence, reach, part, parts)


@cache
def compile_decode(label_type: np.dtype) -> Callable[..., None]:
    """``decode_part`` for one type of labels, from numba's cache on disk if possible.

    Without a usable cache it is compiled in memory, which takes some seconds in each process.
    """
    positions = types.Array(types.int32, 1, "C", readonly=True)
    weights = types.Array(types.float32, 1, "C", readonly=True)
    axis = types.Tuple((positions, positions, weights, weights, positions))
    signature = types.void(
        types.Array(types.float32, 4, "C", readonly=True),
        axis,
        axis,
        types.Array(numba.from_dtype(label_type), 3, "C"),
        types.Array(types.uint8, 3, "C"),
        types.boolean,
        types.float32,
        types.boolean,
        types.intp,
        types.intp,
    )
    try:
        compiled = numba.njit(signature, cache=True, **_OPTIONS)(decode_part)
    except Exception as error:  # no folder to write to, a full disk, a damaged file: numba raises many types
        _logger.warning(
            "numba's cache cannot be used (%s), so the decode is compiled anew in each process; "
            "set NUMBA_CACHE_DIR to a folder that can be written to",
            error,
        )
        compiled = numba.njit(signature, **_OPTIONS)(decode_part)
    # What numba calls after it has looked at every argument's type, which takes half a microsecond.
    return next(iter(compiled.overloads.values())).entry_point


@_compiled
def _decode_cells(image, rows, columns, labels, confidence, with_confidence, reach, part, parts):
    """Decode every so many strips of one image (C, h, w), each cell with the classes that can count in it."""
    row_low, row_high, row_low_weight, row_high_weight, row_runs = rows
    column_low, column_high, column_low_weight, column_high_weight, column_runs = columns
    classes, _, map_width = image.shape
    strips, cells = len(row_runs) - 1, len(column_runs) - 1
    widest = _longest_run(column_runs)
    tile_rows = max(1, min(_longest_run(row_runs), _CELL_TILE_PIXELS // widest))

    scan = np.empty((2, map_width), np.float32)
    top_winner, bottom_winner = np.empty(map_width, np.int32), np.empty(map_width, np.int32)
    line = np.zeros(labels.shape[1], labels.dtype)
    open_cells = np.empty(cells, np.int32)
    floor, ceiling = np.empty(cells, np.float32), np.empty((cells, classes), np.float32)
    contenders, rated = np.empty(classes, np.int32), np.empty(classes, np.int32)
    corners, rated_corners = np.empty((4, classes), np.float32), np.empty((4, classes), np.float32)
    column_weights = np.zeros((2, _padded(widest)), np.float32)
    ends, survivors = np.empty((2, classes), np.float32), np.empty(classes, np.int32)
    label_scratch = ends, survivors, np.empty(_padded(widest), np.int32)
    tile_size = _padded(tile_rows * widest) + _LANES
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


@_compiled
def _decode_rows(logits, rows, columns, labels, confidence, with_confidence, part, parts):
    """Decode every so many tiles of rows of each image, with all classes everywhere.

    Where output rows share map rows, those are stretched to the output's columns once and then blended; elsewhere
    they are blended first, so that only one line is stretched for a row.
    """
    row_low, row_high, row_low_weight, row_high_weight, row_runs = rows
    column_low, column_high, column_low_weight, column_high_weight, _ = columns
    _, height, width = labels.shape
    tile_rows = max(1, min(_ROW_TILE_PIXELS // width, (height + parts - 1) // parts))
    tile_size = _padded(tile_rows * width)
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
            pixels = _padded((stop - start) * width)
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
                    labels[image, y, x] = winner[_index((y - start) * width + x)]
            if with_confidence:
                _write_confidence(total, best, confidence[image, start:stop])


@_compiled
def _copy_line(logits, image, c, row, left, line):
    for x in range(len(line)):
        line[x] = logits[image, c, row, _index(left + x)]


@_compiled
def _blend_lines(logits, image, c, above, below, left, low_weight, high_weight, line):
    for x in range(len(line)):
        column = _index(left + x)
        line[x] = low_weight * logits[image, c, above, column] + high_weight * logits[image, c, below, column]


@_compiled
def _shift(line, apart, low_weight, high_weight, stretched, first):
    """``_stretch`` for columns that lie one map position apart."""
    for x in range(len(low_weight)):
        value = low_weight[x] * line[x] + high_weight[x] * line[_index(x + apart)]
        stretched[_index(first + x)] = value


@_compiled
def _halve(line, low_weight, high_weight, stretched, first):
    """``_stretch`` for columns that lie two map positions apart."""
    for x in range(len(low_weight)):
        value = low_weight[x] * line[_index(2 * x)] + high_weight[x] * line[_index(2 * x + 1)]
        stretched[_index(first + x)] = value


@_compiled
def _stretch(line, low, high, low_weight, high_weight, stretched, first):
    """Interpolate a line of the map, from the first column's place on, at the output's columns."""
    left = low[0]
    for x in range(len(low)):
        value = low_weight[x] * line[_index(low[x] - left)] + high_weight[x] * line[_index(high[x] - left)]
        stretched[_index(first + x)] = value


@_compiled
def _blend_stretched(stretched, above, below, low_weight, high_weight, value, first, width):
    for x in range(width):
        blended = low_weight * stretched[_index(above + x)] + high_weight * stretched[_index(below + x)]
        value[_index(first + x)] = blended


@_compiled
def _even_step(low, high):
    """How many map positions columns lie apart, if always 1 or always 2, to be read without a table; else 0."""
    step = low[1] - low[0] if len(low) > 1 else 1
    for x in range(1, len(low)):
        if low[x] - low[x - 1] != step or high[x] - high[x - 1] != step:
            return 0
    return step if step <= 2 else 0


@_compiled
def _index(position):
    """For innermost loops: a signed index would be tested for being negative, which keeps a loop scalar."""
    return np.uintp(position)


@_compiled
def _longest_run(runs):
    longest = 0
    for run in range(len(runs) - 1):
        longest = max(longest, runs[run + 1] - runs[run])
    return longest


@_compiled
def _padded(pixels):
    return (pixels + _LANES - 1) // _LANES * _LANES


@_compiled
def _find_map_winners(image, row, scan, winner):
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


@_compiled
def _settle_cells(top_winner, bottom_winner, columns, with_confidence, line, open_cells):
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


@_compiled
def _bound_cells(image, top, bottom, columns, cells, floor, ceiling):
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


@_compiled
def _sorted_pair(a, b):
    return (a, b) if a < b else (b, a)


@_compiled
def _choose_classes(ceiling, least, chosen):
    """List the classes whose ceiling is not below ``least``, NaN among them; return their number."""
    count = 0
    for c in range(len(ceiling)):
        chosen[count] = c
        count += not ceiling[c] < least
    return count


@_compiled
def _gather_corners(image, top, bottom, left, right, chosen, corners):
    for k in range(len(chosen)):
        c = chosen[k]
        corners[0, k] = image[c, top, left]
        corners[1, k] = image[c, top, right]
        corners[2, k] = image[c, bottom, left]
        corners[3, k] = image[c, bottom, right]


@_compiled
def _label_tile(corners, contenders, row_weights, column_weights, finite, with_best, scratch, best, labels):
    """Write the labels of a tile of one cell and, ``with_best``, the best logits, row after row."""
    ends, survivors, winner = scratch
    height, width = labels.shape
    padded = _padded(width)
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


@_compiled
def _blend_down(corners, low_weight, high_weight, count, ends):
    for k in range(count):
        ends[0, k] = low_weight * corners[0, k] + high_weight * corners[2, k]
        ends[1, k] = low_weight * corners[1, k] + high_weight * corners[3, k]


@_compiled_for_finite
def _keep_survivors(ends, count, survivors):
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


@_compiled_for_finite
def _find_best(ends, survivors, column_weights, best, winner):
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


@_compiled
def _find_best_plainly(ends, count, column_weights, best, winner):
    best[:] = -np.inf
    winner[:] = 0
    for k in range(count):
        left, right = ends[0, k], ends[1, k]
        for x in range(len(best)):
            value = column_weights[0, x] * left + column_weights[1, x] * right
            ahead = _is_ahead(value, best[x])
            best[x] = value if ahead else best[x]
            winner[x] = k if ahead else winner[x]


@_compiled
def _is_ahead(value, best):
    """The first NaN is ahead of every number."""
    return (value > best) | ((value != value) & (best == best))


@_compiled
def _challenge(value, pixels, label, best, winner):
    """Let ``label`` win where its values are ahead."""
    for p in range(pixels):
        ahead = _is_ahead(value[p], best[p])
        best[p] = value[p] if ahead else best[p]
        winner[p] = label if ahead else winner[p]


@_compiled
def _rate_tile(corners, row_weights, column_weights, best, scratch, confidence):
    """Write the confidence of a tile of one cell whose best logits are known; they are overwritten."""
    above, below, before, after, total = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    height, width = confidence.shape
    pixels = _padded(height * width)
    for y in range(height):
        row = slice(y * width, (y + 1) * width)
        above[row] = row_weights[0][y]
        below[row] = row_weights[1][y]
        before[row] = column_weights[0, :width]
        after[row] = column_weights[1, :width]
    for p in range(pixels):
        best[p] *= _SIXTY_FOURTH
        total[p] = 0
    for k in range(corners.shape[1]):
        top_left, top_right = corners[0, k] * _SIXTY_FOURTH, corners[1, k] * _SIXTY_FOURTH
        bottom_left, bottom_right = corners[2, k] * _SIXTY_FOURTH, corners[3, k] * _SIXTY_FOURTH
        for p in range(pixels):
            # Blended in the order in which best was, so that the winner's own share is exp(0).
            left = above[p] * top_left + below[p] * bottom_left
            right = above[p] * top_right + below[p] * bottom_right
            total[p] += _exp_of_64_times(before[p] * left + after[p] * right - best[p])
    _write_confidence(total, best, confidence)


@_compiled
def _challenge_and_add(value, pixels, label, best, winner, total):
    """As ``_challenge``, keeping the sum of exp(value - best) over the labels so far in ``total``."""
    for p in range(pixels):
        lead = value[p] - best[p]
        ahead = _is_ahead(value[p], best[p])
        share = _exp_of_64_times((-lead if ahead else lead) * _SIXTY_FOURTH)
        total[p] = total[p] * share + _ONE if ahead else total[p] + share
        best[p] = value[p] if ahead else best[p]
        winner[p] = label if ahead else winner[p]


@_compiled
def _exp_of_64_times(t):
    """exp(64 * t) for t <= 0, right to 1e-6; about 0 for NaN. A cubic, squared six times."""
    t = t if t > _LEAST_EXPONENT else _LEAST_EXPONENT
    power = _ONE + t * (_ONE + t * (_HALF + t * _SIXTH))
    power *= power
    power *= power
    power *= power
    power *= power
    power *= power
    power *= power
    return power


@_compiled
def _write_confidence(total, best, confidence):
    """The best class's share is 1 / total; a best logit that is not finite leaves no softmax."""
    height, width = confidence.shape
    for y in range(height):
        for x in range(width):
            p = _index(y * width + x)
            confidence[y, x] = np.uint8(_LEVELS / total[p] + _HALF) if best[p] - best[p] == 0 else np.uint8(0)
