"""The PyTorch runtime: the bundle's own modules, as training ran them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from dinov3_seg_ros.bundle.loading import Bundle, shared_layers
from dinov3_seg_ros.bundle.onnx_folder import map_name
from dinov3_seg_ros.model.heads import Head
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Candidate, Computation, Computed
from dinov3_seg_ros.runtimes.pytorch.candidates import resolve_precision, torch_candidates
from dinov3_seg_ros.runtimes.pytorch.compilation import compile_for
from dinov3_seg_ros.runtimes.pytorch.cuda_graphs import Recorded, new_event, new_stream
from dinov3_seg_ros.runtimes.pytorch.patches import embed_patches_by_products
from dinov3_seg_ros.runtimes.pytorch.staging import Staging
from dinov3_seg_ros.runtimes.timeline import Timeline
from dinov3_seg_ros.support.cpu import quota_threads
from dinov3_seg_ros.support.errors import DisagreementError, ParameterError, RuntimeUnavailableError
from dinov3_seg_ros.support.timing import timed

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# PyTorch's number of threads is the whole process's: the program's own, and the one set here in its place, if any.
_own_threads = _set_threads = 0

AnyModule = TypeVar("AnyModule", bound=nn.Module)
#: From network inputs (N, H, W, 3) uint8 RGB to feature maps (N, C_i, h_i, w_i) and, last, the normalised images.
BackboneFunction = Callable[[torch.Tensor], list[torch.Tensor]]
#: From the head's maps, and the images where it is image-guided, to logits (N, C, h, w).
HeadFunction = Callable[..., torch.Tensor]


def set_threads(threads: int) -> None:
    """Set PyTorch's threads in the whole process; 0: what the program has set, unless a CPU quota allows fewer."""
    global _own_threads, _set_threads
    current = torch.get_num_threads()
    if current != _set_threads:
        _own_threads = current
    wanted = threads or min(_own_threads, quota_threads() or _own_threads)
    if wanted != current:
        torch.set_num_threads(wanted)
    _set_threads = threads


