"""Boundary IoU, beside the scores of the confusion matrix in `dinov3_seg_ros.support.metrics`."""

from __future__ import annotations

import cv2
import numpy as np

from dinov3_seg_ros.frames.classes import label_type
from dinov3_seg_ros.support.errors import ImageError


def boundary_counts(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of bands along the inside of contours, whose ratio over a data set is its boundary IoU.

    Bowen Cheng, Ross Girshick, Piotr Dollár, Alexander C. Berg, Alexander Kirillov: Boundary IoU: Improving
    Object-Centric Image Segmentation Evaluation, 2021, arXiv:2103.16562. The edge of the image counts as a contour.
    Ignored pixels belong to no class, in the prediction too, so that they change nothing.

    Args:
        truth, prediction: (H, W) unsigned integers of one image. True values from ``num_classes`` on are ignored
            pixels, predictions from it on unlabelled.
        num_classes: number of classes.
        width: width of the bands as a share of the image's diagonal; at least one pixel.

    Returns:
        Intersection and union of the true and the predicted bands, each (num_classes,).

    Raises:
        ImageError: the arrays differ in size.
    """
    if truth.shape != prediction.shape:
        raise ImageError(f"truth is {truth.shape} and prediction {prediction.shape}; both must be of one size")
    pixels = max(round(width * float(np.hypot(*truth.shape))), 1)
    true = _bands(truth, num_classes, pixels)
    predicted = _bands(np.where(truth < num_classes, prediction, num_classes), num_classes, pixels)
    common, of_truth, of_prediction = (
        np.bincount(labels.ravel(), minlength=num_classes + 1)[:num_classes]
        for labels in (true[true == predicted], true, predicted)
    )
    return common, of_truth + of_prediction - common


def _bands(labels: np.ndarray, outside: int, pixels: int) -> np.ndarray:
    """Labels within some rows and columns of another label or of the outside; elsewhere the label of the outside.

    A pixel lies inside where the smallest and the largest label around it are equal: two filters for all classes.
    """
    labels = np.minimum(labels, outside).astype(label_type(outside))
    framed = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=outside)
    square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    inside = (cv2.erode(framed, square) == cv2.dilate(framed, square))[1:-1, 1:-1]
    return np.where(inside, outside, labels)
