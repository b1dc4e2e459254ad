"""The PyTorch runtime: the bundle's own modules, as training ran them."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from dinov3_seg_ros.bundle.exports import map_name
from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Computation, Computed
from dinov3_seg_ros.runtimes.timeline import Timeline
from dinov3_seg_ros.support.errors import RuntimeUnavailableError
from dinov3_seg_ros.support.timing import timed

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

_DTYPES = {"auto": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The number is the whole process's, so that a former runtime's would stay.
_DEFAULT_THREADS = torch.get_num_threads()


class PyTorchRuntime:
    """The modules themselves; see `dinov3_seg_ros.runtimes.Runtime`.

    Precisions: fp32 (the default), fp16 and bf16. PyTorch's own norms and attention add up in fp32 in any of them.
    """

    name = "torch"
    sizes: tuple[tuple[int, int], ...] | None = None

    def __init__(self, bundles: Sequence[Bundle], options: ComputeOptions) -> None:
        self._device, self._dtype = _resolve_device(options.device), _resolve_precision(options.precision)
        torch.set_num_threads(options.threads or _DEFAULT_THREADS)
        # Convolutions take TF32 by default, and fp32 would have 10 bits of mantissa. The whole process's as well.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        number_format = str(self._dtype).removeprefix("torch.")
        self.device = self.logits_device = self._device.type
        self.description = f"PyTorch {torch.__version__} on {self._device}, {number_format}"
        wanted = {bundle.manifest.name: bundle.manifest.backbone.layers for bundle in bundles}
        union = sorted({layer for layers in wanted.values() for layer in layers})
        self._map_names = [map_name(layer) for layer in union]
        self._maps_of = {name: [union.index(layer) for layer in layers] for name, layers in wanted.items()}
        # In this layout depthwise convolutions are many times faster on a CPU, and tensor cores serve convolutions.
        placed = {"device": self._device, "dtype": self._dtype, "memory_format": torch.channels_last}
        own = bundles[0].manifest.input
        backbone = bundles[0].load_backbone(layers=union).to(**placed)
        self._backbone = _FromCanvases(Normalise(own.mean, own.std).to(self._device), backbone, self._dtype)
        self._heads = {bundle.manifest.name: bundle.load_head().to(**placed) for bundle in bundles}
        if options.cuda_graphs and self._device.type == "cuda":
            self._backbone = _Recorded(self._backbone)
        self._streams = _Streams(self._device) if self._device.type == "cuda" else None

    @classmethod
    def find_device(cls, _bundles: Sequence[Bundle], options: ComputeOptions) -> str:
        """See `Runtime.find_device`."""
        _resolve_precision(options.precision)
        return _resolve_device(options.device).type

    @torch.inference_mode()
    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computation:
        """See `Runtime.start`; logits are arrays on the CPU, tensors on a GPU, where this does not wait for them."""
        images = torch.from_numpy(np.ascontiguousarray(canvases))
        if self._streams is not None:
            return self._queue(images, heads, self._streams)
        seconds: dict[str, float] = {}
        with timed(seconds, "backbone"):
            maps = self._backbone(images)
        with timed(seconds, "heads"):
            logits = {name: self._run_head(name, maps).numpy() for name in heads}
        return Computed(logits, seconds, lambda: _read(self._named(maps)))

    def close(self) -> None:
        """Drop the modules and give a GPU's cached memory back."""
        self._backbone = None
        self._heads.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _queue(self, images: torch.Tensor, heads: Sequence[str], streams: _Streams) -> _Computation:
        # Who waits for such an event sleeps: a thread that asks again and again would take a core from the robot.
        timeline = Timeline(lambda: torch.cuda.Event(enable_timing=True, blocking=True))
        images = images.pin_memory()
        with timeline.step("upload", streams.uploading), torch.cuda.stream(streams.uploading):
            images = images.to(self._device, non_blocking=True)
        with torch.cuda.stream(streams.computing):
            images.record_stream(streams.computing)  # which reads what belongs to the other stream
            with timeline.step("backbone", streams.computing):
                maps = self._backbone(images)
            with timeline.step("heads", streams.computing):
                logits = {name: self._run_head(name, maps) for name in heads}
        return _Computation(timeline, self._named(maps), logits)

    def _run_head(self, name: str, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return self._heads[name]([maps[index] for index in self._maps_of[name]]).float()

    def _named(self, maps: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self._map_names, maps, strict=True))


