"""Segmentation metrics over a whole data set, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov3_seg_ros.support.errors import ImageError


class ConfusionMatrix:
    """Counts of (true class, predicted class), accumulated over a whole data set.

    IoU averaged over batches or images is not mean IoU: a class absent from a batch would count as 0. Here every pixel
    of the set is counted first.

    Args:
        num_classes: number of classes. True values beyond it are ignored pixels; predictions beyond it (unlabelled)
            count as wrong for the true class.

    Attributes:
        counts: (num_classes, num_classes + 1) int64; rows are true classes, the last column unlabelled predictions.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image; both arrays (H, W) of unsigned integers.

        Raises:
            ImageError: they differ in size.
        """
        if truth.shape != prediction.shape:
            raise ImageError(f"truth is {truth.shape} and prediction {prediction.shape}; both must be of one size")
        columns = self.num_classes + 1
        valid = truth < self.num_classes
        predicted = np.minimum(prediction[valid], self.num_classes).astype(np.int64)
        pairs = truth[valid].astype(np.int64) * columns + predicted
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def iou(self) -> np.ndarray:
        """(num_classes,) float64 intersection over union, 0..1; NaN where a class occurs in neither."""
        correct = self._correct()
        union = self.counts.sum(axis=1) + self.counts[:, : self.num_classes].sum(axis=0) - correct
        return ratio(correct, union)

    def accuracy(self) -> np.ndarray:
        """(num_classes,) float64 share of each true class found, 0..1; NaN where a class does not occur."""
        return ratio(self._correct(), self.counts.sum(axis=1))

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """``miou``, ``macc``, ``aacc`` as fractions 0..1 and ``per_class_iou`` by name; None where undefined."""
        per_class = self.iou()
        return {
            "miou": mean_of_defined(per_class),
            "macc": mean_of_defined(self.accuracy()),
            "aacc": mean_of_defined(
                ratio(self._correct().sum(keepdims=True), self.counts.sum(keepdims=True).reshape(1))
            ),
            "per_class_iou": by_name(names, per_class),
        }

    def _correct(self) -> np.ndarray:
        return np.diagonal(self.counts)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Quotient of two arrays of counts, float64; NaN where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def mean_of_defined(values: np.ndarray) -> float | None:
    """Mean of what is not NaN; None where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    """A value for each name, None for NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}
