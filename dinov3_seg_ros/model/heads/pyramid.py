"""The pyramid head: feature pyramid, pyramid pooling and a small convolutional classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dinov3_seg_ros.model.heads.base import Head
from dinov3_seg_ros.model.heads.blocks import ConvNormAct, adaptive_mean, resize
from dinov3_seg_ros.support.errors import HeadError


class PyramidHead(Head):
    """FPN to stride 8, pyramid pooling, then a 3x3 and a 1x1 convolution; FPN and pooling can each be left out.

    The feature pyramid is that of Lin et al., "Feature Pyramid Networks for Object Detection" (2016, arXiv:1612.03144),
    of which only the finest level is kept; pooling and classifier are those of Zhao et al., "Pyramid Scene Parsing
    Network" (2016, arXiv:1612.01105). Meant for the stages of a ConvNeXt or ResNet.

    Args:
        in_channels, strides, num_classes: see `Head`; maps in order of depth.
        width: channels of the feature pyramid.
        fpn: fuse all maps at stride 8; without it, the last map is taken as it is.
        ppm: concatenate the pooled context of each of ``bins``.
        bins: rows and columns of each pooled grid.
        hidden: channels between the 3x3 and the 1x1 convolution.
        dropout: probability of dropping a channel before the 1x1 convolution while training.
        detail: make the head image-guided; see `detail.DetailBranch`.

    Raises:
        HeadError: a value out of its range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        width: int = 1024,
        fpn: bool = True,
        ppm: bool = True,
        bins: Sequence[int] = (1, 2, 3, 6),
        hidden: int = 512,
        dropout: float = 0.1,
        detail: bool = False,
    ) -> None:
        super().__init__(in_channels, strides, num_classes)
        if min(width, hidden) < 1 or not bins or min(bins) < 1:
            raise HeadError(
                f"the pyramid head needs width, hidden and bins of at least 1; got {width}, {hidden} and {list(bins)}"
            )
        self.fpn = _FeaturePyramid(in_channels, strides, width) if fpn else None
        channels = width if fpn else in_channels[-1]
        self.ppm = _PyramidPooling(channels, bins) if ppm else None
        self.hidden = ConvNormAct(self.ppm.out_channels if self.ppm else channels, hidden, kernel_size=3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden, num_classes, kernel_size=1)
        self.set_detail(detail, hidden)

    def extract(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, h_i, w_i) -> features (B, hidden, h, w) at stride 8, without FPN at the last map's size.

        Raises:
            HeadError: one image alone while BatchNorm trains, which cannot normalise its 1x1 bin.
        """
        features = self.fpn(maps) if self.fpn else maps[-1]
        if self.ppm:
            features = self.ppm(features)
        hidden: torch.Tensor = self.hidden(features)
        return hidden

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """See `Head.classify`; drops channels before while training."""
        return super().classify(self.dropout(features))


class _FeaturePyramid(nn.Module):
    """From the coarsest map to the finest: upsampled and added to the next; the sum is smoothed at stride 8."""

    stride = 8

    def __init__(self, in_channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.finest = strides.index(min(strides))
        self.scale = min(strides) / self.stride
        self.coarse_to_fine = sorted(range(len(strides)), key=lambda index: strides[index], reverse=True)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, kernel_size=1) for channels in in_channels)
        self.smooth = ConvNormAct(width, width, kernel_size=3)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        height, width = (max(1, round(cells * self.scale)) for cells in maps[self.finest].shape[-2:])
        merged: torch.Tensor | None = None
        for index in self.coarse_to_fine:
            # Averaging a finer map commutes with its 1x1 convolution, which then has less to do.
            rows, columns = maps[index].shape[-2:]
            level: torch.Tensor = self.lateral[index](resize(maps[index], (min(rows, height), min(columns, width))))
            merged = level if merged is None else level + resize(merged, (level.shape[-2], level.shape[-1]))
        assert merged is not None  # a head has at least one map
        smooth: torch.Tensor = self.smooth(resize(merged, (height, width)))
        return smooth


class _PyramidPooling(nn.Module):
    """The map itself beside its means over grids of several sizes; their channels together are as many as its own."""

    def __init__(self, channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = list(bins)
        branch_width = max(1, channels // len(self.bins))
        self.out_channels = channels + branch_width * len(self.bins)
        self.branches = nn.ModuleList(ConvNormAct(channels, branch_width) for _ in self.bins)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[-2:]
        try:
            contexts = [
                resize(branch(adaptive_mean(features, (bins, bins))), (height, width))
                for branch, bins in zip(self.branches, self.bins, strict=True)
            ]
        except ValueError as error:  # BatchNorm's, of a single value per channel
            raise HeadError(
                "a pyramid head whose BatchNorm trains cannot learn from one image at a time, of which a 1x1 bin holds "
                "one value: set batch_size to 2 or more for each process, batch_norm to synchronised (several GPUs) or "
                "frozen, or head.options.bins to others than 1"
            ) from error
        return torch.cat([features, *contexts], dim=1)
