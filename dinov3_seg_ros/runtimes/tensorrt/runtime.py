"""The TensorRT runtime: exported graphs as engines on an NVIDIA GPU, without torch.

The heads' engines read the feature maps where the backbone's engine leaves them. Network inputs are uploaded and logits
downloaded on streams of their own, so the copies of one frame overlap with the computation of another.
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

from dinov3_seg_ros.bundle.loading import Bundle, shared_layers
from dinov3_seg_ros.bundle.onnx_folder import (
    BACKBONE_GRAPH,
    CANVASES,
    HEAD_GRAPH,
    LOGITS,
    Export,
    Graphs,
    backbone_export,
    find_graphs,
)
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Candidate, check_canvas_size
from dinov3_seg_ros.runtimes.tensorrt.cuda import Event, Gpu, Workspace, find_gpu
from dinov3_seg_ros.runtimes.tensorrt.execution import Execution, Tensor
from dinov3_seg_ros.runtimes.tensorrt.store import StoredEngine, obtain
from dinov3_seg_ros.runtimes.timeline import Timeline
from dinov3_seg_ros.support.errors import DisagreementError, ParameterError, RuntimeUnavailableError

# What "auto" takes, best first. Types are in the graph, so each precision needs its own graphs. 8 bits and bfloat16
# lose accuracy, so only the user chooses them, or a measurement.
_FASTEST, _MEASURED_ONLY = ("fp16", "fp32"), ("bf16", "int8_qdq")
# The number of computations in flight: one is copied while another is computed.
_SLOTS = 2


@dataclass(frozen=True)
class _Network:
    """The engines for one size of network input, and the slots that its computations use in turn."""

    backbone: Execution
    heads: dict[str, Execution]
    slots: Iterator[_Slot]


class _Copy(NamedTuple):
    """The two ends of a copy between host and GPU, with room for the largest batch."""

    host: np.ndarray
    address: int


@dataclass
class _Slot:
    """The memory that one computation in flight has for itself; in the engines' own memory they take turns."""

    canvases: _Copy
    logits: dict[str, _Copy]
    events: dict[str, tuple[Event, Event]] = field(default_factory=dict)
    computation: _Computation | None = None


