"""How the picture of a camera moves from one frame to the next: dense optical flow, and where it can be trusted."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

# A quarter of 640 pixels.
_LONGEST_SIDE = 160
# The flow's patches have 8 pixels, and its coarsest pyramid level needs more than one of them.
_SHORTEST_SIDE = 32
# Of two frames of one scene it is above 0.9 as a rule.
_LEAST_AGREEMENT = 0.6
# Where the carried picture differs by this much in brightness, of 255, it agrees by exp(-1).
_BRIGHTNESS = 30.0
# Of the pyramid: half of the reduced frame. The fast presets end at a quarter, where small things move with what is
# behind them.
_FINEST_SCALE = 1


class Motion(NamedTuple):
    """The way back from a frame to the one before.

    Attributes:
        flow: (h, w, 2) float32; the content of pixel (x, y) of the reduced frame lay at (x, y) + flow[y, x] before.
        agreement: (h, w) float32 from 0 to 1: how well the brightness fits there; 0 where the content comes from
            outside of the frame before.
    """

    flow: np.ndarray
    agreement: np.ndarray

    @property
    def is_cut(self) -> bool:
        """Whether the two frames show different scenes."""
        return float(self.agreement.mean()) < _LEAST_AGREEMENT


class MotionEstimator:
    """Finds the motion between the frames of one camera, with OpenCV's DIS flow.

    Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016.

    Args:
        longest_side: frames are reduced to this length of their longer side, pixels.
        preset: of the flow: one of OpenCV's ``DISOPTICAL_FLOW_PRESET_...``.
    """

    def __init__(self, longest_side: int = _LONGEST_SIDE, preset: int = cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST) -> None:
        self._longest_side = longest_side
        self._dis = cv2.DISOpticalFlow.create(preset)
        self._dis.setFinestScale(_FINEST_SCALE)
        self._before: np.ndarray | None = None
        self._size = (0, 0)

    def follow(self, image: np.ndarray) -> Motion | None:
        """Take the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            The motion since the frame before; None for the first frame, for one of another size than the last, and for
            frames too narrow to find motion in.
        """
        before, known_size = self._before, self._size
        self._before, self._size = self._reduced(image), (image.shape[0], image.shape[1])
        if before is None or known_size != self._size or min(before.shape) < _SHORTEST_SIDE:
            return None
        flow = self._dis.calc(self._before, before, np.zeros((*before.shape, 2), np.float32))
        x, y = positions(self._before.shape)
        x, y = x + flow[..., 0], y + flow[..., 1]
        carried = cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        difference = cv2.absdiff(carried, self._before).astype(np.float32)
        agreement = np.exp(-np.square(difference / _BRIGHTNESS))
        agreement *= is_inside(x, y, before.shape)
        return Motion(flow, agreement)

    def _reduced(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        scale = min(1.0, self._longest_side / max(height, width))
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        return cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


@lru_cache(maxsize=8)
def positions(size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The x and the y of the pixels of a picture of (height, width): each (height, width) float32, read-only."""
    y, x = np.indices(size[:2], np.float32)
    for array in (x, y):
        array.setflags(write=False)
    return x, y


def is_inside(x: np.ndarray, y: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Whether positions lie on a picture of (height, width), to its pixels' outer edges."""
    return (x >= -0.5) & (x <= size[1] - 0.5) & (y >= -0.5) & (y <= size[0] - 0.5)
