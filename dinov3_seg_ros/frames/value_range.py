"""Which values of a stream's 16-bit images are black and white.

A sensor of 10, 12 or 14 bits fills only a part of a 16-bit value. Scaled from the full range, its images would be
almost black, and the network would answer with confident nonsense.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import cv2
import numpy as np

from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import MessageError, ParameterError

_logger = logging.getLogger("dinov3_seg_ros.frames")

#: The bits of the sensors that there are.
_BITS = (8, 10, 12, 14, 16)
# So many bits fewer than learned are not a dark scene, in which something always reaches a sixteenth of the range, but
# another source. Below 10 bits it is a covered lens.
_BITS_OF_ANOTHER_SOURCE, _LEAST_BITS_OF_ANOTHER_SOURCE = 4, 10
# Thermal cameras of 14 and 16 bits count kelvins from zero: a scene fills a small part far from both ends.
_LEAST_THERMAL_BITS = 14
# The share of an image's values that count for nothing there, at each end. About so many, on a grid, are looked at.
_OUTLIERS, _COUNTED_VALUES = 0.01, 1 << 18
#: What ``full`` stands for.
FULL_RANGE = (0, 65535)


class ValueEnds(NamedTuple):
    """Where the 16-bit values of some images lie.

    Attributes:
        least, most: of all values.
        low, high: between which nearly all values of the bright images lie: a dead pixel, a row of other data and a
            black image hide no thermal camera. ``low`` is above ``high`` where there is no such image.
    """

    least: int = 65535
    most: int = 0
    low: int = 65535
    high: int = 0

    @classmethod
    def of(cls, colours: np.ndarray) -> ValueEnds:
        """Those of one image, (H, W) or (H, W, C) uint16."""
        ends = cls(int(colours.min()), int(colours.max()))
        if _significant_bits(ends.most) < _LEAST_THERMAL_BITS:
            return ends
        step = math.isqrt(colours.size // _COUNTED_VALUES) + 1 | 1  # odd, which meets all colours of a Bayer mosaic
        counts = np.cumsum(np.bincount(colours[::step, ::step].ravel()))
        low, high = (int(np.searchsorted(counts, share * counts[-1])) for share in (_OUTLIERS, 1 - _OUTLIERS))
        is_bright = low < high and _significant_bits(high) >= _LEAST_THERMAL_BITS
        return ends._replace(low=low, high=high) if is_bright else ends

    def joined(self, other: ValueEnds) -> ValueEnds:
        """Those of the images of both."""
        return ValueEnds(
            min(self.least, other.least),
            max(self.most, other.most),
            min(self.low, other.low),
            max(self.high, other.high),
        )

    def sensor_range(self) -> tuple[int, int] | None:
        """The range that ``auto`` takes: 0 and the largest value of the smallest sensor that gives such values.

        Returns:
            None where they are those of a thermal camera: only the user knows which of them are black and white.
        """
        white = (1 << _significant_bits(self.most)) - 1
        is_far_from_ends = self.low > white // 8 and self.high < white - white // 16
        if 0 < self.high - self.low < white // 16 and is_far_from_ends:
            return None
        return 0, white


def chosen_range(*choices: ValueRange) -> ValueRange:
    """The first of several choices that is not ``auto``: the user's, then that of the bundle."""
    return next((choice for choice in choices if choice != "auto"), "auto")


def scale_to_8_bits(pixels: np.ndarray, low: int, high: int) -> np.ndarray:
    """Scale 16-bit values linearly, so that ``low`` becomes 0 and ``high`` 255; values beyond are 0 or 255.

    Args:
        pixels: uint16 in the machine's byte order, of any shape.

    Returns:
        the same shape, uint8, rounded.
    """
    if low:
        pixels = np.maximum(pixels, low) - np.uint16(low)
    return cv2.convertScaleAbs(pixels, alpha=255 / (high - low))


class ValueScale:
    """Scales the 16-bit values of one stream of images to 8 bits.

    With ``auto`` it learns from each image how many bits the sensor has, and logs each number once.

    Args:
        choice: see `options.ValueRange`; may be changed at any time.
        source: where the images come from, for the log.
        is_whole: whether it sees all images of the source. From a part of them nothing is learned, since other parts
            would be scaled by another range.
        ends: of all images of the source, where they are known beforehand; then nothing is learned from single ones.
    """

    def __init__(
        self, choice: ValueRange = "auto", source: str = "", is_whole: bool = True, ends: ValueEnds | None = None
    ) -> None:
        self.choice = choice
        self._source, self._is_whole, self._learns = source, is_whole, ends is None
        self._ends, self._bits = (ValueEnds(), 0) if ends is None else (ends, _significant_bits(ends.most))
        self._told: set[int] = set()

    def to_8_bits(self, pixels: np.ndarray) -> np.ndarray:
        """Scale an image linearly: the low end of the range becomes 0, its high end 255.

        Args:
            pixels: (H, W) or (H, W, C) uint16 in the machine's byte order; a fourth channel is opacity.

        Returns:
            the same shape, uint8; see `scale_to_8_bits`.

        Raises:
            MessageError: the range cannot be told from the image.
            ParameterError: the range is ``auto``, and the images are only a part of the source.
        """
        colours = pixels[..., :3] if pixels.ndim == 3 else pixels
        return scale_to_8_bits(pixels, *self._range_of(colours))

    def _range_of(self, colours: np.ndarray) -> tuple[int, int]:
        if self.choice == "full":
            return FULL_RANGE
        if self.choice != "auto":
            return self.choice
        if not self._is_whole:
            raise ParameterError(
                "the range of 16-bit images is learned from all of them, but here each process sees a part; set "
                "value_range to full, or to the values that are black and white"
            )
        if self._learns:
            self._learn(ValueEnds.of(colours))
        learned = self._ends.sensor_range()
        if learned is None:
            low, high = self._ends.low, self._ends.high
            raise MessageError(
                "value range unknown",
                f"nearly all 16-bit values lie between {low} and {high}, as a thermal camera's do; set value_range to "
                f"those that shall be black and white, such as value_range:=[{low}, {high}], or to full",
            )
        if self._bits not in self._told:
            self._told.add(self._bits)
            _logger.info(
                "16-bit images%s have %d significant bits: values from 0 to %d become 0 to 255; to choose another "
                "range, set value_range",
                f" on {self._source}" if self._source else "",
                self._bits,
                learned[1],
            )
        return learned

    def _learn(self, ends: ValueEnds) -> None:
        bits = _significant_bits(ends.most)
        is_dimmed = _LEAST_BITS_OF_ANOTHER_SOURCE <= bits <= self._bits - _BITS_OF_ANOTHER_SOURCE
        is_another_source = is_dimmed or ends.least >= 1 << self._bits  # as for the first image, unless it is black
        self._ends = ends if is_another_source else self._ends.joined(ends)
        self._bits = _significant_bits(self._ends.most)


def _significant_bits(value: int) -> int:
    """The bits of the smallest sensor that gives such a value."""
    return next(bits for bits in _BITS if value < 1 << bits)
