"""Measure every step of a frame.

``python -m dinov3_seg_ros.benchmark BUNDLE [--ros] [--baseline] [--json FILE] [--picture FILE] [--help]``
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinov3_seg_ros.benchmark.measurement import Measured, made_frames, overlapped_rate, run_in_turn
from dinov3_seg_ros.benchmark.operations import backbone_gflop
from dinov3_seg_ros.benchmark.picture import check_can_draw, draw_stages
from dinov3_seg_ros.benchmark.processor import GEMM_TYPES, gemm_gflops, peak_memory_mb
from dinov3_seg_ros.benchmark.timed_pipeline import FramePipeline, OurPipeline
from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.runtimes.choice import available_runtimes
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import (
    OutputError,
    ParameterError,
    RuntimeUnavailableError,
    SegmentationError,
    TransportError,
)
from dinov3_seg_ros.support.files import write_json
from dinov3_seg_ros.support.timing import GPU_STAGES, summarise_ms


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when something cannot be measured."""
    options = _parser().parse_args(arguments)
    try:
        # Now, rather than after minutes of measuring.
        if options.picture:
            check_can_draw()
        if options.json:
            _check_can_write(options.json)
        result = measure(options)
        print(table(result))
        if options.json:
            _write(options.json, result)
        if options.picture:
            draw_stages({name: column["stages_ms"] for name, column in _columns(result).items()}, options.picture)
    except SegmentationError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the pipelines in turn over the same frames.

    Returns:
        What was measured, with ``stages_ms: {stage: {median, p95}}`` (None for the stages that only a ROS node has),
        ``total_ms`` likewise, ``outside_backbone`` (its time as a share of the backbone's), ``frames_per_second``,
        ``peak_memory_mb``, ``gemm_gflops`` of what computes (of ``gemm_type``, see `processor.gemm_gflops`), and
        ``backbone: {gflop, gflops, share_of_gemm}``, None where PyTorch, which counts them, or the weights are missing.

        Where a GPU computes, ``stages_ms`` of upload, backbone, heads and download are by its own events (ONNX Runtime
        shows none, so that backbone and heads include the copies; with PyTorch decode includes the download, which is
        of labels), and ``overlapped_frames_per_second`` is the rate with the next frame under way meanwhile; else None.

        With ``--batch N`` all times are of N frames in one pass, and ``gflop`` is of all of them.

        With ``--ros`` all that is the node's, ``total_ms`` being from a frame's stamp to the arrival of both outputs,
        and there are ``ros``, see `_through_ros`, and ``pipeline``, the same steps without a node, frame by frame in
        turn with it.

        With ``--baseline`` also ``baselines: {name: {stages_ms, total_ms, ratio, equal_labels}}``, where ``ratio`` is
        their median total over that of our pipeline without a node, and ``equal_labels`` the share of pixels with our
        label, None where its head has made-up weights; compare it with ``--geometry stretch``, which is all that they
        know.

    Raises:
        ParameterError: fewer than one frame, or a batch beside what takes single frames.
        TransportError: there is no ROS 2, or the node cannot be run.
        RuntimeUnavailableError: there is no PyTorch for the baselines.
        SegmentationError: the bundle cannot be run.
    """
    if options.frames < 1:
        raise ParameterError(f"frames is {options.frames}; measure at least one")
    if options.batch < 1 or (options.batch > 1 and (options.ros or options.baseline)):
        raise ParameterError(f"batch is {options.batch}; use 1 or more, and only 1 with --ros or --baseline")
    bundle, frame_size = load_bundle(options.bundle), tuple(options.frame_size)
    frames = made_frames(frame_size, options.frames)
    with contextlib.ExitStack() as stack:
        # The node first: nothing else shall keep the processor busy while it starts.
        nodes = [stack.enter_context(_running_node(bundle, options, frames[0]))] if options.ros else []
        segmenter = _load_segmenter(options)
        ours = OurPipeline(segmenter, batch=options.batch)
        baselines = _baselines(bundle, options) if options.baseline else []
        pipelines: list[FramePipeline] = [ours, *nodes, *baselines]
        measured = dict(zip([p.name for p in pipelines], run_in_turn(pipelines, frames, options.frames), strict=True))
        on_gpu = segmenter.runtime.device != "cpu"
        overlapped = overlapped_rate(ours, frames, options.frames) if on_gpu else None
        memory = nodes[0].peak_memory_mb() if nodes else peak_memory_mb()
    without_node = measured[ours.name]
    main_part = measured[nodes[0].name] if nodes else without_node
    network_size = segmenter.canvas_size(frame_size)
    result = {
        "bundle": str(options.bundle),
        "runtime": segmenter.runtime.description,
        "frame_size": list(frame_size),
        "network_size": list(network_size),
        "frames": options.frames,
        "batch": options.batch,
        **main_part.summary(),
        "frames_per_second": round(options.batch * 1000.0 / main_part.total_ms["median"], 2),
        "overlapped_frames_per_second": overlapped and round(options.batch * overlapped, 2),
        "peak_memory_mb": round(memory),
        **_processor(
            bundle, network_size, segmenter.runtime.device, options, main_part.stages_ms["backbone"]["median"]
        ),
    }
    if nodes:
        result["ros"] = _through_ros(nodes[0], main_part, without_node)
        result["pipeline"] = without_node.summary()
    if baselines:
        result["baselines"] = {
            other.name: {
                **measured[other.name].summary(),
                "ratio": round(without_node.times_faster_than(measured[other.name]), 2),
                "equal_labels": round(measured[other.name].equal_labels, 6) if other.knows_classes else None,
            }
            for other in baselines
        }
    return result


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    columns = _columns(result)
    width = max(map(len, columns)) + 10
    lines = [
        f"{result['bundle']}: {result['runtime']}, frames {'x'.join(map(str, result['frame_size']))}, "
        f"network {'x'.join(map(str, result['network_size']))}"
        + (f", batches of {result['batch']}" if result["batch"] > 1 else ""),
        f"{'median ms (95th percentile)':<28}" + "".join(f"{name:>{width}}" for name in columns),
    ]
    for stage in (*GPU_STAGES, "total"):
        times = [c["total_ms"] if stage == "total" else c["stages_ms"].get(stage) for c in columns.values()]
        if any(times):
            cells = [f"{t['median']:.2f} ({t['p95']:.2f})" if t else "" for t in times]
            lines.append(f"{stage:<28}" + "".join(f"{cell:>{width}}" for cell in cells))
    lines += [
        f"{result['frames_per_second']} frames per second, peak memory {result['peak_memory_mb']} MB; "
        f"{result['classes_in_view']} classes in view; outside the backbone {result['outside_backbone']:.1%} of its "
        "time",
        _rates(result["backbone"], result["gemm_gflops"], result["gemm_type"]),
    ]
    if result["overlapped_frames_per_second"] is not None:
        lines.append(
            f"{result['overlapped_frames_per_second']} frames per second where the next is under way meanwhile"
        )
    if "ros" in result:
        ros = result["ros"]
        lines += [
            f"first mask {ros['startup_s']:.1f} s after the start of the node's process; from stamp to arrival: mask "
            f"{_ms(ros['latency_ms']['mask'])}, overlay {_ms(ros['latency_ms']['overlay'])}",
            f"ROS adds {_ms(ros['overhead_ms'])} to the pipeline without a node; the node's stages but backbone and "
            f"heads take {ros['node_overhead_ms']:.2f} ms; equal labels {ros['equal_labels']:.4%}",
        ]
    for name, column in result.get("baselines", {}).items():
        equal = "" if column["equal_labels"] is None else f"; equal labels {column['equal_labels']:.4%}"
        lines.append(f"{column['ratio']} times faster than {name}{equal}")
    return "\n".join(lines)


def _rates(backbone: dict[str, Any] | None, gemm_gflops: float | None, gemm_type: str) -> str:
    gemm = "" if gemm_gflops is None else f"the measured {gemm_type} GEMM rate {gemm_gflops:.0f} GFLOP/s"
    if backbone is None:
        missing = "the backbone's operations were not counted: that needs PyTorch, transformers and the weights"
        return "; ".join(filter(None, (gemm, missing)))
    share = "" if gemm_gflops is None else f", {backbone['share_of_gemm']:.0%} of {gemm}"
    return f"backbone {backbone['gflop']:.1f} GFLOP, {backbone['gflops']:.0f} GFLOP/s{share}"


def _columns(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What stands side by side."""
    if "ros" in result:
        return {"through ROS": result, "without a node": result["pipeline"], **result.get("baselines", {})}
    return {"dinov3_seg_ros": result, **result.get("baselines", {})}


def _load_segmenter(options: argparse.Namespace) -> Segmenter:
    return Segmenter.from_bundle(
        options.bundle,
        options.runtime,
        network_size=tuple(options.size) if options.size else None,
        geometry=options.geometry,
        max_batch=options.batch,
        precision=options.precision,
        threads=options.threads,
        device=options.device,
        providers=tuple(options.providers),
    )


def _running_node(bundle: Bundle, options: argparse.Namespace, frame: Any) -> contextlib.AbstractContextManager[Any]:
    try:
        from dinov3_seg_ros.benchmark.through_ros import running_node
    except ImportError as error:
        raise TransportError(
            f"ROS 2 cannot be imported ({error}); source a distribution, pip install 'dinov3_seg_ros[ros-kilted]', or "
            "leave --ros out"
        ) from error
    parameters = {
        "bundle": bundle.path.resolve(),
        "runtime": options.runtime,
        "network_size": options.size,
        "geometry": options.geometry,
        "precision": options.precision,
        "threads": options.threads,
        "device": options.device,
        "providers": options.providers or None,
    }
    return running_node(parameters, frame)


def _check_can_write(path: Path) -> None:
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise OutputError(f"{path} cannot be written; name a file in a folder of yours with --json")


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        write_json(path, result)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def _baselines(bundle: Bundle, options: argparse.Namespace) -> list[FramePipeline]:
    reason = available_runtimes()["torch"]
    if reason:
        raise RuntimeUnavailableError(f"the baselines are PyTorch's: {reason}; or leave --baseline out")
    from dinov3_seg_ros.benchmark.baselines import PredecessorPipeline, TextbookPipeline

    size = tuple(options.size or bundle.manifest.input.network_size)
    return [TextbookPipeline(bundle, size), PredecessorPipeline(bundle, size)]


def _processor(
    bundle: Bundle, size: tuple[int, int], device: str, options: argparse.Namespace, backbone_ms: float
) -> dict[str, Any]:
    """What the processor or GPU gives, measured once nothing else runs any more."""
    rate, gflop = gemm_gflops(device, options.threads), backbone_gflop(bundle, size)
    found = {"gemm_gflops": rate and round(rate, 1), "gemm_type": GEMM_TYPES[device], "backbone": None}
    if gflop is not None:
        gflop *= options.batch
        reached = gflop / (backbone_ms / 1000.0)
        found["backbone"] = {
            "gflop": round(gflop, 6),
            "gflops": round(reached, 6),
            "share_of_gemm": rate and round(reached / rate, 6),
        }
    return found


def _through_ros(node: Any, through: Measured, without: Measured) -> dict[str, Any]:
    """What a graph costs: ``startup_s``, from the start of the node's process to its first mask; ``latency_ms``, from
    a frame's stamp to the arrival of each output; ``overhead_ms``, what a frame takes longer than in the pipeline
    without a node, that frame's turn in both; ``node_overhead_ms``, the medians of the node's stages but backbone and
    heads, added up; ``equal_labels``, the share of pixels that the received mask has in common with the pipeline's."""
    return {
        "startup_s": round(node.startup_s, 2),
        "latency_ms": node.latency.summary_ms(),
        "overhead_ms": summarise_ms([a - b for a, b in zip(through.seconds, without.seconds, strict=True)]),
        "node_overhead_ms": round(through.outside_ms("backbone", "heads"), 3),
        "equal_labels": round(through.equal_labels, 6),
    }


def _ms(times: dict[str, float]) -> str:
    return f"{times['median']:.2f} ({times['p95']:.2f}) ms"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dinov3_seg_ros.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--runtime", default="auto", help="auto, torch, onnx or tensorrt")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--providers", nargs="+", default=[], help="ONNX Runtime's, best first (default: by the device)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one for each core")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="network size (default: the bundle's)")
    parser.add_argument("--geometry", help="stretch, letterbox, pad or native (default: the bundle's)")
    parser.add_argument("--frame-size", nargs=2, type=int, metavar=("H", "W"), default=(480, 640))
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="frames in one pass (default: 1)")
    parser.add_argument("--ros", action="store_true", help="through the node in a process of its own, on ROS 2")
    parser.add_argument("--baseline", action="store_true", help="also the textbook's and the predecessor's pipeline")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="stacked bars of the stages; needs matplotlib")
    return parser


if __name__ == "__main__":
    sys.exit(main())