class _Computation:
    """A batch on the GPU; see `protocol.Computation`.

    Args:
        timeline: of the copies and engines.
        logits: arrays that it fills, and that the next computation in its slot overwrites.
        read_maps: returns the maps, or raises ParameterError once another computation has overwritten them.
    """

    def __init__(
        self,
        timeline: Timeline[Event],
        logits: Mapping[str, np.ndarray],
        read_maps: Callable[[_Computation], dict[str, np.ndarray]],
    ) -> None:
        self._timeline, self._filled, self._read_maps = timeline, logits, read_maps
        self._logits: dict[str, np.ndarray] = {}
        self._seconds: dict[str, float] = {}
        self._failure: RuntimeUnavailableError | None = None
        self._has_ended = False
        # Either its reader ends it, or the computation that takes its slot.
        self._lock = threading.Lock()

    def end(self) -> None:
        """Wait for it, and copy its logits out of its slot; a failure is kept for whoever reads them."""
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
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
    """Exported graphs in TensorRT; see `protocol.Runtime`.

    Engines that are not in the store (`tensorrt.store`) are built when this is made, which takes minutes. All buffers
    are allocated then, for ``options.max_batch`` frames; each smaller batch adds a context when it first comes.
    """

    name = "tensorrt"
    logits_device = "cpu"

    def __init__(self, bundles: Sequence[Bundle], options: ComputeOptions, graphs: Graphs) -> None:
        """Load or build the engines.

        Args:
            bundles: whose heads to run.
            options: how to compute; the precision is that of the graphs.
            graphs: one export of each bundle by network size.

        Raises:
            ExportError: TensorRT cannot build an engine, or one was refused before.
            RuntimeUnavailableError: there is no GPU, or it fails.
        """
        _, gpu = usable(options)
        gpu.use()
        self.device = gpu.device
        self.sizes: tuple[tuple[int, int], ...] | None = tuple(graphs)
        # With what each computes, the maps or the logits of a head, and the size of its network input.
        self._engines: list[tuple[StoredEngine, str, tuple[int, int]]] = []
        self._executions: list[Execution] = []
        self._gpu, self._max_batch = gpu, options.max_batch
        self._newest: _Computation | None = None
        self._networks: dict[tuple[int, int], _Network] = {}
        layers = shared_layers(bundles)
        self._workspace = Workspace()
        try:
            self._uploading, self._computing, self._downloading = (self._workspace.stream() for _ in range(3))
            for size, of_size in graphs.items():
                self._networks[size] = self._load(backbone_export(of_size, layers), of_size)
        except BaseException:
            self.close()
            raise
        self.description = f"TensorRT {trt.__version__}, {gpu.name} ({gpu.device}), {options.precision}"

    @classmethod
    def candidates(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> list[Candidate]:
        """Return the precisions that the engines would have; see `protocol.RuntimeType.candidates`."""
        precisions, gpu = usable(options)
        asked = options.precision != "auto"
        wanted = precisions if asked else (*precisions, *_MEASURED_ONLY)
        by_precision, _ = find_graphs(bundles, wanted, options.network_size, asked=asked)
        return [
            Candidate(
                runtime=cls.name,
                device=gpu.device,
                precision=precision,
                label=f"tensorrt on {gpu.device} ({gpu.name}), {precision}",
                graphs=graphs,
                is_measured_only=precision not in precisions,
                open=partial(cls, bundles, options.model_copy(update={"precision": precision}), graphs),
            )
            for precision, graphs in by_precision.items()
        ]

    @property
    def engines(self) -> list[StoredEngine]:
        """Every engine in use."""
        return [engine for engine, *_ in self._engines]

    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> _Computation:
        """Queue the engines; the third computation in flight waits for the first. See `protocol.Runtime.start`.

        Raises:
            ImageError: no engine takes network inputs of this size.
            ParameterError: more frames than the engines were built for.
            RuntimeUnavailableError: the GPU fails.
        """
        batch, height, width, _ = canvases.shape
        size = height, width
        check_canvas_size(size, self._networks, "engine")
        if batch > self._max_batch:
            raise ParameterError(f"{batch} frames came at once, but max_batch is {self._max_batch}; raise max_batch")
        self._gpu.use()
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

    def refuse(self, error: DisagreementError) -> bool:
        """Delete the engines that are at fault; one that was just built is not built again. See `OpenedRuntime`."""
        part = {"maps": "maps", "logits": error.head}.get(error.stage)
        at_fault = [engine for engine, *computes in self._engines if computes == [part, error.size]]
        self.close()
        for engine in at_fault:
            if engine.was_read:
                engine.remove()
            else:
                engine.refuse(str(error))
        return bool(at_fault) and all(engine.was_read for engine in at_fault)

    def close(self) -> None:
        """Wait for what is in flight, then free engines, contexts, CUDA graphs, memory and streams."""
        self._gpu.use()
        try:
            self._workspace.wait()
        finally:
            self._newest = None
            for execution in self._executions:
                execution.close()
            self._networks.clear()
            self._engines.clear()
            self._workspace.close()

    def _load(self, shared: Export, exports: Sequence[Export]) -> _Network:
        backbone = self._execution(shared, BACKBONE_GRAPH, {})
        heads = {e.bundle_name: self._execution(e, HEAD_GRAPH, backbone.tensors) for e in exports}
        logits = {name: head.tensors[LOGITS] for name, head in heads.items()}
        for export in exports:
            export.check_head(heads[export.bundle_name].inputs, logits[export.bundle_name].shape[0])
        slots = [self._slot(backbone.tensors[CANVASES], logits) for _ in range(_SLOTS)]
        return _Network(backbone, heads, itertools.cycle(slots))

    def _slot(self, canvases: Tensor, logits: Mapping[str, Tensor]) -> _Slot:
        return _Slot(self._copy(canvases), {name: self._copy(tensor) for name, tensor in logits.items()})

    def _copy(self, tensor: Tensor) -> _Copy:
        host = self._workspace.pinned((self._max_batch, *tensor.shape), tensor.dtype)
        return _Copy(host, self._workspace.allocate(host.nbytes))

    def _execution(self, export: Export, graph: str, given: Mapping[str, Tensor]) -> Execution:
        stored = obtain(export, graph, self._gpu, self._max_batch)
        name = f"{export.bundle_name}/{graph}"
        computes = "maps" if graph == BACKBONE_GRAPH else export.bundle_name
        self._engines.append((stored, computes, export.manifest.network_size))
        execution = Execution(stored.engine, name, self._workspace, self._computing, self._max_batch, given)
        self._executions.append(execution)
        return execution

    def _read_maps(self, maps: Mapping[str, Tensor], batch: int, computation: _Computation) -> dict[str, np.ndarray]:
        if computation is not self._newest:
            raise ParameterError("these feature maps were overwritten by a later frame's; read them before it starts")
        self._gpu.use()
        return {name: tensor.read(self._computing, batch) for name, tensor in maps.items()}


def usable(options: ComputeOptions) -> tuple[tuple[str, ...], Gpu]:
    """Return the precisions to look for, best first, and the GPU to use.

    Raises:
        RuntimeUnavailableError: there is no such GPU, or TensorRT cannot compute what was asked for.
    """
    if options.device.partition(":")[0] in ("cpu", "npu"):
        raise RuntimeUnavailableError(
            f"device '{options.device}' was asked for, but TensorRT computes on GPUs only; set device to cuda, or "
            "runtime to onnx"
        )
    if options.precision == "int8":
        raise RuntimeUnavailableError(
            "graphs of precision int8 quantise activations as they come, which TensorRT cannot do; export with "
            "--precision int8_qdq and set precision to int8_qdq, or set runtime to onnx"
        )
    precisions = _FASTEST if options.precision == "auto" else (options.precision,)
    return precisions, find_gpu(options.device.replace("gpu", "cuda"))
