"""Layers that several heads are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU; keeps the spatial size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class SeparableConvNormAct(nn.Sequential):
    """Depthwise 3x3 (optionally atrous), then pointwise convolution, BatchNorm and ReLU; keeps the spatial size."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
            *ConvNormAct(in_channels, out_channels),
        )


def sum_at_finest(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum maps of equal channels (B, C, h_i, w_i) at the largest of their sizes, the others upsampled bilinearly."""
    finest = max(maps, key=lambda m: m.shape[-2] * m.shape[-1])
    total = finest
    for feature_map in maps:
        if feature_map is finest:
            continue
        if feature_map.shape[-2:] != finest.shape[-2:]:
            feature_map = F.interpolate(feature_map, size=finest.shape[-2:], mode="bilinear", align_corners=False)
        total = total + feature_map
    return total
