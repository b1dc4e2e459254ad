"""The PyTorch runtime: the bundle's own modules, as training ran them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dinov3_seg_ros.bundle import Bundle
from dinov3_seg_ros.errors import ParameterError


def normalise(canvases: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Canvases (N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, (x / 255 - mean) / std; mean and std in 0..1."""
    scale = torch.tensor([255.0 * s for s in std], device=canvases.device)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=canvases.device)
    return (canvases / scale - offset).permute(0, 3, 1, 2)


class PyTorchRuntime:
    """Eager float32 inference; see `dinov3_seg_ros.runtimes.Runtime`."""

    name = "torch"

    def __init__(self, bundles: Sequence[Bundle], device: str = "auto") -> None:
        self._device = _resolve_device(device)
        self.description = f"PyTorch {torch.__version__} on {self._device}, float32"
        first = bundles[0].manifest
        self._mean, self._std = first.input.mean, first.input.std
        wanted = {bundle.manifest.name: bundle.manifest.backbone.layers for bundle in bundles}
        union = sorted({layer for layers in wanted.values() for layer in layers})
        self._maps_of = {name: [union.index(layer) for layer in layers] for name, layers in wanted.items()}
        # In this layout depthwise convolutions are many times faster on a CPU, and tensor cores serve convolutions.
        placed = {"device": self._device, "memory_format": torch.channels_last}
        self._backbone = bundles[0].load_backbone(layers=union).to(**placed)
        self._heads = {bundle.manifest.name: bundle.load_head().to(**placed) for bundle in bundles}

    @torch.inference_mode()
    def features(self, canvases: np.ndarray) -> list[torch.Tensor]:
        """(N, H, W, 3) uint8 -> the union of the maps that the heads read, on the device."""
        images = torch.from_numpy(np.ascontiguousarray(canvases)).to(self._device)
        maps = self._backbone(normalise(images, self._mean, self._std))
        self._wait()
        return maps

    @torch.inference_mode()
    def logits(self, bundle_name: str, features: list[torch.Tensor]) -> np.ndarray | torch.Tensor:
        """Logits (N, C, h, w) float32: an array on the CPU, a tensor on a GPU."""
        maps = [features[index] for index in self._maps_of[bundle_name]]
        logits = self._heads[bundle_name](maps).float()
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


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ParameterError(f"unknown device '{device}'; use auto, cpu or cuda") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ParameterError(f"device '{device}' was asked for, but PyTorch finds no CUDA GPU; use device 'cpu'")
    return resolved
