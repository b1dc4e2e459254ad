"""Layers that several heads are made of."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import nn

_handed_out: ContextVar[list[torch.Tensor] | None] = ContextVar("_handed_out", default=None)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU; keeps the spatial size, but for its stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class SeparableConvNormAct(nn.Sequential):
    """Depthwise 3x3 (optionally atrous), then pointwise convolution, BatchNorm and ReLU; keeps the size, but for its
    stride."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, stride, dilation, dilation, groups=in_channels, bias=False),
            *ConvNormAct(in_channels, out_channels),
        )


def resize(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring a map (B, C, h, w) to ``size``: upsampled bilinearly, or averaged where that is smaller."""
    height, width = feature_map.shape[-2:]
    if (height, width) == tuple(size):
        return feature_map
    if size[0] <= height and size[1] <= width:
        return adaptive_mean(feature_map, size)
    if size[0] % height == 0 and size[1] % width == 0:
        # An exported graph has factors as constants, but computes sizes from the batch's. Only with factors does ONNX
        # Runtime upsample in its own layout for convolutions, and add logits while it convolves.
        factors = (float(size[0] // height), float(size[1] // width))
        return F.interpolate(feature_map, scale_factor=factors, mode="bilinear", align_corners=False)
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


def adaptive_mean(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mean of a map (B, C, h, w) in each of ``size`` (rows, columns) bins: (B, C, rows, columns).

    It equals `torch.nn.functional.adaptive_avg_pool2d`, which neither ONNX nor TensorRT has when the bins do not divide
    the map; two products with constant matrices are the same sums.
    """
    # A traced matrix becomes part of its graph; the cache must not give it to another.
    is_traced = torch.compiler.is_compiling()
    matrix = _averaging_matrix.__wrapped__ if is_traced else _averaging_matrix
    rows, columns = (
        matrix(cells, bins, feature_map.dtype, feature_map.device)
        for cells, bins in zip(feature_map.shape[-2:], size, strict=True)
    )
    if not is_traced and (handed_out := _handed_out.get()) is not None:
        handed_out += [rows, columns]
    return rows @ (feature_map @ columns.T)


@contextlib.contextmanager
def averaging_matrices_collected() -> Iterator[list[torch.Tensor]]:
    """Yield a list of the matrices that `adaptive_mean` reads within, which their cache may drop at any time."""
    collected: list[torch.Tensor] = []
    token = _handed_out.set(collected)
    try:
        yield collected
    finally:
        _handed_out.reset(token)


@functools.lru_cache(maxsize=64)  # uploading a new one would make the host wait for the GPU's work before it
def _averaging_matrix(cells: int, bins: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Weights (bins, cells) of means over ``bins`` equal parts of a line; a cell on a border counts in both parts."""
    parts = [(i * cells // bins, -(-(i + 1) * cells // bins)) for i in range(bins)]
    weights = [[1 / (end - start) if start <= cell < end else 0.0 for cell in range(cells)] for start, end in parts]
    with torch.inference_mode(False):  # training may use it as well
        return torch.tensor(weights, dtype=dtype, device=device)


def finest_size(maps: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Height and width of the largest of several maps."""
    height, width = max((m.shape[-2:] for m in maps), key=math.prod)
    return height, width


def sum_at_finest(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum maps of equal channels (B, C, h_i, w_i) at the largest of their sizes, the others upsampled bilinearly."""
    size = finest_size(maps)
    return functools.reduce(torch.add, (resize(m, size) for m in maps))
