"""What is measured: this package's pipeline, and two others that do the same work in the plain way."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np

from dinov3_seg_ros.overlay import blend_overlay
from dinov3_seg_ros.pipeline import Segmenter
from dinov3_seg_ros.timing import StageTimes

_ALPHA = 0.5


class FramePipeline(Protocol):
    """From a frame to its labels and overlay.

    Attributes:
        name: for people.
        times: duration of each stage.
    """

    name: str
    times: StageTimes

    def run(self, frame: np.ndarray) -> np.ndarray:
        """Labels (H, W) of a frame (H, W, 3) uint8 RGB; the overlay is made as well, and dropped."""


class OurPipeline:
    """`pipeline.Segmenter` and `overlay.blend_overlay`, as the node runs them."""

    name = "dinov3_seg_ros"

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter, self.times = segmenter, segmenter.times
        self._palette = next(iter(segmenter.manifests.values())).classes.palette

    def run(self, frame: np.ndarray) -> np.ndarray:
        """See `FramePipeline.run`."""
        labels = self._segmenter.segment([frame])[0].labels
        with self.times.stage("overlay"):
            blend_overlay(frame, labels, self._palette, _ALPHA)
        return labels


def blend_class_by_class(frame: np.ndarray, labels: np.ndarray, palette: list[tuple[int, int, int]]) -> np.ndarray:
    """The overlay that one finds in most projects: one blend of the whole picture for each class in view."""
    picture = frame.astype(np.float32)
    for label in np.unique(labels):
        coloured = picture.copy()
        coloured[labels == label] = palette[label]
        picture = cv2.addWeighted(coloured, _ALPHA, picture, 1.0 - _ALPHA, 0.0)
    return picture.astype(np.uint8)
