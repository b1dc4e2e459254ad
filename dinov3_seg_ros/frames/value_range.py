"""Which values of a stream's 16-bit images are black and white.

A sensor of 10, 12 or 14 bits fills only a part of a 16-bit value. Scaled from the full range, its images would be
almost black, and the network would answer with confident nonsense.
"""

from __future__ import annotations

import logging

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
#: What ``full`` stands for.
FULL_RANGE = (0, 65535)


def sensor_range(least: int, most: int) -> tuple[int, int] | None:
    """The range that ``auto`` takes: 0 and the largest value of the smallest sensor that gives such values.

    Args:
        least, most: of the 16-bit values of one source.

    Returns:
        None where they are those of a thermal camera: only the user knows which of them are black and white.
    """
    high = (1 << _significant_bits(most)) - 1
    is_far_from_ends = least > high // 8 and most < high - high // 16
    if high >= 1 << (_LEAST_THERMAL_BITS - 1) and 0 < most - least < high // 16 and is_far_from_ends:
        return None
    return 0, high


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
    """

    def __init__(self, choice: ValueRange = "auto", source: str = "", is_whole: bool = True) -> None:
        self.choice = choice
        self._source, self._is_whole = source, is_whole
        self._least = self._most = self._bits = 0
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
        self._learn(int(colours.min()), int(colours.max()))
        learned = sensor_range(self._least, self._most)
        if learned is None:
            raise MessageError(
                "value range unknown",
                f"the 16-bit values lie between {self._least} and {self._most}, as a thermal camera's do; set "
                f"value_range to those that shall be black and white, such as value_range:=[{self._least}, "
                f"{self._most}], or to full",
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

    def _learn(self, least: int, most: int) -> None:
        bits = _significant_bits(most)
        is_dimmed = _LEAST_BITS_OF_ANOTHER_SOURCE <= bits <= self._bits - _BITS_OF_ANOTHER_SOURCE
        if is_dimmed or least >= 1 << self._bits:  # as for the first image, unless it is black
            self._least, self._most = least, most
        else:
            self._least, self._most = min(self._least, least), max(self._most, most)
        self._bits = _significant_bits(self._most)


def _significant_bits(value: int) -> int:
    """The bits of the smallest sensor that gives such a value."""
    return next(bits for bits in _BITS if value < 1 << bits)
