"""Segmentation metrics of a whole data set, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.support.errors import ImageError


class ConfusionMatrix:
    """Counts of (true class, predicted class) over a whole data set.

    All pixels of the data set are counted before IoU is computed. IoU averaged over batches or images is not mean IoU:
    a class that is absent from a batch would count as 0.

    Args:
        num_classes: number of classes. Pixels with a greater true value are ignored. Greater predictions (unlabelled)
            count as wrong.

    Attributes:
        counts: (num_classes, num_classes + 1); rows are true classes, the last column unlabelled predictions.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: NDArray[np.int64] = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count the pixels of one image.

        Args:
            truth: (H, W) unsigned integers, the true classes.
            prediction: (H, W) unsigned integers, the predicted classes.

        Raises:
            ImageError: the arrays differ in size.
        """
        if truth.shape != prediction.shape:
            raise ImageError(f"truth is {truth.shape} and prediction {prediction.shape}; both must be of one size")
        columns = self.num_classes + 1
        valid = truth < self.num_classes
        predicted = np.minimum(prediction[valid], self.num_classes).astype(np.int64)
        pairs = truth[valid].astype(np.int64) * columns + predicted
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class (num_classes,), 0..1; NaN for a class neither true nor predicted."""
        correct = self._correct()
        union = self.counts.sum(axis=1) + self.counts[:, : self.num_classes].sum(axis=0) - correct
        return ratio(correct, union)

    def accuracy(self) -> NDArray[np.float64]:
        """Share of each true class that is predicted (num_classes,), 0..1; NaN for a class that does not occur."""
        return ratio(self._correct(), self.counts.sum(axis=1))

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Summarise as ``miou``, ``macc``, ``aacc`` (0..1) and ``per_class_iou`` by name; None where undefined."""
        per_class = self.iou()
        return {
            "miou": mean_of_defined(per_class),
            "macc": mean_of_defined(self.accuracy()),
            "aacc": mean_of_defined(
                ratio(self._correct().sum(keepdims=True), self.counts.sum(keepdims=True).reshape(1))
            ),
            "per_class_iou": by_name(names, per_class),
        }

    def _correct(self) -> NDArray[np.int64]:
        return self.counts.diagonal()


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Divide two arrays of counts, of the same shape; NaN where ``whole`` is 0."""
    quotient: NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient


def mean_of_defined(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not NaN; None if all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    """Map each name to its value; NaN becomes None, which JSON can hold."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}
