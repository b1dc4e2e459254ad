"""The decode of a tensor that lives on an accelerator, done there, in bands of rows."""

from __future__ import annotations

import numpy as np
import torch

from dinov3_seg_ros.decode.geometry import Axis, Grid

_BAND_VALUES = 1 << 25  # interpolated logits that exist at a time: 128 MiB in float32


def decode(logits: torch.Tensor, grid: Grid, with_confidence: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels and confidence, both (B, H, W) on the logits' device, from floating ``logits`` (B, C, h, w)."""
    logits = logits.detach().float()
    batch, classes = logits.shape[:2]
    height, width = grid.size
    label_type = torch.uint8 if grid.label_type == np.uint8 else torch.uint16
    labels = torch.empty((batch, height, width), dtype=label_type, device=logits.device)
    confidence = torch.empty_like(labels, dtype=torch.uint8) if with_confidence else None
    band_rows = max(1, _BAND_VALUES // (batch * classes * width))
    for start in range(0, height, band_rows):
        rows = slice(start, start + band_rows)
        band = _blend(_blend(logits, grid.columns, slice(None), axis=3), grid.rows, rows, axis=2)
        best, winners = band.max(dim=1)
        labels[:, rows] = winners.to(label_type)
        if confidence is not None:
            share = torch.exp(best - band.logsumexp(dim=1))
            confidence[:, rows] = torch.round(255 * share).nan_to_num(0).to(torch.uint8)
    return labels, confidence


def _blend(values: torch.Tensor, axis_plan: Axis, positions: slice, axis: int) -> torch.Tensor:
    shape = [1, 1, 1, 1]
    shape[axis] = -1

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array[positions], device=values.device)

    low = values.index_select(axis, on_device(axis_plan.low)) * on_device(axis_plan.low_weight).view(shape)
    high = values.index_select(axis, on_device(axis_plan.high)) * on_device(axis_plan.high_weight).view(shape)
    return low + high
