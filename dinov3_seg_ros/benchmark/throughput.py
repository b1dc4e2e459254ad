"""The highest rate of a camera at which the node drops fewer than one frame in twenty.

The measure of NVIDIA's ros2_benchmark: a camera sends frames at a fixed rate and does not wait. The rate is raised and
lowered until the highest one is found that still loses fewer than 5 % of the frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3_seg_ros.benchmark.measurement import synthetic_frames
from dinov3_seg_ros.benchmark.session import node_of
from dinov3_seg_ros.benchmark.trial import Trial
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.support.errors import TransportError

if TYPE_CHECKING:
    import numpy as np

# The search ends when the lowest rate that failed is so little above the highest that was held.
_PRECISION = 1.02
_STEP, _MOST_TRIALS = 1.5, 16
# The last trial is longer than the others, which may have been lucky.
_FINAL = 4.0
# Of a slow network; among fewer a single drop would decide.
_LEAST_FRAMES = 40
# A camera that reaches less than this share of the rate asked for is itself the limit.
_REACHED = 0.97
_TINY = 1e-9


def measure(path: Path, compute: ComputeOptions, frame_size: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Search the highest rate that a node holds.

    Args:
        path: folder of the bundle that the node serves.
        compute: how it computes.
        frame_size: (height, width) of the synthetic frames, pixels.
        seconds: see `search`; a slow node gets as many as 40 frames take.

    Returns:
        For JSON: ``rate_hz``, ``drops`` (share of the frames, 0..1), ``sent``, ``received``, ``latency_ms`` of the last
        trial, which is the longest; ``trials``, every one in order; ``limited_by_camera``, whether the camera could not
        send faster.

    Raises:
        TransportError: there is no ROS 2, the node cannot be run, or it holds no rate.
    """
    bundle, frames = load_bundle(path), synthetic_frames(frame_size, 8)
    with node_of(bundle, compute, frames[0]) as node:
        first_hz = 1.0 / _seconds_of_one(node.run, frames)
        trials: list[Trial] = []

        def stream(rate_hz: float, length_s: float) -> Trial:
            trials.append(node.stream(frames, rate_hz, max(length_s, _LEAST_FRAMES / rate_hz)))
            return trials[-1]

        found, limited = search(stream, first_hz, seconds)
    return {
        "bundle": str(path),
        "frame_size": list(frame_size),
        **_summary(found),
        "limited_by_camera": limited,
        "trials": [_summary(trial) for trial in trials],
    }


def search(stream: Callable[[float, float], Trial], first_hz: float, seconds: float) -> tuple[Trial, bool]:
    """Find the highest rate that is held.

    Args:
        stream: sends frames at a rate, Hz, for so many seconds.
        first_hz: the rate to begin with.
        seconds: the length of a trial; the last one has four times as many.

    Returns:
        The last and longest trial, and whether the camera could not send faster.

    Raises:
        TransportError: no rate was held.
    """
    held, failed, rate_hz, limited = 0.0, math.inf, first_hz, False
    for _ in range(_MOST_TRIALS):
        trial = stream(rate_hz, seconds)
        if trial.is_held:
            held, limited = trial.rate_hz, trial.rate_hz < _REACHED * rate_hz
        else:
            failed = trial.rate_hz
        if limited or failed / max(held, _TINY) <= _PRECISION:
            break
        rate_hz = _between(held, failed)
    for _ in range(_MOST_TRIALS if held else 0):
        trial = stream(held, _FINAL * seconds)
        if trial.is_held:
            return trial, limited
        failed = trial.rate_hz
        held /= _PRECISION
    raise TransportError(f"the node drops 5 % of the frames even at {failed:.2f} Hz; is the machine busy?")


def _between(held: float, failed: float) -> float:
    """The rate to try next, between the highest that was held (0: none) and the lowest that failed (infinity: none)."""
    if not held:
        return failed / _STEP
    return held * _STEP if math.isinf(failed) else math.sqrt(held * failed)


def table(result: dict[str, Any]) -> str:
    """Format the result for people."""
    lines = [
        f"{trial['rate_hz']:9.2f} Hz  {trial['drops']:6.1%} dropped  {trial['sent']} frames"
        for trial in result["trials"]
    ]
    latency = result["latency_ms"]
    camera = "; the camera could not send faster" if result["limited_by_camera"] else ""
    return "\n".join(
        [
            *lines,
            "",
            f"{result['bundle']}: {result['rate_hz']:.2f} Hz with {result['drops']:.1%} dropped{camera}; "
            f"from stamp to mask {latency['median']:.1f} ms (95th percentile {latency['p95']:.1f} ms)",
        ]
    )


def _summary(trial: Trial) -> dict[str, Any]:
    return {**asdict(trial), "rate_hz": round(trial.rate_hz, 2), "drops": round(trial.drops, 4)}


def _seconds_of_one(run: Callable[[np.ndarray], Any], frames: list[np.ndarray]) -> float:
    """How long a frame takes when each waits for the one before."""
    start = time.monotonic()
    for frame in frames:
        run(frame)
    return (time.monotonic() - start) / len(frames)
