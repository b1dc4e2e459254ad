"""Which values of a data set's 16-bit images are black and white: learned from all of them, as the robot learns them
from its stream."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import NamedTuple

from dinov3_seg_ros.frames.image_files import ends_of_16_bits
from dinov3_seg_ros.frames.sources import HEAD_BYTES, may_have_16_bits
from dinov3_seg_ros.frames.value_range import FULL_RANGE, ValueEnds
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError
from training.data.reading.protocol import Sample

_READERS = 8
# A data set is opened once for each split and check.
_MOST_REMEMBERED = 4


class ImageValues(NamedTuple):
    """What the 16-bit images of a data set hold.

    Attributes:
        number: of these images; the others have 8 bits.
        ends: where their values lie; None where there are none.
    """

    number: int = 0
    ends: ValueEnds | None = None

    def range(self, choice: ValueRange) -> tuple[int, int]:
        """The values that become 0 and 255.

        Raises:
            DatasetError: the choice is ``auto``, and the values do not tell it.
        """
        if isinstance(choice, tuple):
            return choice
        if choice == "full" or self.ends is None:
            return FULL_RANGE
        learned = self.ends.sensor_range()
        if learned is None:
            low, high = self.ends.low, self.ends.high
            raise DatasetError(
                f"nearly all values of the 16-bit images lie between {low} and {high}, as a thermal camera's do; set "
                f"data.value_range to those that shall be black and white, such as [{low}, {high}], or to full"
            )
        return learned


_remembered: dict[tuple[object, ...], ImageValues] = {}


def image_values(samples: Sequence[Sample]) -> ImageValues:
    """Read the 16-bit images of a data set; images that cannot be read are left out.

    The result for the same unchanged files is kept while this process runs.
    """
    state = tuple(_state(sample) for sample in samples)
    if state not in _remembered:
        with ThreadPoolExecutor(_READERS) as readers:
            found = [ends for ends in readers.map(_ends, samples) if ends is not None]
        while len(_remembered) >= _MOST_REMEMBERED:
            del _remembered[next(iter(_remembered))]
        _remembered[state] = ImageValues(len(found), reduce(ValueEnds.joined, found)) if found else ImageValues()
    return _remembered[state]


def _state(sample: Sample) -> tuple[str, int, int]:
    """An image, and size and time of change of the file that it is in; zeros where there is none."""
    file = sample.image if sample.content is None else sample.labels
    try:
        status = file.stat()
    except OSError:
        return str(sample.image), 0, 0
    return str(sample.image), status.st_size, status.st_mtime_ns


def _ends(sample: Sample) -> ValueEnds | None:
    with contextlib.suppress(DatasetError, OSError):
        if sample.content is None or may_have_16_bits(sample.content(HEAD_BYTES)):
            return ends_of_16_bits(sample.source())
    return None
