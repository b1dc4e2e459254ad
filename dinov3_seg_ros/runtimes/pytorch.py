"""The PyTorch runtime: the bundle's own modules, as training ran them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from dinov3_seg_ros.bundle.exports import map_name
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Candidate, Computation, Computed
from dinov3_seg_ros.runtimes.timeline import Timeline
from dinov3_seg_ros.support.errors import DisagreementError, RuntimeUnavailableError
from dinov3_seg_ros.support.timing import timed

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

_DTYPES = {"auto": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# PyTorch's number of threads belongs to the whole process, so the one that an earlier runtime set would stay.
_DEFAULT_THREADS = torch.get_num_threads()

AnyModule = TypeVar("AnyModule", bound=nn.Module)
#: From network inputs (N, H, W, 3) uint8 RGB to feature maps (N, C_i, h_i, w_i) and, last, the normalised images.
Backbone = Callable[[torch.Tensor], list[torch.Tensor]]


class PyTorchRuntime:
    """The modules themselves; see `protocol.Runtime`.

    Precisions: fp32 (the default), fp16 and bf16. PyTorch's own norms and attention accumulate in fp32 in all of them.
    """

    name = "torch"
    sizes: tuple[tuple[int, int], ...] | None = None

    def __init__(self, bundles: Sequence[Bundle], options: ComputeOptions) -> None:
        self._device, self._dtype = _resolve_device(options.device), _resolve_precision(options.precision)
        torch.set_num_threads(options.threads or _DEFAULT_THREADS)
        # Convolutions use TF32 by default, which gives fp32 10 bits of mantissa. This too is the whole process's.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        number_format = str(self._dtype).removeprefix("torch.")
        self.device = self.logits_device = str(self._device)
        self.description = f"PyTorch {torch.__version__} on {self._device}, {number_format}"
        wanted = {bundle.manifest.name: bundle.manifest.backbone.layers for bundle in bundles}
        union = sorted({layer for layers in wanted.values() for layer in layers})
        self._map_names = [map_name(layer) for layer in union]
        self._maps_of = {name: [union.index(layer) for layer in layers] for name, layers in wanted.items()}
        own = bundles[0].manifest.input
        backbone = self._place(bundles[0].load_backbone(layers=union))
        normalise = Normalise(own.mean, own.std).to(self._device)
        self._backbone: Backbone = _FromCanvases(normalise, backbone, self._dtype)
        self._heads = {bundle.manifest.name: self._place(bundle.load_head()) for bundle in bundles}
        is_on_gpu = self._device.type == "cuda"
        if options.cuda_graphs and is_on_gpu:
            self._backbone = _Recorded(self._backbone)
        self._streams = _Streams(self._device) if is_on_gpu else None

    @classmethod
    def candidates(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> list[Candidate]:
        """Return on what the modules would run; see `protocol.RuntimeType.candidates`."""
        _resolve_precision(options.precision)
        device, precision = str(_resolve_device(options.device)), options.precision.replace("auto", "fp32")
        label = f"torch on {device}, {precision}"
        return [Candidate(cls.name, device, precision, label, partial(cls, bundles, options))]

    @torch.inference_mode()
    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computation:
        """Run the modules; see `protocol.Runtime.start`. On a GPU this does not wait for them."""
        images = torch.from_numpy(np.ascontiguousarray(canvases))
        if self._streams is not None:
            return self._queue(images, heads, self._streams)
        seconds: dict[str, float] = {}
        with timed(seconds, "backbone"):
            *maps, normalised = self._backbone(images)
        with timed(seconds, "heads"):
            logits = {name: self._run_head(name, maps, normalised).numpy() for name in heads}
        return Computed(logits, seconds, lambda: _read(self._named(maps)))

    def refuse(self, _error: DisagreementError) -> bool:
        """Close; nothing is kept on disk. See `protocol.OpenedRuntime.refuse`."""
        self.close()
        return False

    def close(self) -> None:
        """Release the modules, and the GPU memory that PyTorch caches."""
        self._backbone = _closed
        self._heads.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _place(self, module: AnyModule) -> AnyModule:
        # Channels last: depthwise convolutions are many times faster on a CPU, and tensor cores serve convolutions.
        layout: dict[str, Any] = {"memory_format": torch.channels_last}  # which PyTorch's types do not know
        return module.to(device=self._device, dtype=self._dtype, **layout)

    def _queue(self, images: torch.Tensor, heads: Sequence[str], streams: _Streams) -> _Computation:
        timeline = Timeline(_new_event)
        images = images.pin_memory()
        with timeline.step("upload", streams.uploading), torch.cuda.stream(streams.uploading):
            images = images.to(self._device, non_blocking=True)
        with torch.cuda.stream(streams.computing):
            images.record_stream(streams.computing)  # the memory belongs to the other stream, and this one reads it
            with timeline.step("backbone", streams.computing):
                *maps, normalised = self._backbone(images)
            with timeline.step("heads", streams.computing):
                logits = {name: self._run_head(name, maps, normalised) for name in heads}
        return _Computation(timeline, self._named(maps), logits)

    def _run_head(self, name: str, maps: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._heads[name]([maps[index] for index in self._maps_of[name]], images)
        return logits.float()

    def _named(self, maps: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self._map_names, maps, strict=True))


class _FromCanvases(nn.Module):
    """Network inputs (N, H, W, 3) uint8 RGB -> the backbone's maps, and last the images that it read.

    All are of ``dtype``, which the backbone's weights have already.
    """

    def __init__(self, normalise: Normalise, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._normalise, self._backbone, self._dtype = normalise, backbone, dtype

    def forward(self, canvases: torch.Tensor) -> list[torch.Tensor]:
        images = self._normalise(canvases).to(self._dtype)
        maps: list[torch.Tensor] = self._backbone(images)
        return [*maps, images]


def _closed(_canvases: torch.Tensor) -> list[torch.Tensor]:
    raise RuntimeUnavailableError("the PyTorch runtime is closed; load the bundle again")


class _Streams:
    """A GPU's queues: one uploads the next batch while the other computes.

    The decode uses the default stream, so it waits for neither.
    """

    def __init__(self, device: torch.device) -> None:
        self.uploading, self.computing = _new_stream(device), _new_stream(device)
        # What was loaded so far is on the default stream.
        for stream in (self.uploading, self.computing):
            stream.wait_stream(torch.cuda.default_stream(device))


class _Computation:
    """A batch on a GPU; see `protocol.Computation`."""

    def __init__(
        self, timeline: Timeline[torch.cuda.Event], maps: Mapping[str, torch.Tensor], logits: Mapping[str, torch.Tensor]
    ) -> None:
        self._timeline, self._maps, self._logits = timeline, maps, logits

    def logits(self) -> dict[str, torch.Tensor]:
        self._timeline.wait()
        for tensor in self._logits.values():  # the memory belongs to the computing stream, and this one may read it
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return dict(self._logits)

    def maps(self) -> dict[str, np.ndarray]:
        self._timeline.wait()
        return _read(self._maps)

    def seconds(self) -> dict[str, float]:
        return self._timeline.wait()


def _read(maps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.float().cpu().numpy() for name, tensor in maps.items()}


class _Recording(NamedTuple):
    """A CUDA graph, the memory that it reads and writes, and what else it reads and so must stay."""

    graph: torch.cuda.CUDAGraph
    images: torch.Tensor
    maps: list[torch.Tensor]
    positions: list[_ComputedOnce]


class _Recorded:
    """A module whose kernels are recorded once for each shape of its input, then replayed as one CUDA graph.

    A small backbone is hundreds of short kernels, which Python starts more slowly than a GPU runs them.
    """

    # Frame-sized geometries bring ever new shapes, and each recording keeps its own memory.
    _MOST = 8

    def __init__(self, module: Backbone) -> None:
        self._module = module
        self._recordings: dict[torch.Size, _Recording | None] = {}

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return what the module returns; the next call with the same shape overwrites it."""
        if images.shape not in self._recordings and len(self._recordings) < self._MOST:
            self._recordings[images.shape] = self._record(images)
        recording = self._recordings.get(images.shape)
        if recording is None:
            return self._module(images)
        recording.images.copy_(images)
        recording.graph.replay()
        return recording.maps

    def _record(self, images: torch.Tensor) -> _Recording | None:
        """Return None where the module cannot be recorded."""
        try:
            place, stream, graph = images.clone(), _new_stream(images.device), torch.cuda.CUDAGraph()
            current = torch.cuda.current_stream(images.device)
            with _positions_computed_once(self._module) as positions:
                # Libraries choose their kernels and allocate work space in the first runs, which cannot be recorded.
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        self._module(place)
                current.wait_stream(stream)
                # Thread-local: another thread, which decodes the frame before, must not break the recording.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    maps = self._module(place)
        except RuntimeError as error:
            shape = "x".join(map(str, images.shape))
            _logger.warning("the backbone runs without a CUDA graph for %s, somewhat slower: %s", shape, error)
            return None
        return _Recording(graph, place, maps, positions)


