"""The decode of a tensor that lives on an accelerator, done there.

On a CUDA device one kernel does it (`triton_kernel`), without interpolated logits in memory. Where triton is not
installed or cannot compile, and on other devices, torch does it in bands of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
import torch

from dinov3_seg_ros.decode.grid import Grid, plan_grid

_logger = logging.getLogger(__name__)

_BAND_VALUES = 1 << 25  # interpolated logits that exist at a time: 128 MiB in float32


def decode(logits: torch.Tensor, grid: Grid, with_confidence: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Labels and confidence, both (B, H, W) on the logits' device, from floating ``logits`` (B, C, h, w)."""
    label_type = torch.uint8 if grid.label_type == np.uint8 else torch.uint16
    labels = torch.empty(grid.shape, dtype=label_type, device=logits.device)
    confidence = torch.empty_like(labels, dtype=torch.uint8) if with_confidence else None
    fill = _choose_fill(logits.device)
    fill(logits.detach(), *_upload(grid, logits.device), labels, confidence)
    return labels, confidence


def backend(device: torch.device) -> str:
    """What decodes the tensors of a device other than the CPU: "triton" or "torch"."""
    return "torch" if _choose_fill(device) is _fill_in_bands else "triton"


@cache
def _choose_fill(device: torch.device) -> Callable[..., None]:
    if device.type == "cuda":
        try:
            return _try_kernel(device)
        except Exception as error:  # no triton, no C compiler for what it generates, a GPU that it does not know
            _logger.warning("decoding with torch's operations, slower, since triton cannot be used: %s", error)
    return _fill_in_bands


def _try_kernel(device: torch.device) -> Callable[..., None]:
    from dinov3_seg_ros.decode import triton_kernel

    cell = torch.zeros((1, 1, 1, 1), device=device)
    labels = torch.empty((1, 1, 1), dtype=torch.uint8, device=device)
    triton_kernel.fill(cell, *_upload(plan_grid((1, 1, 1, 1), (1, 1), None), device), labels, None)
    return triton_kernel.fill


@lru_cache(maxsize=16)
def _upload(grid: Grid, device: torch.device) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Low, high, low_weight and high_weight of the rows and of the columns, on the device."""
    axes = grid.rows, grid.columns
    return tuple(tuple(torch.tensor(array, device=device) for array in axis.arrays[:4]) for axis in axes)


def _fill_in_bands(
    logits: torch.Tensor,
    rows: Sequence[torch.Tensor],
    columns: Sequence[torch.Tensor],
    labels: torch.Tensor,
    confidence: torch.Tensor | None,
) -> None:
    """As ``triton_kernel.fill``."""
    batch, height, width = labels.shape
    across = _blend(logits.float(), columns, axis=3)
    band_rows = max(1, _BAND_VALUES // (batch * logits.shape[1] * width))
    for start in range(0, height, band_rows):
        part = slice(start, start + band_rows)
        band = _blend(across, [table[part] for table in rows], axis=2)
        best, winners = band.max(dim=1)
        labels[:, part] = winners.to(labels.dtype)
        if confidence is not None:
            share = torch.exp(best - band.logsumexp(dim=1))
            confidence[:, part] = torch.round(255 * share).nan_to_num(0).to(torch.uint8)


def _blend(values: torch.Tensor, tables: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    low, high, low_weight, high_weight = tables
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    before = values.index_select(axis, low) * low_weight.view(shape)
    return before + values.index_select(axis, high) * high_weight.view(shape)
