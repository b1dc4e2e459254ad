"""The TensorRT runtime: exported graphs as engines on an NVIDIA GPU, without torch.

The heads' engines read the feature maps where the backbone's engine leaves them. Canvases come and logits go on streams
of their own, so that the copies of one frame overlap with the computation of another.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorrt as trt

from dinov3_seg_ros.bundle.exports import (
    BACKBONE_GRAPH,
    CANVASES,
    HEAD_GRAPH,
    LOGITS,
    Export,
    backbone_export,
    choose_exports,
)
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.tensorrt.cuda import Event, Gpu, Workspace, find_gpu
from dinov3_seg_ros.runtimes.tensorrt.execution import Execution, Tensor
from dinov3_seg_ros.runtimes.tensorrt.reference import Reference
from dinov3_seg_ros.runtimes.tensorrt.store import StoredEngine, obtain, why_unverified
from dinov3_seg_ros.runtimes.timeline import Timeline
from dinov3_seg_ros.support.errors import ImageError, ParameterError, RuntimeUnavailableError

# What "auto" takes, best first. Types are in the graph, so that each needs graphs of its own; 8 bits and bfloat16
# lose accuracy that only the user can weigh.
_FASTEST = ("fp16", "fp32")
# So many computations may be on their way: one is copied while another is computed.
_SLOTS = 2


@dataclass(frozen=True)
class _Network:
    """The engines for one size of canvases, and where its computations have their ends; they take turns."""

    backbone: Execution
    heads: dict[str, Execution]
    slots: Iterator[_Slot]


class _Copy(NamedTuple):
    """The two ends of what is copied between the host and the GPU, with room for the largest batch."""

    host: np.ndarray
    address: int


@dataclass
class _Slot:
    """What a computation on its way has for itself. The engines' own ends are used by one after the other."""

    canvases: _Copy
    logits: dict[str, _Copy]
    events: dict[str, tuple[Event, Event]] = field(default_factory=dict)
    computation: _Computation | None = None


class _Computation:
    """See `dinov3_seg_ros.runtimes.Computation`.

    Args:
        timeline: of the copies and engines.
        logits: arrays that it fills, and that the next computation in its place overwrites.
        read_maps: gives the maps, or raises ParameterError once they are another computation's.
    """

    def __init__(
        self,
        timeline: Timeline,
        logits: Mapping[str, np.ndarray],
        read_maps: Callable[[_Computation], dict[str, np.ndarray]],
    ) -> None:
        self._timeline, self._filled, self._read_maps = timeline, logits, read_maps
        self._logits: dict[str, np.ndarray] = {}
        self._seconds: dict[str, float] | None = None
        self._failure: RuntimeUnavailableError | None = None
        # Ended either by whoever started it or by the computation that takes its place.
        self._lock = threading.Lock()

    def end(self) -> None:
        """Wait for it, and take what it gave out of the memory of the next; a failure is kept for who asks."""
        with self._lock:
            if self._seconds is None and self._failure is None:
                try:
                    self._seconds = self._timeline.wait()
                    self._logits = {name: array.copy() for name, array in self._filled.items()}
                except RuntimeUnavailableError as error:
                    self._failure = error

    def logits(self) -> dict[str, np.ndarray]:
        self.end()
        if self._failure is not None:
            raise self._failure
        return self._logits

    def maps(self) -> dict[str, np.ndarray]:
        return self._read_maps(self)

    def seconds(self) -> dict[str, float]:
        self.logits()
        return self._seconds