class _ComputedOnce(nn.Module):
    """A module whose first result is returned ever after. For results that depend on the input's shape alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._result: object = None

    def forward(self, images: torch.Tensor) -> object:
        if self._result is None:
            self._result = self._module(images)
        return self._result


#: What transformers calls the module of a DINOv3 ViT that turns patch positions into rotations.
_POSITIONS = "rope_embeddings"


@contextlib.contextmanager
def _positions_computed_once(backbone: Backbone) -> Iterator[list[_ComputedOnce]]:
    """Compute the position embeddings once, and keep them, while the backbone is recorded.

    transformers caches the patch positions of the last few sizes. A CUDA graph reads fixed addresses, so it must not
    read a tensor that the cache may drop. The caller keeps what this yields as long as the graph.
    """
    kept: list[tuple[nn.Module, nn.Module]] = []
    modules = list(backbone.modules()) if isinstance(backbone, nn.Module) else []
    try:
        for owner in modules:
            positions = dict(owner.named_children()).get(_POSITIONS)
            if positions is not None:
                setattr(owner, _POSITIONS, _ComputedOnce(positions))
                kept.append((owner, positions))
        yield [getattr(owner, _POSITIONS) for owner, _ in kept]
    finally:
        for owner, positions in kept:
            setattr(owner, _POSITIONS, positions)


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # PyTorch annotates no arguments here


def _new_event() -> torch.cuda.Event:
    # Blocking: a waiting thread sleeps. One that polls would take a core from the robot.
    return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]  # as above


def _resolve_device(device: str) -> torch.device:
    """Return the device; a GPU always with its number, so that equal devices have equal names.

    Raises:
        RuntimeUnavailableError: there is no such GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("npu"):
        raise RuntimeUnavailableError(f"device '{device}' was asked for, but PyTorch computes on cpu or cuda")
    device = device.replace("gpu", "cuda")
    if device == "cpu":
        return torch.device(device)
    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(
            f"device '{device}' was asked for, but PyTorch finds no CUDA GPU; use device 'cpu'"
        )
    found = torch.device(device)
    if found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if found.index >= torch.cuda.device_count():
        raise RuntimeUnavailableError(
            f"device '{device}' was asked for, but PyTorch finds {torch.cuda.device_count()} CUDA GPUs, numbered from 0"
        )
    return found


def _resolve_precision(precision: str) -> torch.dtype:
    if precision not in _DTYPES:
        raise RuntimeUnavailableError(
            f"the torch runtime has no precision '{precision}', only {', '.join(_DTYPES)}; export the bundle "
            f"(python -m dinov3_seg_ros.export, --precision {precision}) and use another runtime"
        )
    return _DTYPES[precision]
