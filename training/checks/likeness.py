"""Finds images that look alike: frames of one video, and versions of one image that were changed a little."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

#: Two images are near-duplicates where the correlation of their thumbnails is above this. On the frames of an indoor
#: video in three augmented versions, all versions of a frame are above it, and none that are 30 frames apart.
NEAR_DUPLICATE = 0.95

_SIDE = 16
# Thumbnails of less contrast, in grey levels, show nothing that could be compared.
_LEAST_CONTRAST = 2.0
_ROWS = 1024


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Feature of an image (H, W, 3) uint8 RGB, (256,) float32: its grey thumbnail with mean 0 and length 1.

    All zeros where the image is too even to be compared.
    """
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey -= grey.mean()
    if grey.std() < _LEAST_CONTRAST:
        return np.zeros(_SIDE * _SIDE, np.float32)
    unit: np.ndarray = (grey / np.linalg.norm(grey)).ravel()
    return unit


def near_duplicates(of: Sequence[np.ndarray], among: Sequence[np.ndarray]) -> list[tuple[int, int, float]]:
    """Images that have a near-duplicate, mirrored or not, in another set.

    Args:
        of, among: thumbnails of the two sets.

    Returns:
        For each image of the first set that has one: its index, the most similar image's index in the second set, and
        the correlation of the two.
    """
    if not len(of) or not len(among):
        return []
    others, found = np.stack(among), []
    for start in range(0, len(of), _ROWS):
        own = np.stack(of[start : start + _ROWS])
        mirrored = own.reshape(-1, _SIDE, _SIDE)[:, :, ::-1].reshape(len(own), -1)
        likeness = np.maximum(own @ others.T, mirrored @ others.T)
        nearest = likeness.argmax(1)
        found += [
            (start + row, int(column), float(likeness[row, column]))
            for row, column in enumerate(nearest)
            if likeness[row, column] > NEAR_DUPLICATE
        ]
    return found
