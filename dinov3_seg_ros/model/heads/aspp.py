"""The ASPP-style head: parallel 3x3 branches over the backbone's features, fused to class logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dinov3_seg_ros.model.heads.base import Head
from dinov3_seg_ros.model.heads.blocks import ConvNormAct, SeparableConvNormAct, sum_at_finest
from dinov3_seg_ros.support.errors import HeadError


class ASPPHead(Head):
    """Atrous spatial pyramid pooling over frozen features: the default head.

    Each map is brought to ``width`` channels by a 1x1 convolution, and maps of several strides are summed at the
    finest. Depthwise-separable 3x3 branches with the given dilation ``rates`` and the trunk, to which its global mean
    is added, are concatenated and fused; one depthwise-separable block and the 1x1 classifier follow.

    The branches are those of Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017,
    arXiv:1706.05587), with the separable convolutions of Chen et al., "Encoder-Decoder with Atrous Separable
    Convolution for Semantic Image Segmentation" (2018, arXiv:1802.02611). 0.37 M parameters at 134 classes on one map
    of 384 channels.

    Args:
        in_channels, strides, num_classes: see `Head`.
        width: channels of the trunk, at least 2; a branch has half of them.
        rates: dilation of each branch, in cells, at least 1.
        dropout: probability of dropping a channel before the classifier while training.
        detail: make the head image-guided; see `detail.DetailBranch`.

    Raises:
        HeadError: a value out of its range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        width: int = 192,
        rates: Sequence[int] = (1, 3, 6, 12),
        dropout: float = 0.1,
        detail: bool = False,
    ) -> None:
        super().__init__(in_channels, strides, num_classes)
        if width < 2 or not rates or min(rates) < 1:
            raise HeadError(f"the ASPP head needs width >= 2 and dilation rates >= 1; got {width} and {list(rates)}")
        branch_width = width // 2
        self.project = nn.ModuleList(ConvNormAct(channels, width) for channels in in_channels)
        self.branches = nn.ModuleList(SeparableConvNormAct(width, branch_width, dilation=rate) for rate in rates)
        self.pool = nn.Conv2d(width, width, kernel_size=1)
        self.fuse = ConvNormAct(width + branch_width * len(rates), width)
        self.refine = SeparableConvNormAct(width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)
        self.set_detail(detail, width)

    def extract(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, h_i, w_i) -> features (B, width, h, w) at the finest map's size."""
        trunk = sum_at_finest([project(m) for project, m in zip(self.project, maps, strict=True)])
        # The global mean is added to the trunk rather than concatenated: the same context for fewer channels to fuse.
        context = trunk + self.pool(trunk.mean(dim=(2, 3), keepdim=True))
        fused = self.fuse(torch.cat([context, *(branch(trunk) for branch in self.branches)], dim=1))
        refined: torch.Tensor = self.refine(fused)
        return refined

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """See `Head.classify`; drops channels before while training."""
        return super().classify(self.dropout(features))


class PlainASPPHead(Head):
    """The head of dinov3_ros: four parallel 3x3 branches without dilation, on one map.

    Architecture and parameter names are those of ``ASPPDecoder`` in
    https://github.com/Raessan/semantic_segmentation_dinov3 (its final interpolation left to the decode), so that its
    published weights load. 4.46 M parameters at 134 classes on 384 channels. Kept for them and for comparison; the
    default variant is 12 times smaller.

    Args:
        in_channels, strides, num_classes: see `Head`; one map only.

    Raises:
        HeadError: several maps.
    """

    expanded, narrow, branch_count = 576, 288, 4

    def __init__(self, in_channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(in_channels, strides, num_classes)
        if len(in_channels) != 1:
            raise HeadError(f"the plain ASPP head takes one feature map; got {len(in_channels)}: choose one layer")
        self.initial = _biased_conv_norm_act(in_channels[0], self.expanded)
        self.project = _biased_conv_norm_act(self.expanded, self.narrow)
        self.branches = nn.ModuleList(
            nn.Conv2d(self.narrow, self.narrow, kernel_size=3, padding=1) for _ in range(self.branch_count)
        )
        self.branches_bn = nn.ModuleList(nn.BatchNorm2d(self.narrow) for _ in range(self.branch_count))
        self.fuse = _biased_conv_norm_act(self.narrow * self.branch_count, self.expanded)
        self.ds = _PlainSeparable(self.expanded)
        self.classifier = nn.Conv2d(self.expanded, num_classes, kernel_size=1)

    def extract(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """One map (B, C, h, w) -> features (B, 576, h, w)."""
        narrow = self.project(self.initial(maps[0]))
        branches = [F.relu(bn(conv(narrow))) for conv, bn in zip(self.branches, self.branches_bn, strict=True)]
        features: torch.Tensor = self.ds(self.fuse(torch.cat(branches, dim=1)))
        return features


class _PlainSeparable(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.pw = nn.Conv2d(channels, channels, kernel_size=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.pw(self.dw(features))))


def _biased_conv_norm_act(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size=1), nn.BatchNorm2d(out_channels), nn.ReLU())
