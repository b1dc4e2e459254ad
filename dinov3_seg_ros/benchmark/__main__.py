"""Measure every step of a frame.

``python -m dinov3_seg_ros.benchmark BUNDLE [--runtime auto] [--size H W] [--frames N] [--baseline] [--json FILE]``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinov3_seg_ros.benchmark.pipelines import FramePipeline, OurPipeline
from dinov3_seg_ros.benchmark.processor import gemm_gflops, peak_memory_mb
from dinov3_seg_ros.bundle import load_bundle
from dinov3_seg_ros.demo import scenes
from dinov3_seg_ros.errors import ParameterError, SegmentationError
from dinov3_seg_ros.files import write_json
from dinov3_seg_ros.pipeline import Segmenter
from dinov3_seg_ros.timing import STAGES, StageTimes, summarise_ms

_WARM_UP = 2
_DISTINCT_FRAMES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when something cannot be measured."""
    options = _parser().parse_args(arguments)
    try:
        result = measure(options)
    except SegmentationError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(result))
    if options.json:
        write_json(options.json, result)
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the pipelines in turn over the same frames.

    Returns:
        What was measured, with ``stages_ms: {stage: {median, p95}}`` (None for the stages that only a ROS node has),
        ``total_ms`` likewise, ``frames_per_second``, ``peak_memory_mb``, ``gemm_gflops``; with ``--baseline`` also
        ``baselines: {name: {stages_ms, total_ms, ratio, equal_labels}}``, where ``ratio`` is their median total over
        ours and ``equal_labels`` the share of pixels with our label; compare it with ``--geometry stretch``, which is
        all that they know.

    Raises:
        ParameterError: fewer than one frame.
        SegmentationError: the bundle cannot be run.
    """
    if options.frames < 1:
        raise ParameterError(f"frames is {options.frames}; measure at least one")
    size = tuple(options.size) if options.size else None
    chosen = {"precision": options.precision, "threads": options.threads, "device": options.device}
    segmenter = Segmenter.from_bundle(
        options.bundle, options.runtime, network_size=size, geometry=options.geometry, **chosen
    )
    pipelines: list[FramePipeline] = [OurPipeline(segmenter)]
    if options.baseline:
        from dinov3_seg_ros.benchmark.baselines import PredecessorPipeline, TextbookPipeline

        bundle = load_bundle(options.bundle)
        size = size or bundle.manifest.input.network_size
        pipelines += [TextbookPipeline(bundle, size), PredecessorPipeline(bundle, size)]
    frames = [
        scenes.sample("val", scenes.VIEWS_PER_SCENE * index, tuple(options.frame_size))[0]
        for index in range(min(options.frames, _DISTINCT_FRAMES))
    ]
    totals, equal = _run_in_turn(pipelines, frames, options.frames)
    ours, *others = (_summary(pipeline.times, totals[pipeline.name]) for pipeline in pipelines)
    result = {
        "bundle": str(options.bundle),
        "runtime": segmenter.runtime.description,
        "frame_size": list(options.frame_size),
        "network_size": list(size or next(iter(segmenter.manifests.values())).input.network_size),
        "frames": options.frames,
        **ours,
        "frames_per_second": round(1000.0 / ours["total_ms"]["median"], 2),
        "peak_memory_mb": round(peak_memory_mb()),
        "gemm_gflops": round(gemm_gflops(), 1),
    }
    if others:
        result["baselines"] = {
            pipeline.name: {
                **summary,
                "ratio": round(summary["total_ms"]["median"] / ours["total_ms"]["median"], 2),
                "equal_labels": round(float(np.mean(equal[pipeline.name])), 6),
            }
            for pipeline, summary in zip(pipelines[1:], others, strict=True)
        }
    return result


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    columns = {"dinov3_seg_ros": result, **result.get("baselines", {})}
    width = max(map(len, columns)) + 2
    lines = [f"{result['bundle']}: {result['runtime']}, frames {'x'.join(map(str, result['frame_size']))}"]
    lines.append(f"{'median ms (95th percentile)':<28}" + "".join(f"{name:>{width + 8}}" for name in columns))
    for stage in (*STAGES, "total"):
        times = [column["total_ms"] if stage == "total" else column["stages_ms"][stage] for column in columns.values()]
        if any(times):
            cells = [f"{t['median']:.2f} ({t['p95']:.2f})" if t else "" for t in times]
            lines.append(f"{stage:<28}" + "".join(f"{cell:>{width + 8}}" for cell in cells))
    lines.append(
        f"{result['frames_per_second']} frames per second, peak memory {result['peak_memory_mb']} MB, "
        f"float32 GEMM {result['gemm_gflops']} GFLOP/s"
    )
    for name, column in result.get("baselines", {}).items():
        lines.append(f"{column['ratio']} times faster than {name}; equal labels {column['equal_labels']:.4%}")
    return "\n".join(lines)


def _run_in_turn(
    pipelines: Sequence[FramePipeline], frames: Sequence[np.ndarray], count: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each frame, and its share of pixels labelled as by the first pipeline; both by pipeline."""
    totals: dict[str, list[float]] = {pipeline.name: [] for pipeline in pipelines}
    equal: dict[str, list[float]] = {pipeline.name: [] for pipeline in pipelines}
    for index in range(-_WARM_UP, count):
        if index == 0:
            for pipeline in pipelines:
                pipeline.times.clear()
        frame, labels = frames[index % len(frames)], []
        for pipeline in pipelines:
            start = time.perf_counter()
            labels.append(pipeline.run(frame))
            if index >= 0:
                totals[pipeline.name].append(time.perf_counter() - start)
                equal[pipeline.name].append(float((labels[-1] == labels[0]).mean()))
    return totals, equal


def _summary(times: StageTimes, totals: list[float]) -> dict[str, Any]:
    measured = times.summary_ms()
    return {"stages_ms": {stage: measured.get(stage) for stage in STAGES}, "total_ms": summarise_ms(totals)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dinov3_seg_ros.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--runtime", default="auto", help="auto, torch, onnx or tensorrt")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one for each core")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="network size (default: the bundle's)")
    parser.add_argument("--geometry", help="stretch, letterbox, pad or native (default: the bundle's)")
    parser.add_argument("--frame-size", nargs=2, type=int, metavar=("H", "W"), default=(480, 640))
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--baseline", action="store_true", help="also the textbook's and the predecessor's pipeline")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