class _FromCanvases(nn.Module):
    """Canvases (N, H, W, 3) uint8 RGB -> the backbone's maps in ``dtype``, which its weights have already."""

    def __init__(self, normalise: Normalise, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._normalise, self._backbone, self._dtype = normalise, backbone, dtype

    def forward(self, canvases: torch.Tensor) -> list[torch.Tensor]:
        return self._backbone(self._normalise(canvases).to(self._dtype))


class _Streams:
    """A GPU's queues. The next batch is uploaded by one while the other computes; decoding has the default stream, so
    that the batch before need not wait for either."""

    def __init__(self, device: torch.device) -> None:
        self.uploading, self.computing = torch.cuda.Stream(device), torch.cuda.Stream(device)
        # What was loaded so far lies on the default stream.
        for stream in (self.uploading, self.computing):
            stream.wait_stream(torch.cuda.default_stream(device))


class _Computation:
    """See `dinov3_seg_ros.runtimes.Computation`; on a GPU."""

    def __init__(
        self, timeline: Timeline, maps: Mapping[str, torch.Tensor], logits: Mapping[str, torch.Tensor]
    ) -> None:
        self._timeline, self._maps, self._logits = timeline, maps, logits

    def logits(self) -> dict[str, torch.Tensor]:
        self._timeline.wait()
        for tensor in self._logits.values():  # its memory is the computing stream's, and may be read on this one
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return dict(self._logits)

    def maps(self) -> dict[str, np.ndarray]:
        self._timeline.wait()
        return _read(self._maps)

    def seconds(self) -> dict[str, float]:
        return self._timeline.wait()


def _read(maps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.float().cpu().numpy() for name, tensor in maps.items()}


# The graph, where its input is copied to, and the maps that it writes.
_Recording = tuple[torch.cuda.CUDAGraph, torch.Tensor, list[torch.Tensor]]


class _Recorded:
    """A module whose kernels are recorded once for each shape of its input, then replayed as one CUDA graph.

    The network of a small backbone is hundreds of short kernels, which Python starts more slowly than a GPU runs them.
    """

    # Frame-sized geometries bring ever new shapes, and each recording keeps its own memory.
    _MOST = 8

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._recordings: dict[torch.Size, _Recording | None] = {}

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """What the module gives; overwritten by the next call with the same shape."""
        if images.shape not in self._recordings and len(self._recordings) < self._MOST:
            self._recordings[images.shape] = self._record(images)
        recording = self._recordings.get(images.shape)
        if recording is None:
            return self._module(images)
        graph, place, maps = recording
        place.copy_(images)
        graph.replay()
        return maps

    def _record(self, images: torch.Tensor) -> _Recording | None:
        """None where it cannot be recorded."""
        try:
            place, stream, graph = images.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
            # Libraries choose their kernels and allocate their work space at the first runs, which no graph may record.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._module(place)
            torch.cuda.current_stream().wait_stream(stream)
            # Thread-local: another thread, which decodes the frame before, must not break the recording.
            recording = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
            with _positions_not_cached(), recording:
                maps = self._module(place)
        except RuntimeError as error:
            shape = "x".join(map(str, images.shape))
            _logger.warning("the backbone runs without a CUDA graph for %s, somewhat slower: %s", shape, error)
            return None
        return graph, place, maps


@contextlib.contextmanager
def _positions_not_cached() -> Iterator[None]:
    """transformers keeps the positions of the last few sizes, and a graph must not read what it may drop."""
    from transformers.models.dinov3_vit import modeling_dinov3_vit

    cached = modeling_dinov3_vit.get_patches_center_coordinates
    modeling_dinov3_vit.get_patches_center_coordinates = inspect.unwrap(cached)
    try:
        yield
    finally:
        modeling_dinov3_vit.get_patches_center_coordinates = cached


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device(device)
    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(
            f"device '{device}' was asked for, but PyTorch finds no CUDA GPU; use device 'cpu'"
        )
    found = torch.device(device)
    if found.index is not None and found.index >= torch.cuda.device_count():
        raise RuntimeUnavailableError(
            f"device '{device}' was asked for, but PyTorch finds {torch.cuda.device_count()} CUDA GPUs, numbered from 0"
        )
    return found


def _resolve_precision(precision: str) -> torch.dtype:
    if precision not in _DTYPES:
        raise RuntimeUnavailableError(
            f"the torch runtime has no precision '{precision}', only {', '.join(_DTYPES)}; it takes exported graphs "
            f"(python -m dinov3_seg_ros.export, --precision {precision}) and another runtime"
        )
    return _DTYPES[precision]
