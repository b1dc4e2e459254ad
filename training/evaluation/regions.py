"""Regions of a true mask in which an evaluation looks closer: near class boundaries, and thin objects."""

from __future__ import annotations

import cv2
import numpy as np

from dinov3_seg_ros.frames.classes import label_type, unlabelled_value


def near_boundary(truth: np.ndarray, num_classes: int, pixels: int) -> np.ndarray:
    """Find the labelled pixels within some pixels of a true class boundary: that many on either side of it.

    Args:
        truth: (H, W) unsigned integers; values from ``num_classes`` on are ignored, and make no boundary.
        num_classes: number of classes.
        pixels: width of the band on each side, in rows and columns, at least 1.

    Returns:
        (H, W) bool.
    """
    smallest, largest = _range_of_labels(truth, num_classes, pixels)
    near: np.ndarray = (smallest != largest) & (truth < num_classes)
    return near


def thin(truth: np.ndarray, num_classes: int, radius: int) -> np.ndarray:
    """Find the labelled pixels of thin objects: those that no square of one class covers.

    This is what a morphological opening of each class removes. Ignored pixels and the outside fit any class.

    Args:
        truth: see `near_boundary`.
        num_classes: number of classes.
        radius: the square has 2 * radius + 1 rows and columns; objects narrower than that are thin. At least 1.

    Returns:
        (H, W) bool.
    """
    # A square may reach over the image's border, where its centre lies outside.
    framed = np.pad(truth, radius, constant_values=unlabelled_value(num_classes))
    smallest, largest = _range_of_labels(framed, num_classes, radius)
    centres = (smallest >= largest).astype(np.uint8)
    covered = cv2.dilate(centres, _square(radius))[radius:-radius, radius:-radius]
    found: np.ndarray = (covered == 0) & (truth < num_classes)
    return found


def _range_of_labels(truth: np.ndarray, num_classes: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest label in the square around each pixel, without ignored pixels."""
    dtype = label_type(num_classes)
    labelled, top = truth < num_classes, np.iinfo(dtype).max
    smallest = cv2.erode(np.where(labelled, truth, top).astype(dtype), _square(radius))
    largest = cv2.dilate(np.where(labelled, truth, 0).astype(dtype), _square(radius))
    return smallest, largest


def _square(radius: int) -> np.ndarray:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
