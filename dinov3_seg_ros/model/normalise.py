"""The normalisation between the network's input and the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Normalise(nn.Module):
    """Canvases (N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, (x / 255 - mean) / std; mean and std in 0..1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Kept on the device: made anew for each batch, they would make the host wait for what a GPU still computes.
        self.register_buffer("_scale", torch.tensor([255.0 * s for s in std]), persistent=False)
        self.register_buffer("_offset", torch.tensor([m / s for m, s in zip(mean, std, strict=True)]), persistent=False)

    def forward(self, canvases: torch.Tensor) -> torch.Tensor:
        """As the class says."""
        return (canvases / self._scale - self._offset).permute(0, 3, 1, 2)
