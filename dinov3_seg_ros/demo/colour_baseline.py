"""A per-pixel colour classifier: the score of a segmentation that knows colours and nothing else."""

from __future__ import annotations

import numpy as np

_BINS = 16


class ColourClassifier:
    """Gives each pixel the most frequent class of its bin in a 16x16x16 RGB histogram of the training images.

    Args:
        num_classes: number of classes; mask values beyond it are ignored.
    """

    def __init__(self, num_classes: int) -> None:
        self._counts = np.zeros((_BINS**3, num_classes), np.int64)

    def fit(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Count one image (H, W, 3) uint8 RGB and its mask (H, W) uint8."""
        bins, num_classes = self._counts.shape
        valid = mask < num_classes
        pairs = _bin_of(image)[valid] * num_classes + mask[valid]
        self._counts += np.bincount(pairs, minlength=bins * num_classes).reshape(bins, num_classes)

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Classify (H, W, 3) uint8 RGB into (H, W) uint8 class ids. Unseen bins get the most frequent class of all."""
        table = self._counts.argmax(axis=1)
        table[self._counts.sum(axis=1) == 0] = self._counts.sum(axis=0).argmax()
        labels: np.ndarray = table.astype(np.uint8)[_bin_of(image)]
        return labels


def _bin_of(image: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(image.astype(np.int64) * _BINS // 256, -1, 0)
    bins: np.ndarray = (red * _BINS + green) * _BINS + blue
    return bins
