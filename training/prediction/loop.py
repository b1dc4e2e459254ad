"""The loop over frames, in whatever process it runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.segmenter import Segmenter
from training.evaluation.flicker import Flicker
from training.evaluation.inference import AveragingSegmenter
from training.prediction.inputs import Source
from training.prediction.outputs import FrameWriter
from training.prediction.settings import PredictionSettings


@dataclass
class Prediction:
    """The outcome of a run.

    Attributes:
        frames: number of segmented frames.
        seconds: their duration with reading and writing, without the start.
        segmenting_seconds: the part from image to labels.
        unreadable: path of each file that could not be read -> reason.
        interrupted: whether the user ended the run.
        flicker: share of pixels whose label changes where the picture does not; None if it was not measured.
        timed_frames: number of frames that the durations are of; fewer than all where a run was resumed.
    """

    frames: int = 0
    seconds: float = 0.0
    segmenting_seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    flicker: float | None = None
    timed_frames: int = 0

    def summary(self) -> dict[str, Any]:
        """The content of the JSON file. Rates are in frames per second, None if there was no frame."""
        rates = {
            "frames_per_second": self.seconds,
            "segmenting_frames_per_second": self.segmenting_seconds,
        }
        timed = self.timed_frames
        return {
            "frames": self.frames,
            **{name: round(timed / seconds, 2) if timed else None for name, seconds in rates.items()},
            "flicker": self.flicker,
            "interrupted": self.interrupted,
            "unreadable": self.unreadable,
        }


def segment_frames(
    segmenter: Segmenter | AveragingSegmenter,
    source: Source,
    writer: FrameWriter,
    settings: PredictionSettings,
    done: Prediction,
    after_frame: Callable[[], None] = lambda: None,
) -> None:
    """Segment frames and write what is wanted of them.

    Args:
        segmenter: of one bundle, warmed up.
        source: its frames are consumed.
        writer: gets each frame.
        settings: the same that the writer has; ``inference`` is the segmenter's and not read here.
        done: is brought up to date after each frame, so that it holds when an exception ends the loop.
        after_frame: called after each frame.

    Raises:
        DatasetError: a stream cannot be opened.
        OutputError: something cannot be written.
    """
    done.unreadable = source.unreadable
    smoother = TemporalSmoother(settings.temporal_smoothing) if source.rate and settings.temporal_smoothing else None
    flicker = Flicker() if source.rate and settings.flicker else None
    started = time.perf_counter()
    try:
        frames = itertools.islice(source.frames, settings.frames)
        while batch := list(itertools.islice(frames, segmenter.max_batch)):
            before = time.perf_counter()
            segmentations = segmenter.segment([image for _, image in batch])
            if smoother is not None and source.rate is not None:
                segmentations = [
                    segmentation.smoothed(smoother, image, (done.frames + number) / source.rate)
                    for number, ((_, image), segmentation) in enumerate(zip(batch, segmentations, strict=True))
                ]
            for segmentation in segmentations:
                if settings.confidence:
                    _ = segmentation.confidence  # read first, it gives the labels as well
                _ = segmentation.labels
            done.segmenting_seconds += time.perf_counter() - before
            for (name, image), segmentation in zip(batch, segmentations, strict=True):
                writer.write(name, image, segmentation)
                if flicker is not None:
                    flicker.update(image, segmentation.labels)
                done.frames += 1
                done.timed_frames += 1
                after_frame()
    finally:
        done.seconds = time.perf_counter() - started
        done.flicker = flicker.share() if flicker is not None else None
