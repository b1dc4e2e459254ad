"""Run pipelines in turn over the same frames, and measure them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinov3_seg_ros import scenes
from dinov3_seg_ros.benchmark.timed_pipeline import FramePipeline, OurPipeline
from dinov3_seg_ros.support.timing import GPU_STAGES, STAGES, summarise_ms

_WARM_UP = 2
_DISTINCT_FRAMES = 8
# Before each frame, so that what the previous pipeline left behind (spinning threads, a message in flight) has ended.
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Measured:
    """The times and labels of one pipeline.

    Attributes:
        name: the pipeline's.
        stages_ms: ``{stage: {"median": ms, "p95": ms}}``; None for a stage of `timing.STAGES` that it does not have.
        seconds: of each frame, from the frame to labels and overlay.
        equal_labels: share of the pixels with the label that the first pipeline gives.
        classes_in_view: mean number of classes in a frame's labels.
    """

    name: str
    stages_ms: dict[str, dict[str, float] | None]
    seconds: list[float]
    equal_labels: float
    classes_in_view: float

    @property
    def total_ms(self) -> dict[str, float]:
        """Median and 95th percentile of a frame."""
        return summarise_ms(self.seconds)

    def outside_ms(self, *stages: str) -> float:
        """The sum of the medians of all stages but these."""
        return sum(times["median"] for stage, times in self.stages_ms.items() if times and stage not in stages)

    @property
    def outside_backbone(self) -> float:
        """The time outside the backbone, the heads included, as a share of the backbone's."""
        return self.outside_ms("backbone") / self.stage_ms("backbone")

    def stage_ms(self, stage: str) -> float:
        """The median of a stage; NaN where the pipeline does not have it."""
        times = self.stages_ms[stage]
        return float("nan") if times is None else times["median"]

    def times_faster_than(self, other: Measured) -> float:
        """The other's median frame over this one's."""
        return other.total_ms["median"] / self.total_ms["median"]

    def summary(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {
            "stages_ms": self.stages_ms,
            "total_ms": self.total_ms,
            "outside_backbone": round(self.outside_backbone, 4),
            "classes_in_view": round(self.classes_in_view, 1),
        }


def synthetic_frames(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Render up to ``count`` different rooms, but only a few, since rendering takes time: (H, W, 3) uint8 RGB."""
    views = (scenes.VIEWS_PER_SCENE * index for index in range(min(count, _DISTINCT_FRAMES)))
    return [scenes.sample("val", view, size)[0] for view in views]


def run_in_turn(pipelines: Sequence[FramePipeline], frames: Sequence[np.ndarray], count: int) -> list[Measured]:
    """Give each frame to each pipeline, one after the other, so that a busier minute slows all of them.

    Args:
        pipelines: names must differ.
        frames: (H, W, 3) uint8 RGB; reused from the start when they run out.
        count: how many turns to measure, at least 1.
    """
    names = [pipeline.name for pipeline in pipelines]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    equal: dict[str, list[float]] = {name: [] for name in names}
    in_view: dict[str, list[int]] = {name: [] for name in names}
    for index in range(-_WARM_UP, count):
        if index == 0:
            for pipeline in pipelines:
                pipeline.forget()
        frame = frames[index % len(frames)]
        first: np.ndarray | None = None
        for pipeline in pipelines:
            time.sleep(_PAUSE_S)
            start = time.perf_counter()
            labels = pipeline.run(frame)
            duration = time.perf_counter() - start
            first = labels if first is None else first
            if index >= 0:
                seconds[pipeline.name].append(duration)
                equal[pipeline.name].append(float((labels == first).mean()))
                in_view[pipeline.name].append(len(np.unique(labels)))
    return [_measured(p, seconds[p.name], equal[p.name], in_view[p.name]) for p in pipelines]


def overlapped_rate(pipeline: OurPipeline, frames: Sequence[np.ndarray], count: int) -> float:
    """Turns per second where a second thread finishes each turn while the next one starts, as in the node on a GPU.

    Args:
        pipeline: the one to measure.
        frames: (H, W, 3) uint8 RGB; reused from the start when they run out.
        count: how many turns to measure, at least 1.
    """
    with ThreadPoolExecutor(1) as finisher:
        before, start = pipeline.start(frames[0]), time.perf_counter()
        for index in range(1, count + 1):
            finishing = finisher.submit(pipeline.finish, before)
            before = pipeline.start(frames[index % len(frames)])
            finishing.result()
        rate = count / (time.perf_counter() - start)
        pipeline.finish(before)
    return rate


def _measured(pipeline: FramePipeline, seconds: list[float], equal: list[float], in_view: list[int]) -> Measured:
    found = pipeline.stages_ms()
    stages_ms = {stage: found.get(stage) for stage in GPU_STAGES if stage in STAGES or stage in found}
    return Measured(pipeline.name, stages_ms, seconds, float(np.mean(equal)), float(np.mean(in_view)))