class TensorRTRuntime:
    """Exported graphs in TensorRT; see `dinov3_seg_ros.runtimes.Runtime`.

    Engines that are not in the store (`engines.store`) are built when this is made, which takes minutes. All buffers
    are allocated for ``options.max_batch`` canvases then; each smaller batch adds a context when it first comes.

    Attributes:
        engines: every engine in use.
    """

    name = "tensorrt"
    device = "cuda"
    logits_device = "cpu"

    def __init__(
        self,
        bundles: Sequence[Bundle],
        options: ComputeOptions,
        exports: Mapping[tuple[int, int], Sequence[Export]] | None = None,
    ) -> None:
        """See `Runtime`. ``exports``, one of each bundle by network size, are taken in place of the bundles' own."""
        precisions, gpu = usable(options)
        chosen, precision = exports, options.precision
        if chosen is None:
            chosen, precision, _ = choose_exports(bundles, precisions, options.network_size)
        self.sizes: tuple[tuple[int, int], ...] | None = tuple(chosen)
        self.engines: list[StoredEngine] = []
        self._executions: list[Execution] = []
        self._gpu, self._max_batch = gpu, options.max_batch
        self._newest: _Computation | None = None
        self._networks: dict[tuple[int, int], _Network] = {}
        layers = sorted({layer for bundle in bundles for layer in bundle.manifest.backbone.layers})
        self._workspace = Workspace()
        try:
            self._uploading, self._computing, self._downloading = (self._workspace.stream() for _ in range(3))
            for size, of_size in chosen.items():
                self._networks[size] = self._load(size, backbone_export(of_size, layers), of_size)
        except BaseException:
            self.close()
            raise
        reasons = sorted({engine.record.unverified for engine in self.engines} - {""})
        unverified = f", unverified ({'; '.join(reasons)})" if reasons else ""
        self.description = f"TensorRT {trt.__version__}, {gpu.name}, {precision}{unverified}"

    @classmethod
    def find_device(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> str:
        """See `Runtime.find_device`."""
        precisions, gpu = usable(options)
        chosen, _, _ = choose_exports(bundles, precisions, options.network_size)
        layers = {layer for bundle in bundles for layer in bundle.manifest.backbone.layers}
        for of_size in chosen.values():
            heads = [(export, HEAD_GRAPH) for export in of_size]
            for export, graph in [(backbone_export(of_size, layers), BACKBONE_GRAPH), *heads]:
                reason = why_unverified(export, graph, gpu, options.max_batch)
                if reason:
                    raise RuntimeUnavailableError(
                        f"the TensorRT engine of {export.folder / graph} cannot be compared with its graph ({reason}); "
                        "install onnxruntime, or set runtime to tensorrt to use it unverified"
                    )
        return "cuda"

    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> _Computation:
        """See `Runtime.start`; the third in a row waits for the first.

        Raises:
            ImageError: no engine takes canvases of this size.
            ParameterError: more canvases than the engines were built for.
            RuntimeUnavailableError: the GPU fails.
        """
        batch, size = len(canvases), tuple(canvases.shape[1:3])
        if size not in self._networks:
            sizes = ", ".join(f"{height}x{width}" for height, width in self._networks)
            raise ImageError(f"there is no engine for canvases of {size[0]}x{size[1]} pixels; there are: {sizes}")
        if batch > self._max_batch:
            raise ParameterError(f"{batch} canvases came at once, but max_batch is {self._max_batch}; raise max_batch")
        network = self._networks[size]
        slot = next(network.slots)
        if slot.computation is not None:
            slot.computation.end()
        slot.computation = self._newest = None
        slot.canvases.host[:batch] = canvases
        timeline = Timeline(self._workspace.event, slot.events)
        with timeline.step("upload", self._uploading):
            self._uploading.to_gpu(slot.canvases.address, slot.canvases.host[:batch])
        inputs = network.backbone.tensors[CANVASES]
        with timeline.step("backbone", self._computing):
            self._computing.on_gpu(inputs.address, slot.canvases.address, inputs.nbytes(batch))
            network.backbone.run(batch)
        outputs = {name: network.heads[name].tensors[LOGITS] for name in heads}
        with timeline.step("heads", self._computing):
            for name, logits in outputs.items():
                network.heads[name].run(batch)
                self._computing.on_gpu(slot.logits[name].address, logits.address, logits.nbytes(batch))
        filled = {name: slot.logits[name].host[:batch] for name in heads}
        with timeline.step("download", self._downloading):
            for name, array in filled.items():
                self._downloading.from_gpu(array, slot.logits[name].address)
        maps = {name: tensor for name, tensor in network.backbone.tensors.items() if name != CANVASES}
        slot.computation = self._newest = _Computation(timeline, filled, partial(self._read_maps, maps, batch))
        return slot.computation

    def close(self) -> None:
        """Wait for what is under way, then free engines, contexts, CUDA graphs, memory and streams."""
        try:
            self._workspace.wait()
        finally:
            self._newest = None
            for execution in self._executions:
                execution.close()
            self._networks.clear()
            self.engines.clear()
            self._workspace.close()

    def _load(self, size: tuple[int, int], shared: Export, exports: Sequence[Export]) -> _Network:
        reference = Reference(shared.graph(BACKBONE_GRAPH), size, self._max_batch)
        backbone = self._execution(shared, BACKBONE_GRAPH, reference, {})
        heads = {e.bundle_name: self._execution(e, HEAD_GRAPH, reference, backbone.tensors) for e in exports}
        logits = {name: head.tensors[LOGITS] for name, head in heads.items()}
        slots = [self._slot(backbone.tensors[CANVASES], logits) for _ in range(_SLOTS)]
        return _Network(backbone, heads, itertools.cycle(slots))

    def _slot(self, canvases: Tensor, logits: Mapping[str, Tensor]) -> _Slot:
        return _Slot(self._copy(canvases), {name: self._copy(tensor) for name, tensor in logits.items()})

    def _copy(self, tensor: Tensor) -> _Copy:
        host = self._workspace.pinned((self._max_batch, *tensor.shape), tensor.dtype)
        return _Copy(host, self._workspace.allocate(host.nbytes))

    def _execution(self, export: Export, graph: str, reference: Reference, given: Mapping[str, Tensor]) -> Execution:
        stored = obtain(export, graph, self._gpu, self._max_batch, reference)
        self.engines.append(stored)
        name = f"{export.bundle_name}/{graph}"
        execution = Execution(stored.engine, name, self._workspace, self._computing, self._max_batch, given)
        self._executions.append(execution)
        return execution

    def _read_maps(self, maps: Mapping[str, Tensor], batch: int, computation: _Computation) -> dict[str, np.ndarray]:
        if computation is not self._newest:
            raise ParameterError("these feature maps were overwritten by a later frame's; ask for them before it")
        return {name: tensor.read(self._computing, batch) for name, tensor in maps.items()}


def usable(options: ComputeOptions) -> tuple[tuple[str, ...], Gpu]:
    """Precisions to look for, best first, and the GPU to use.

    Raises:
        RuntimeUnavailableError: there is no GPU, or TensorRT cannot compute what was asked for.
    """
    if options.device == "cpu":
        raise RuntimeUnavailableError("device 'cpu' was asked for, but TensorRT computes on GPUs only")
    if options.precision == "int8":
        raise RuntimeUnavailableError(
            "graphs of precision int8 quantise activations as they come, which TensorRT does not; export with "
            "--precision int8_qdq and set precision to int8_qdq, or set runtime to onnx"
        )
    return _FASTEST if options.precision == "auto" else (options.precision,), find_gpu()
