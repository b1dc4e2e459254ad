"""The pipelines that are timed: what all have in common, and this package's own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import cv2
import numpy as np

from dinov3_seg_ros import decode
from dinov3_seg_ros.frames.overlay import blend_overlay
from dinov3_seg_ros.segmenter import Segmenter, StartedSegmentation
from dinov3_seg_ros.support.timing import StageTimes

_ALPHA = 0.5

#: A frame and its segmentation in flight.
Started = tuple[np.ndarray, StartedSegmentation]


class FramePipeline(ABC):
    """From a frame to its labels and overlay.

    Attributes:
        name: for people.
        knows_classes: whether its labels mean anything; random weights take as long as trained ones.
    """

    name: str
    knows_classes = True

    @abstractmethod
    def run(self, frame: np.ndarray) -> np.ndarray:
        """Return labels (H, W) of a frame (H, W, 3) uint8 RGB; the overlay is computed as well and dropped."""

    @abstractmethod
    def forget(self) -> None:
        """Forget the durations so far, those of the first, slower frames."""

    @abstractmethod
    def stages_ms(self) -> dict[str, dict[str, float]]:
        """``{stage: {"median": ms, "p95": ms}}`` of the frames since `forget`."""


class TimedPipeline(FramePipeline):
    """A pipeline whose stages run in this process.

    Attributes:
        times: where they are recorded.
    """

    def __init__(self, times: StageTimes) -> None:
        self.times = times

    def forget(self) -> None:
        """See `FramePipeline.forget`."""
        self.times.clear()

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """See `FramePipeline.stages_ms`."""
        return self.times.summary_ms()


class _TurnTimes(StageTimes):
    """Durations of whole turns: the sum of a stage that runs several times in a turn, once for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self._turn: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._turn[name] = self._turn.get(name, 0.0) + seconds

    def end_turn(self) -> None:
        with self._lock:
            turn, self._turn = self._turn, {}
        for name, seconds in turn.items():
            super().add(name, seconds)


class OurPipeline(TimedPipeline):
    """`segmenter.Segmenter` and `overlay.blend_overlay`, as the node runs them.

    Args:
        segmenter: is measured.
        name: for people.
        batch: number of frames in a turn, all alike, computed in one pass.
    """

    def __init__(self, segmenter: Segmenter, name: str = "dinov3_seg_ros", batch: int = 1) -> None:
        self._turn_times = _TurnTimes()
        super().__init__(self._turn_times)
        segmenter.times = self._turn_times
        self.name, self._segmenter, self._batch = name, segmenter, batch
        self._palette = next(iter(segmenter.manifests.values())).classes.palette

    def run(self, frame: np.ndarray) -> np.ndarray:
        """See `FramePipeline.run`; the whole turn, and the labels of its first frame."""
        return self.finish(self.start(frame))

    def forget(self) -> None:
        """See `FramePipeline.forget`; what is measured afterwards is decoded by the compiled kernel."""
        decode.backend(wait=True)
        super().forget()

    def start(self, frame: np.ndarray) -> Started:
        """Begin a turn."""
        return frame, self._segmenter.start([frame] * self._batch)

    def finish(self, started: Started) -> np.ndarray:
        """End a turn: labels (H, W) of its first frame."""
        frame, segmentation = started
        labels = [result.labels for result in segmentation.finish()]
        with self.times.stage("overlay"):
            for of_frame in labels:
                blend_overlay(frame, of_frame, self._palette, _ALPHA)
        self._turn_times.end_turn()
        return labels[0]


def blend_class_by_class(frame: np.ndarray, labels: np.ndarray, palette: list[tuple[int, int, int]]) -> np.ndarray:
    """Draw the overlay as most projects do: blend the whole picture once for each class in view."""
    picture: np.ndarray = frame.astype(np.float32)
    for label in np.unique(labels):
        coloured = picture.copy()
        coloured[labels == label] = palette[label]
        picture = cv2.addWeighted(coloured, _ALPHA, picture, 1.0 - _ALPHA, 0.0)
    return picture.astype(np.uint8)
