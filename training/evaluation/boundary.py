"""Boundary IoU, beside the scores of the confusion matrix in `dinov3_seg_ros.support.metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from dinov3_seg_ros.support.errors import ImageError
from dinov3_seg_ros.support.metrics import by_name, mean_of_defined, ratio


class BoundaryIoU:
    """IoU of bands along the inside of contours, accumulated over a whole data set.

    Bowen Cheng, Ross Girshick, Piotr Dollár, Alexander C. Berg, Alexander Kirillov: Boundary IoU: Improving
    Object-Centric Image Segmentation Evaluation, 2021, arXiv:2103.16562. The edge of the image counts as a contour.
    Ignored pixels belong to no class, in the prediction too, so that they change nothing.

    Args:
        num_classes: number of classes. True values from it on are ignored pixels, predictions from it on unlabelled.
        width: width of the bands as a share of the image's diagonal; at least one pixel.
    """

    def __init__(self, num_classes: int, width: float = 0.02) -> None:
        self.num_classes, self.width = num_classes, width
        self._intersection = np.zeros(num_classes, np.int64)
        self._union = np.zeros(num_classes, np.int64)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image; both arrays (H, W) of unsigned integers.

        Raises:
            ImageError: the arrays differ in size.
        """
        intersection, union = self.counts(truth, prediction)
        self._intersection += intersection
        self._union += union

    def counts(self, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Intersection and union of the bands of one image, each (num_classes,); see `update`."""
        if truth.shape != prediction.shape:
            raise ImageError(f"truth is {truth.shape} and prediction {prediction.shape}; both must be of one size")
        width = max(round(self.width * float(np.hypot(*truth.shape))), 1)
        true_bands = self._bands(truth, width)
        predicted_bands = self._bands(np.where(truth < self.num_classes, prediction, self.num_classes), width)
        common = self._count(true_bands[true_bands == predicted_bands])
        return common, self._count(true_bands) + self._count(predicted_bands) - common

    def iou(self) -> np.ndarray:
        """(num_classes,) float64, 0..1; NaN where a class occurs in neither."""
        return ratio(self._intersection, self._union)

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """``boundary_miou``, a fraction 0..1, and ``per_class_boundary_iou`` by name; None where undefined."""
        per_class = self.iou()
        return {"boundary_miou": mean_of_defined(per_class), "per_class_boundary_iou": by_name(names, per_class)}

    def _bands(self, labels: np.ndarray, width: int) -> np.ndarray:
        """Labels within ``width`` rows and columns of another label or of the outside; num_classes elsewhere.

        A pixel lies inside where the smallest and the largest label around it are equal: two filters for all classes.
        """
        outside = self.num_classes
        labels = np.minimum(labels, outside).astype(np.uint8 if outside <= 255 else np.uint16)
        framed = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=outside)
        square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        inside = (cv2.erode(framed, square) == cv2.dilate(framed, square))[1:-1, 1:-1]
        return np.where(inside, outside, labels)

    def _count(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels.ravel(), minlength=self.num_classes + 1)[: self.num_classes]
