"""From an ONNX graph to a serialised engine.

Uses the Python API that TensorRT 10 and 11 share, as in the bindings' sources of 10.0 and 11.1 (NVIDIA/TensorRT,
python/src).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from dinov3_seg_ros.runtimes.tensorrt.log import TENSORRT_LOG, failure, logger, opened
from dinov3_seg_ros.support.errors import ExportError

#: How engines are built, apart from the arguments of `build`; part of their identity.
SETTINGS = {"tf32": False}
_SECONDS_BETWEEN_MESSAGES = 5.0


def build(graph: Path, max_batch: int, begin: Callable[[], None] | None = None) -> bytes:
    """Build an engine for batches of 1 to ``max_batch``, the fastest at ``max_batch``. Takes minutes; logs progress.

    It is built in a thread of its own. In the main thread a signal would interrupt one of TensorRT's calls of Python,
    and be lost there. An interrupted build is cancelled.

    Args:
        graph: ONNX file. The batch is the first axis of every tensor; all other axes are fixed.
        max_batch: the largest batch.
        begin: called in that thread first, such as to choose its GPU.

    Raises:
        ExportError: TensorRT cannot read or build it; the message holds TensorRT's own.
        RuntimeUnavailableError: the GPU or its driver fails, or memory is lacking; so does the message here.
    """
    cancelled = threading.Event()
    with ThreadPoolExecutor(1, "build engine", begin or (lambda: None)) as thread:
        try:
            return thread.submit(_build, graph, max_batch, cancelled).result()
        except KeyboardInterrupt:
            cancelled.set()
            raise


def _build(graph: Path, max_batch: int, cancelled: threading.Event) -> bytes:
    TENSORRT_LOG.take_errors()
    builder = opened(trt.Builder)
    network = builder.create_network(_creation_flags())
    parser = trt.OnnxParser(network, TENSORRT_LOG)
    # From the file, not from its bytes: so TensorRT finds weights in a file beside it.
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(_describe(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(
            f"TensorRT {trt.__version__} cannot read {graph}: {errors or TENSORRT_LOG.take_errors()}; "
            "set runtime to onnx, or export the bundle again in another precision"
        )
    config = builder.create_builder_config()
    # TF32 is on by default in both versions; it would multiply fp32 with 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        fixed = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *fixed), (max_batch, *fixed), (max_batch, *fixed))
    config.add_optimization_profile(profile)
    # In a variable, because it must outlive the build.
    progress = _Progress(f"{graph.parent.name}/{graph.name}", cancelled)
    config.progress_monitor = progress
    logger.warning("building the TensorRT engine of %s; this takes minutes, once", graph)
    start = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise failure(
            f"could not build an engine of {graph}",
            "set runtime to onnx, or export the bundle again in another precision",
        )
    logger.info("built the TensorRT engine of %s in %.0f s", graph, time.monotonic() - start)
    return bytes(plan)


def _creation_flags() -> int:
    """Take types from the graph: 10.x needs the flag; 11.x does nothing else and ignores it (deprecated there)."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _describe(error: trt.ParserError) -> str:
    return f"{error.desc()} (node {error.node_name()}, operator {error.node_operator()})"


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class _Progress(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT ships no types
    """Logs a line every few seconds. TensorRT calls it from several threads, and an exception would end the build."""

    def __init__(self, what: str, cancelled: threading.Event) -> None:
        trt.IProgressMonitor.__init__(self)
        self._what, self._cancelled, self._lock = what, cancelled, threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._next = time.monotonic() + _SECONDS_BETWEEN_MESSAGES

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Note a phase that begins, within another or by itself."""
        with self._lock:
            self._phases[phase_name] = _Phase(parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Note that step 0, 1, ... of a phase is done; return whether to go on."""
        with self._lock:
            if phase_name in self._phases:
                self._phases[phase_name].done = step + 1
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _SECONDS_BETWEEN_MESSAGES
                for name, phase in self._phases.items():
                    if phase.parent not in self._phases:
                        logger.info("building %s: %s, %.0f %%", self._what, name, 100 * self._share(name))
        return not self._cancelled.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """Forget a phase that is over, with or without all of its steps."""
        with self._lock:
            self._phases.pop(phase_name, None)

    def _share(self, name: str) -> float:
        """Return how much of a phase is done, 0..1; the phases within count for its current step."""
        phase = self._phases[name]
        within = [self._share(other) for other, inner in self._phases.items() if inner.parent == name]
        current = sum(within) / len(within) if within else 0.0
        return min(1.0, (phase.done + current) / phase.steps)
