"""How much labels flicker from one frame of a sequence to the next."""

from __future__ import annotations

import cv2
import numpy as np

from dinov3_seg_ros.frames.motion import MotionEstimator, positions

# Finer than the flow that smooths masks, so that its errors are not taken for steady labels.
_LONGEST_SIDE = 640
_LEAST_AGREEMENT = 0.5


class Flicker:
    """The share of pixels whose label changes although nothing does.

    A pixel is compared with the one that optical flow finds for it in the frame before. It counts where the brightness
    of both agrees and, with truths, where both have the same true class.
    """

    def __init__(self) -> None:
        self._motion = MotionEstimator(_LONGEST_SIDE, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._before: tuple[np.ndarray, np.ndarray | None] | None = None
        self._changed = self._compared = 0

    def update(self, image: np.ndarray, labels: np.ndarray, truth: np.ndarray | None = None) -> None:
        """Take the next frame. After a cut to another scene, or a change of the image's size, nothing is compared.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: (h, w) class ids.
            truth: (h, w) class ids; pixels without one hold 255 (65535 where 16 bits are used).
        """
        motion, before = self._motion.follow(image), self._before
        self._before = labels, truth
        if motion is None or motion.is_cut or before is None:
            return
        size = labels.shape[::-1]
        scale = np.divide(size, motion.flow.shape[1::-1]).astype(np.float32)
        flow = cv2.resize(motion.flow, size, interpolation=cv2.INTER_LINEAR) * scale
        counts = cv2.resize(motion.agreement, size, interpolation=cv2.INTER_LINEAR) > _LEAST_AGREEMENT
        x, y = positions(labels.shape)
        x, y = x + flow[..., 0], y + flow[..., 1]
        if truth is not None and before[1] is not None:
            counts &= (_carried(before[1], x, y) == truth) & (truth != np.iinfo(truth.dtype).max)
        self._changed += int(np.count_nonzero(counts & (_carried(before[0], x, y) != labels)))
        self._compared += int(np.count_nonzero(counts))

    def share(self) -> float | None:
        """The share, 0..1; None where no two frames could be compared."""
        return self._changed / self._compared if self._compared else None


def _carried(labels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cv2.remap(labels, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
