"""The PyTorch runtime: the bundle's own modules, as training ran them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from dinov3_seg_ros.artefacts import map_name
from dinov3_seg_ros.bundle import Bundle
from dinov3_seg_ros.errors import RuntimeUnavailableError
from dinov3_seg_ros.runtimes import RuntimeOptions

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

_DTYPES = {"auto": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The number is the whole process's, so that a former runtime's would stay.
_DEFAULT_THREADS = torch.get_num_threads()


def normalise(canvases: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Canvases (N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, (x / 255 - mean) / std; mean and std in 0..1."""
    scale = torch.tensor([255.0 * s for s in std], device=canvases.device)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=canvases.device)
    return (canvases / scale - offset).permute(0, 3, 1, 2)


class PyTorchRuntime:
    """The modules themselves; see `dinov3_seg_ros.runtimes.Runtime`.

    Precisions: fp32 (the default), fp16 and bf16. PyTorch's own norms and attention add up in fp32 in any of them.
    """

    name = "torch"
    sizes: tuple[tuple[int, int], ...] | None = None

    def __init__(self, bundles: Sequence[Bundle], options: RuntimeOptions) -> None:
        self._device, self._dtype = _resolve_device(options.device), _resolve_precision(options.precision)
        torch.set_num_threads(options.threads or _DEFAULT_THREADS)
        # Convolutions take TF32 by default, and fp32 would have 10 bits of mantissa. The whole process's as well.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        compiled = ", compiled" if options.compile else ""
        number_format = str(self._dtype).removeprefix("torch.")
        self.device = self.logits_device = self._device.type
        self.description = f"PyTorch {torch.__version__} on {self._device}, {number_format}{compiled}"
        first = bundles[0].manifest
        self._mean, self._std = first.input.mean, first.input.std
        wanted = {bundle.manifest.name: bundle.manifest.backbone.layers for bundle in bundles}
        union = sorted({layer for layers in wanted.values() for layer in layers})
        self._map_names = [map_name(layer) for layer in union]
        self._maps_of = {name: [union.index(layer) for layer in layers] for name, layers in wanted.items()}
        # In this layout depthwise convolutions are many times faster on a CPU, and tensor cores serve convolutions.
        placed = {"device": self._device, "dtype": self._dtype, "memory_format": torch.channels_last}
        self._backbone = bundles[0].load_backbone(layers=union).to(**placed)
        self._heads = {bundle.manifest.name: bundle.load_head().to(**placed) for bundle in bundles}
        if options.cuda_graphs and not options.compile and self._device.type == "cuda":
            self._backbone = _Recorded(self._backbone)
        self._overwrites_logits = options.compile and self._device.type == "cuda"
        if options.compile:
            # On a GPU this mode replays the whole network as one CUDA graph.
            mode = "reduce-overhead" if self._device.type == "cuda" else "default"
            for module in (self._backbone, *self._heads.values()):
                module.compile(mode=mode, dynamic=False)

    @classmethod
    def find_device(cls, _bundles: Sequence[Bundle], options: RuntimeOptions) -> str:
        """See `Runtime.find_device`."""
        _resolve_precision(options.precision)
        return _resolve_device(options.device).type

    @torch.inference_mode()
    def features(self, canvases: np.ndarray) -> list[torch.Tensor]:
        """(N, H, W, 3) uint8 -> the union of the maps that the heads read, on the device."""
        images = torch.from_numpy(np.ascontiguousarray(canvases)).to(self._device)
        maps = self._backbone(normalise(images, self._mean, self._std).to(self._dtype))
        self._wait()
        return maps

    def maps(self, features: list[torch.Tensor]) -> dict[str, np.ndarray]:
        """See `Runtime.maps`."""
        return {name: tensor.float().cpu().numpy() for name, tensor in zip(self._map_names, features, strict=True)}

    @torch.inference_mode()
    def logits(self, bundle_name: str, features: list[torch.Tensor]) -> np.ndarray | torch.Tensor:
        """Logits (N, C, h, w) float32: an array on the CPU, a tensor on a GPU."""
        maps = [features[index] for index in self._maps_of[bundle_name]]
        logits = self._heads[bundle_name](maps).float()
        if self._overwrites_logits:  # they lie in the memory of a CUDA graph, and are decoded only when they are read
            logits = logits.clone()
        self._wait()
        return logits if logits.is_cuda else logits.numpy()

    def close(self) -> None:
        """Drop the modules and give a GPU's cached memory back."""
        self._backbone = None
        self._heads.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


# The graph, where its input is copied to, and the maps that it writes.
_Recording = tuple[torch.cuda.CUDAGraph, torch.Tensor, list[torch.Tensor]]


class _Recorded:
    """A module whose kernels are recorded once for each shape of its input, then replayed as one CUDA graph.

    The network of a small backbone is hundreds of short kernels, which Python starts more slowly than a GPU runs them.
    """

    # Frame-sized geometries bring ever new shapes, and each recording keeps its own memory.
    _MOST = 8

    def __init__(self, module: torch.nn.Module) -> None:
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
            with torch.cuda.graph(graph, stream=stream):
                maps = self._module(place)
        except RuntimeError as error:
            shape = "x".join(map(str, images.shape))
            _logger.warning("the backbone runs without a CUDA graph for %s, somewhat slower: %s", shape, error)
            return None
        return graph, place, maps


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailableError("device 'cuda' was asked for, but PyTorch finds no CUDA GPU; use device 'cpu'")
    return torch.device(device)


def _resolve_precision(precision: str) -> torch.dtype:
    if precision not in _DTYPES:
        raise RuntimeUnavailableError(
            f"the torch runtime has no precision '{precision}', only {', '.join(_DTYPES)}; it takes exported graphs "
            f"(python -m dinov3_seg_ros.export, --precision {precision}) and another runtime"
        )
    return _DTYPES[precision]
