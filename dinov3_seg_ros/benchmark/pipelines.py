"""What is measured: this package's pipeline, and what others that do the same work in the plain way have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
        knows_classes: whether its labels mean anything; made-up weights take as long as others.
    """

    name: str
    knows_classes: bool

    def run(self, frame: np.ndarray) -> np.ndarray:
        """Labels (H, W) of a frame (H, W, 3) uint8 RGB; the overlay is made as well, and dropped."""

    def forget(self) -> None:
        """Drop the durations so far, those of the first, slower frames."""

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """``{stage: {"median": ms, "p95": ms}}`` of the frames since."""


class TimedPipeline(ABC):
    """A `FramePipeline` whose stages run in this process.

    Attributes:
        times: where they are recorded.
    """

    knows_classes = True

    def __init__(self, times: StageTimes) -> None:
        self.times = times

    @abstractmethod
    def run(self, frame: np.ndarray) -> np.ndarray:
        """See `FramePipeline.run`."""

    def forget(self) -> None:
        """See `FramePipeline.forget`."""
        self.times.clear()

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """See `FramePipeline.stages_ms`."""
        return self.times.summary_ms()


class OurPipeline(TimedPipeline):
    """`pipeline.Segmenter` and `overlay.blend_overlay`, as the node runs them."""

    def __init__(self, segmenter: Segmenter, name: str = "dinov3_seg_ros") -> None:
        super().__init__(segmenter.times)
        self.name, self._segmenter = name, segmenter
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
