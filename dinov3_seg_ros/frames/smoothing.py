"""Masks that are steady over time: each frame's logits are averaged with those of the frames before.

The logits before are carried along by the optical flow between the frames, and count where the picture agrees. So
labels stop flickering where the network is undecided, and nothing is published later than without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np

from dinov3_seg_ros.frames.motion import Motion, MotionEstimator, is_inside, positions

#: After a longer gap between the stamps of two frames, or a step back, nothing is carried along, seconds.
LONGEST_GAP_S = 0.5
# The logits that are kept are finer than the network's, so that carrying them along again and again does not blur them:
# by the largest factor with which they have at most so many values.
_FACTORS, _MOST_VALUES = (4, 2), 1 << 19


class Logits(NamedTuple):
    """What the decode reads.

    Attributes:
        values: (1, C, h, w) floating, a NumPy array or a PyTorch tensor.
        window: (top, left, height, width) of the frame in cells of ``values``; see `decode.upsample_argmax`.
    """

    values: Any
    window: tuple[float, float, float, float]


class TemporalSmoother:
    """Smooths the logits of one camera's frames over time.

    With ``x`` the logits of a frame, ``y`` what is returned, and ``a`` how well the pictures agree, from 0 to 1:
    ``y = x + weight * a ** 2 * (carried y of the frame before - x)``. A first frame is returned as it is. So is one
    after a gap or a step back in time, a cut to another scene, or a change of the frame's or the network's size.

    Attributes:
        weight: of the frames before, from 0 up to but not including 1; may be changed at any time.
        gaps: how many frames in a row, the newest one last, came after a gap.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.gaps = 0
        self._motion = MotionEstimator()
        self._seconds = -math.inf
        self._before: dict[str, Logits] = {}

    def smooth(self, image: np.ndarray, seconds: float, heads: Mapping[str, Logits]) -> dict[str, Logits]:
        """Take the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            seconds: the frame's stamp.
            heads: the logits of each head, by its name.

        Returns:
            The smoothed logits of each head: where something was carried along, as a NumPy array float32, and finer
            than those given.
        """
        motion = self._motion.follow(image)
        gap, self._seconds = seconds - self._seconds, seconds
        self.gaps = self.gaps + 1 if gap > LONGEST_GAP_S else 0
        before, self._before = self._before, {name: _finer(logits) for name, logits in heads.items()}
        if motion is None or motion.is_cut or not 0 <= gap <= LONGEST_GAP_S:
            return dict(heads)
        smoothed = dict(heads)
        for name, logits in self._before.items():
            known = before.get(name)
            if known is not None and known.values.shape == logits.values.shape and known.window == logits.window:
                _carry(known, motion, self.weight, logits)
                smoothed[name] = logits
        return smoothed


def _finer(logits: Logits) -> Logits:
    """A copy in float32, enlarged bilinearly by one of `_FACTORS`."""
    values = logits.values if isinstance(logits.values, np.ndarray) else logits.values.float().cpu().numpy()
    factor = next((factor for factor in _FACTORS if values.size * factor**2 <= _MOST_VALUES), 1)
    height, width = values.shape[2] * factor, values.shape[3] * factor
    finer = np.empty((1, values.shape[1], height, width), np.float32)
    for values_of_class, finer_of_class in zip(values[0].astype(np.float32, copy=False), finer[0], strict=True):
        cv2.resize(values_of_class, (width, height), dst=finer_of_class, interpolation=cv2.INTER_LINEAR)
    top, left, rows, columns = (factor * cells for cells in logits.window)
    return Logits(finer, (top, left, rows, columns))


def _carry(before: Logits, motion: Motion, weight: float, logits: Logits) -> None:
    """Mix the logits of the frame before into those of this one, in place."""
    size = logits.values.shape[2:]
    x, y = positions(size)
    top, left, height, width = logits.window
    # A cell's place in the reduced frame, whose pixels have their centres at whole numbers, as the cells have.
    rows, columns = motion.flow.shape[:2]
    frame_x = (x + 0.5 - left) * (columns / width) - 0.5
    frame_y = (y + 0.5 - top) * (rows / height) - 0.5
    flow = cv2.remap(motion.flow, frame_x, frame_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    agreement = cv2.remap(motion.agreement, frame_x, frame_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    from_x = x + flow[..., 0] * (width / columns)
    from_y = y + flow[..., 1] * (height / rows)
    share = weight * np.square(agreement) * is_inside(from_x, from_y, size)
    where, fractions = cv2.convertMaps(from_x, from_y, cv2.CV_16SC2)
    for old, new in zip(before.values[0], logits.values[0], strict=True):
        carried = cv2.remap(old, where, fractions, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        carried -= new
        carried *= share
        new += carried
