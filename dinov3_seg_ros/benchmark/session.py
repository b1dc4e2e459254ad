"""One run of the benchmark: the pipelines to compare, and what is measured of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinov3_seg_ros.benchmark.measurement import Measured, overlapped_rate, run_in_turn, synthetic_frames
from dinov3_seg_ros.benchmark.operations import backbone_gflop
from dinov3_seg_ros.benchmark.processor import gemm_gflops, gemm_type, peak_memory_mb
from dinov3_seg_ros.benchmark.timed_pipeline import FramePipeline, OurPipeline
from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.choice import available_runtimes
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import RuntimeUnavailableError, TransportError
from dinov3_seg_ros.support.installation import how_to_install
from dinov3_seg_ros.support.timing import summarise_ms

if TYPE_CHECKING:
    from dinov3_seg_ros.benchmark.through_ros import NodePipeline


@dataclass(frozen=True)
class Session:
    """What to measure.

    Attributes:
        bundle: folder of the trained bundle.
        compute: how to compute; ``max_batch`` frames go through the backbone in one pass, and all times are of as many.
        frame_size: (height, width) of the synthetic frames, pixels.
        frames: how many turns to measure, at least 1.
        ros: whether frames also go through a node.
        baseline: whether the pipelines of `baselines` run too, on the CPU. They know the geometry ``stretch`` only.
    """

    bundle: Path
    compute: ComputeOptions
    frame_size: tuple[int, int]
    frames: int
    ros: bool
    baseline: bool

    def run(self) -> dict[str, Any]:
        """Run the pipelines in turn over the same frames.

        Returns:
            For JSON:

            - ``stages_ms``: ``{stage: {"median": ms, "p95": ms}}``; None for the stages that only a node has. Where a
              GPU computes, upload, backbone, heads and download are timed by its own events. ONNX Runtime has none, so
              that backbone and heads include the copies. With PyTorch, decode includes the download, which is of
              labels.
            - ``total_ms``: likewise. ``outside_backbone``: the time outside the backbone over the backbone's.
            - ``frames_per_second``, and ``overlapped_frames_per_second``: the rate where the next frame starts while a
              second thread finishes the one before, as in the node; None on a CPU, where the node does not.
            - ``peak_memory_mb``: of the node, or else of this process, in which the baselines run too, if any.
            - ``gemm_gflops`` and ``gemm_type``, see `processor.gemm_gflops`.
            - ``backbone``: ``{gflop, gflops, share_of_gemm}``; None where PyTorch, which counts the operations, or the
              weights are missing.
            - ``ros``, with `ros`: see `_node_costs`. Then all of the above is the node's, and ``total_ms`` is from a
              frame's stamp to the arrival of both outputs. ``pipeline`` is the same steps without a node.
            - ``baselines``, with `baseline`: ``{name: {stages_ms, total_ms, ratio, equal_labels}}``. ``ratio`` is the
              baseline's median total over that of our pipeline without a node. ``equal_labels`` is the share of
              pixels with our label, None where the baseline's head has random weights.

        Raises:
            TransportError: there is no ROS 2, or the node cannot be run.
            RuntimeUnavailableError: there is no PyTorch for the baselines.
            SegmentationError: the bundle cannot be run.
        """
        bundle, frames = load_bundle(self.bundle), synthetic_frames(self.frame_size, self.frames)
        with contextlib.ExitStack() as stack:
            # The node first: nothing else shall keep the processor busy while it starts.
            node = stack.enter_context(node_of(bundle, self.compute, frames[0])) if self.ros else None
            segmenter = stack.enter_context(contextlib.closing(self.load_segmenter()))
            ours = OurPipeline(segmenter, batch=self.compute.max_batch)
            baselines = self._baselines(bundle) if self.baseline else []
            pipelines: list[FramePipeline] = [ours, *([node] if node else []), *baselines]
            found = run_in_turn(pipelines, frames, self.frames)
            measured = {pipeline.name: one for pipeline, one in zip(pipelines, found, strict=True)}
            runtime, network_size = segmenter.runtime, segmenter.canvas_size(self.frame_size)
            overlapped = overlapped_rate(ours, frames, self.frames) if runtime.device != "cpu" else None
            memory = node.peak_memory_mb() if node else peak_memory_mb()
        without_node = measured[ours.name]
        main_part = measured[node.name] if node else without_node
        result = {
            "bundle": str(self.bundle),
            "runtime": runtime.description,
            "frame_size": list(self.frame_size),
            "network_size": list(network_size),
            "frames": self.frames,
            "batch": self.compute.max_batch,
            **main_part.summary(),
            "frames_per_second": round(self.compute.max_batch * 1000.0 / main_part.total_ms["median"], 2),
            "overlapped_frames_per_second": overlapped and round(self.compute.max_batch * overlapped, 2),
            "peak_memory_mb": round(memory),
            **self._processor(bundle, network_size, runtime.device, main_part.stage_ms("backbone")),
        }
        if node:
            result["ros"] = _node_costs(node, main_part, without_node)
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

    def load_segmenter(self) -> Segmenter:
        """The segmenter of the pipeline without a node."""
        return Segmenter.from_bundle(self.bundle, **self.compute.model_dump())

    def _baselines(self, bundle: Bundle) -> list[FramePipeline]:
        reason = available_runtimes()["torch"]
        if reason:
            raise RuntimeUnavailableError(f"the baselines run in PyTorch: {reason}; or leave --baseline out")
        from dinov3_seg_ros.benchmark.baselines import Dinov3RosPipeline, NaivePipeline
        from dinov3_seg_ros.runtimes.pytorch.runtime import set_threads

        set_threads(self.compute.threads)
        size = self.compute.network_size or bundle.manifest.input.network_size
        return [NaivePipeline(bundle, size), Dinov3RosPipeline(bundle, size)]

    def _processor(self, bundle: Bundle, size: tuple[int, int], device: str, backbone_ms: float) -> dict[str, Any]:
        """The speed of the CPU or GPU, measured when nothing else runs any more."""
        rate, gflop = gemm_gflops(device, self.compute.threads), backbone_gflop(bundle, size)
        found: dict[str, Any] = {
            "gemm_gflops": rate and round(rate, 1),
            "gemm_type": gemm_type(device),
            "backbone": None,
        }
        if gflop is not None:
            gflop *= self.compute.max_batch
            reached = gflop / (backbone_ms / 1000.0)
            found["backbone"] = {
                "gflop": round(gflop, 6),
                "gflops": round(reached, 6),
                "share_of_gemm": rate and round(reached / rate, 6),
            }
        return found


def node_of(
    bundle: Bundle, compute: ComputeOptions, frame: np.ndarray
) -> contextlib.AbstractContextManager[NodePipeline]:
    """A running node that serves a bundle; see `through_ros.running_node`.

    Raises:
        TransportError: there is no ROS 2.
    """
    try:
        from dinov3_seg_ros.benchmark.through_ros import running_node
    except ImportError as error:
        raise TransportError(
            f"ROS 2 cannot be imported ({error}); source a distribution, {how_to_install('ros-kilted')}, or leave "
            "--ros out"
        ) from error
    return running_node(bundle.path.resolve(), compute, frame)


def _node_costs(node: NodePipeline, through: Measured, without: Measured) -> dict[str, Any]:
    """What a ROS graph costs.

    Returns:
        ``startup_s``: from the start of the node's process to its first mask. ``latency_ms``: from a frame's stamp to
        the arrival of each output. ``overhead_ms``: how much longer a frame takes than in the pipeline without a node
        in the same turn. ``node_overhead_ms``: the sum of the medians of the node's stages but backbone and heads.
        ``equal_labels``: the share of pixels in which the received mask equals the pipeline's.
    """
    return {
        "startup_s": round(node.startup_s, 2),
        "latency_ms": node.latency.summary_ms(),
        "overhead_ms": summarise_ms([a - b for a, b in zip(through.seconds, without.seconds, strict=True)]),
        "node_overhead_ms": round(through.outside_ms("backbone", "heads"), 3),
        "equal_labels": round(through.equal_labels, 6),
    }
