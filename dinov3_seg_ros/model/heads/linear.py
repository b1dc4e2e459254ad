"""The linear head: one 1x1 convolution over normalised features, the yardstick for frozen backbones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dinov3_seg_ros.model.heads.base import Head
from dinov3_seg_ros.model.heads.blocks import finest_size, resize
from dinov3_seg_ros.support.errors import HeadError


class LinearHead(Head):
    """Maps concatenated at the finest of their sizes, dropout, BatchNorm and a 1x1 classifier.

    On the last block, the linear probe of Siméoni et al., "DINOv3" (2025, arXiv:2508.10104). With ``dropout=0`` on the
    last four blocks, the head of Oquab et al., "DINOv2" (2023, arXiv:2304.07193): 35,349 parameters at 21 classes on
    4 x 384 channels. Their class token joins as further channels of each map: ``class_token`` of the backbone.

    Args:
        in_channels, strides, num_classes: see `Head`.
        dropout: probability of dropping a channel before the norm while training.
        resize_factors: for each map, what its height and width are multiplied by before all maps are brought to the
            finest of them: above 1 bilinearly, below 1 by averaging. None: as they are.
        detail: make the head image-guided; see `detail.DetailBranch`. It is no linear probe then.

    Raises:
        HeadError: a value out of its range, or not one factor for each map.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        dropout: float = 0.1,
        resize_factors: Sequence[float] | None = None,
        detail: bool = False,
    ) -> None:
        super().__init__(in_channels, strides, num_classes)
        self.resize_factors = [1.0] * len(in_channels) if resize_factors is None else list(resize_factors)
        if len(self.resize_factors) != len(in_channels) or min(self.resize_factors) <= 0:
            raise HeadError(
                f"the linear head needs one resize factor above 0 for each of its {len(in_channels)} maps; "
                f"got {self.resize_factors}"
            )
        channels = sum(in_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)
        self.set_detail(detail, channels)

    def extract(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, h_i, w_i) -> all their channels (B, C, h, w), at the size of the finest after its factor."""
        scaled = [
            resize(m, (max(1, int(m.shape[-2] * factor)), max(1, int(m.shape[-1] * factor))))
            for m, factor in zip(maps, self.resize_factors, strict=True)
        ]
        size = finest_size(scaled)
        return torch.cat([resize(m, size) for m in scaled], dim=1)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """See `Head.classify`; normalises before, and drops channels while training."""
        return super().classify(self.norm(self.dropout(features)))
