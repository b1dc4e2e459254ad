"""The normalisation between the network's input and the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Normalise(nn.Module):
    """Network inputs (canvases) to what the backbone takes: (x / 255 - mean) / std.

    Args:
        mean, std: of the three channels of RGB, in 0..1.
    """

    _scale: torch.Tensor
    _offset: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Kept on the device: if they were uploaded with each batch, the host would wait for the GPU each time.
        self.register_buffer("_scale", _per_channel([255.0 * s for s in std]), persistent=False)
        self.register_buffer("_offset", _per_channel([m / s for m, s in zip(mean, std, strict=True)]), persistent=False)

    def forward(self, canvases: torch.Tensor) -> torch.Tensor:
        """Normalise: (N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32."""
        # Transposed before the arithmetic: ONNX Runtime is slow where the last of the axes has three values. Converted
        # before that: TensorRT does nothing else with uint8.
        return canvases.float().permute(0, 3, 1, 2) / self._scale - self._offset


def _per_channel(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]
