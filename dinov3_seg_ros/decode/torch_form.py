"""The decode of a tensor on an accelerator, done there.

On a CUDA device one kernel does it (`triton_kernel`), without interpolated logits in memory. Where triton is not
installed or cannot compile, and on other devices, torch does it in bands of rows.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch

from dinov3_seg_ros.decode.grid import Axis, Grid, plan_grid
from dinov3_seg_ros.support.files import cache_folder, is_writable

Tables: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # the first of `Axis.arrays`

_logger = logging.getLogger(__name__)

_BAND_VALUES = 1 << 25  # interpolated logits that exist at a time: 128 MiB in float32


class _Fill(Protocol):
    def __call__(
        self,
        logits: torch.Tensor,
        rows: Tables,
        columns: Tables,
        labels: torch.Tensor,
        confidence: torch.Tensor | None,
    ) -> None: ...


def decode(logits: torch.Tensor, grid: Grid, with_confidence: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decode on the device of the logits.

    Args:
        logits: (B, C, h, w) of any floating type.
        grid: the plan for logits of this shape.
        with_confidence: whether it is wanted.

    Returns:
        Labels (B, H, W) of the grid's ``label_type``, and confidence (B, H, W) uint8 or None.
    """
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
def _choose_fill(device: torch.device) -> _Fill:
    if device.type == "cuda":
        try:
            return _try_kernel(device)
        except Exception as error:  # no triton, no C compiler for what it generates, a GPU that it does not know
            _logger.warning("decoding with torch's operations, slower, since triton cannot be used: %s", error)
    return _fill_in_bands


def _try_kernel(device: torch.device) -> _Fill:
    from dinov3_seg_ros.decode import triton_kernel

    _find_room_for_kernels()
    cell = torch.zeros((1, 1, 1, 1), device=device)
    labels = torch.empty((1, 1, 1), dtype=torch.uint8, device=device)
    triton_kernel.fill(cell, *_upload(plan_grid((1, 1, 1, 1), (1, 1), None), device), labels, None)
    return triton_kernel.fill


def _find_room_for_kernels() -> None:
    """Let triton keep what it compiles elsewhere if the user's home cannot be written: it fails without a folder."""
    own = Path(os.path.expanduser("~/.triton"))
    chosen = {"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys()
    if chosen or (own.is_absolute() and is_writable(own)):
        return
    folder = cache_folder("compiled") / "triton"
    if not is_writable(folder):
        folder = Path(tempfile.mkdtemp(prefix="triton_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TRITON_CACHE_DIR"] = str(folder)


@lru_cache(maxsize=16)
def _upload(grid: Grid, device: torch.device) -> tuple[Tables, Tables]:
    """The tables of the rows and of the columns, on the device."""

    def upload(axis: Axis) -> Tables:
        low, high, low_weight, high_weight = (torch.tensor(array, device=device) for array in axis.arrays[:4])
        return low, high, low_weight, high_weight

    return upload(grid.rows), upload(grid.columns)


def _fill_in_bands(
    logits: torch.Tensor,
    rows: Tables,
    columns: Tables,
    labels: torch.Tensor,
    confidence: torch.Tensor | None,
) -> None:
    """Decode as ``triton_kernel.fill`` does, with torch's operations."""
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
