"""Regions as lengths of runs of pixels outside and inside in turn; `training.data.reading.run_lengths` reads them."""

from __future__ import annotations

import numpy as np

# Of COCO's compressed lengths, see `training.data.reading.run_lengths`.
_FIRST_CHARACTER = 48
_BITS, _MORE, _SIGN = 5, 0x20, 0x10


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs along the rows of a mask (h, w) bool; the first is outside, and may be 0."""
    flat = np.concatenate([[False], mask.ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()
    return lengths


def compressed(lengths: list[int]) -> str:
    """Lengths as COCO's ``rleToString`` writes them: from the fourth on, differences to the one before last."""
    text = []
    for index, length in enumerate(lengths):
        value = length - lengths[index - 2] if index > 2 else length
        while True:
            bits = value & 0x1F
            value >>= _BITS
            is_last = value == (-1 if bits & _SIGN else 0)
            text.append(chr(_FIRST_CHARACTER + (bits if is_last else bits | _MORE)))
            if is_last:
                break
    return "".join(text)