class PyTorchRuntime:
    """The modules themselves; see `protocol.Runtime`.

    Precisions: fp32 (the default), fp16 and bf16. PyTorch's own norms and attention accumulate in fp32 in all of them.
    """

    name = "torch"
    sizes: tuple[tuple[int, int], ...] | None = None

    def __init__(self, bundles: Sequence[Bundle], options: ComputeOptions) -> None:
        self._device, self._dtype = _resolve_device(options.device), _DTYPES[resolve_precision(options.precision)]
        set_threads(options.threads)
        number_format = str(self._dtype).removeprefix("torch.")
        self.device = self.logits_device = str(self._device)
        self.description = f"PyTorch {torch.__version__} on {self._device}, {number_format}"
        layers = shared_layers(bundles)
        self._map_names = [map_name(layer) for layer in layers]
        self._maps_of = {
            bundle.manifest.name: [layers.index(layer) for layer in bundle.manifest.backbone.layers]
            for bundle in bundles
        }
        own = bundles[0].manifest.input
        backbone = self._place(bundles[0].load_backbone(layers=layers))
        normalise = Normalise(own.mean, own.std).to(self._device)
        self._backbone: BackboneFunction = _FromCanvases(normalise, backbone, self._dtype)
        self._heads: dict[str, HeadFunction] = {}
        self._reads_images: set[str] = set()
        for bundle in bundles:
            name, head = bundle.manifest.name, self._place(bundle.load_head())
            self._heads[name] = _FromTensors(head)
            self._reads_images |= {name} if head.reads_images else set()
        self._streams: _Streams | None = None
        self._batches: tuple[int, ...] = ()
        if self._device.type == "cuda":
            # Convolutions use TF32 by default, which gives fp32 10 bits of mantissa. This too is the whole process's.
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
            self._streams = _Streams(self._device)
            embed_patches_by_products(backbone)
            if options.compile:
                self._compile(options)
            if options.cuda_graphs:
                self._backbone = Recorded(self._backbone, "backbone")
                self._heads = {name: Recorded(head, f"head '{name}'") for name, head in self._heads.items()}

    @classmethod
    def candidates(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> list[Candidate]:
        """Return on what the modules would run; see `protocol.RuntimeType.candidates`."""
        device = str(_resolve_device(options.device))
        return torch_candidates(
            options.precision, device, lambda name: cls(bundles, options.model_copy(update={"precision": name}))
        )

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
        """Close; nothing on disk is at fault. See `protocol.OpenedRuntime.refuse`."""
        self.close()
        return False

    def close(self) -> None:
        """Release the modules, the memory for uploads, and the GPU memory that PyTorch caches."""
        self._backbone = _closed
        self._heads.clear()
        self._streams = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()  # what is compiled for tensors of another mode would be compiled anew for the first frame
    def _compile(self, options: ComputeOptions) -> None:
        if options.network_size is None:
            raise ParameterError(
                "compile needs a network input of one size, and with this geometry it follows the frames; use geometry "
                "'stretch' or 'letterbox', or no compile"
            )
        batches = tuple(sorted({1, options.max_batch}))
        shapes = [(batch, *options.network_size, 3) for batch in batches]
        canvases = [torch.zeros(shape, dtype=torch.uint8).to(self._device) for shape in shapes]
        self._backbone, computed, is_compiled = compile_for(self._backbone, "backbone", [(one,) for one in canvases])
        self._batches = batches if is_compiled else ()
        for name, head in self._heads.items():
            inputs = [self._inputs_of(name, maps, images) for *maps, images in computed]
            self._heads[name], _, head_is_compiled = compile_for(head, f"head '{name}'", inputs)
            is_compiled &= head_is_compiled
        if is_compiled:
            self.description += ", compiled"

    def _place(self, module: AnyModule) -> AnyModule:
        # Channels last: depthwise convolutions are many times faster on a CPU, and tensor cores serve convolutions.
        layout: dict[str, Any] = {"memory_format": torch.channels_last}  # which PyTorch's types do not know
        return module.to(device=self._device, dtype=self._dtype, **layout)

    def _queue(self, images: torch.Tensor, heads: Sequence[str], streams: _Streams) -> _Computation:
        timeline = Timeline(partial(new_event, timed=True))
        frames = slice(len(images))
        images = self._fill_up(images)
        with timeline.step("upload", streams.uploading), torch.cuda.stream(streams.uploading):
            images = streams.upload(images)
        with torch.cuda.stream(streams.computing):
            images.record_stream(streams.computing)  # the memory belongs to the other stream, and this one reads it
            with timeline.step("backbone", streams.computing):
                *maps, normalised = self._backbone(images)
            with timeline.step("heads", streams.computing):
                logits = {name: self._run_head(name, maps, normalised)[frames] for name in heads}
        return _Computation(timeline, self._named([one[frames] for one in maps]), logits)

    def _fill_up(self, images: torch.Tensor) -> torch.Tensor:
        """Repeat the last frame up to a number of frames that was compiled; any other would be compiled now."""
        size = next((batch for batch in self._batches if batch >= len(images)), len(images))
        return (
            images if size == len(images) else torch.cat([images, images[-1:].expand(size - len(images), -1, -1, -1)])
        )

    def _run_head(self, name: str, maps: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        logits = self._heads[name](*self._inputs_of(name, maps, images))
        # A copy, since the next frame's logits are recorded into the same memory.
        return logits.to(torch.float32, copy=self._streams is not None)

    def _inputs_of(self, name: str, maps: Sequence[torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
        return [*(maps[index] for index in self._maps_of[name]), *([images] if name in self._reads_images else [])]

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


class _FromTensors(nn.Module):
    """A head whose maps, and images where it is image-guided, are arguments of their own."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self._head = head

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        *maps, last = tensors
        logits: torch.Tensor = self._head(maps, last) if self._head.reads_images else self._head(tensors)
        return logits


def _closed(_canvases: torch.Tensor) -> list[torch.Tensor]:
    raise RuntimeUnavailableError("the PyTorch runtime is closed; load the bundle again")


class _Streams:
    """A GPU's queues: one uploads the next batch while the other computes.

    The decode uses the default stream, so it waits for neither.
    """

    def __init__(self, device: torch.device) -> None:
        self.uploading, self.computing = new_stream(device), new_stream(device)
        self._staging = Staging(device)
        # What was loaded so far is on the default stream.
        for stream in (self.uploading, self.computing):
            stream.wait_stream(torch.cuda.default_stream(device))

    def upload(self, images: torch.Tensor) -> torch.Tensor:
        """Queue the copy of images in host memory to the GPU; the caller has made ``uploading`` the current stream."""
        return self._staging.upload(images, self.uploading)


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
