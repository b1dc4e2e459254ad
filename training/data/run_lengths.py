"""Regions that are written as the lengths of runs of pixels outside and inside in turn.

COCO's own library, pycocotools, writes beyond its arrays where damaged lengths do not fit the size, which ends the
process; so they are checked and decoded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# COCO's compressed lengths: characters from this one on hold five bits each, and one that says that more follow.
_FIRST_CHARACTER = 48
_BITS, _MORE, _NEGATIVE = 5, 0x20, 0x10


def region_of(lengths: Sequence[int], height: int, width: int, by_columns: bool = False) -> np.ndarray:
    """A region (height, width) bool.

    Args:
        lengths: of the runs; the first is outside the region.
        height, width: of the region, pixels.
        by_columns: whether runs go down the columns, as COCO's do, or along the rows.

    Raises:
        ValueError: the lengths do not fit the size.
    """
    runs = np.asarray(lengths, np.int64)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"run lengths of {int(runs.sum())} pixels do not fill {width}x{height} pixels")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T if by_columns else inside.reshape(height, width)


def region_of_coco(written: Mapping[str, Any], image_size: tuple[int, int] | None = None) -> np.ndarray:
    """A region (h, w) bool from COCO's ``size`` and ``counts``, which are a list or compressed to text.

    Args:
        written: the region.
        image_size: height and width of its image; None: not known.

    Raises:
        KeyError, TypeError, ValueError: it is damaged, or has another size than the image.
    """
    height, width = (int(number) for number in written["size"])
    if image_size is not None and image_size != (height, width):
        raise ValueError(f"a mask has {width}x{height} pixels, its image {image_size[1]}x{image_size[0]}")
    counts = written["counts"]
    return region_of(_uncompressed(counts) if isinstance(counts, str) else counts, height, width, by_columns=True)


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
            is_last = value == (-1 if bits & _NEGATIVE else 0)
            text.append(chr(_FIRST_CHARACTER + (bits if is_last else bits | _MORE)))
            if is_last:
                break
    return "".join(text)


def _uncompressed(text: str) -> list[int]:
    """The lengths that COCO's ``rleToString`` wrote: from the fourth on, differences to the one before last."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - _FIRST_CHARACTER
        value |= (bits & 0x1F) << shift
        shift += _BITS
        if bits & _MORE:
            continue
        if bits & _NEGATIVE:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    return lengths
