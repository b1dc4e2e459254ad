"""The U-Net head: step by step up to the image's own size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from dinov3_seg_ros.model.heads.base import Head
from dinov3_seg_ros.model.heads.blocks import ConvNormAct, resize
from dinov3_seg_ros.support.errors import HeadError


class UNetHead(Head):
    """The last map upsampled in steps to one logit per pixel; shallower maps join as skip connections.

    Each step upsamples bilinearly and convolves 3x3. A step doubles the size as long as the stride allows, and the last
    one takes what is left of it: from a patch of 14 pixels 37 -> 74 -> 148 -> 296 -> 518 cells.

    The decoder is that of Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation" (2015,
    arXiv:1505.04597), with one convolution a step.

    Args:
        in_channels, strides, num_classes: see `Head`; maps in order of depth.
        widths: channels after each step.
        skips: the last map but one joins the first step, the one before it the second, and so on, each by a 1x1
            convolution; False leaves all but the last map out.

    Raises:
        HeadError: a value out of its range, or more skip connections than steps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        widths: Sequence[int] = (512, 256, 128, 64),
        skips: bool = True,
    ) -> None:
        super().__init__(in_channels, strides, num_classes)
        if not widths or min(widths) < 1:
            raise HeadError(f"the U-Net head needs at least one width, each at least 1; got {list(widths)}")
        skip_channels = list(reversed(in_channels[:-1])) if skips else []
        if len(skip_channels) > len(widths):
            raise HeadError(
                f"the U-Net head with {len(widths)} steps takes up to {len(widths)} skip connections; got "
                f"{len(in_channels)} maps: choose fewer layers or give more widths"
            )
        self._skip_count = len(skip_channels)
        self.steps = nn.ModuleList(
            _Step(above, skip, width)
            for above, width, skip in itertools.zip_longest([in_channels[-1], *widths[:-1]], widths, skip_channels)
        )
        self.classifier = nn.Conv2d(widths[-1], num_classes, kernel_size=1)

    def extract(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, h_i, w_i) -> features (B, C, H, W) at the size of the backbone's input."""
        features, *skips = maps[-1 - self._skip_count :][::-1]
        height, width = features.shape[-2:]
        for step, factor, skip in itertools.zip_longest(self.steps, self._factors(), skips):
            features = step(features, (height * factor, width * factor), skip)
        return features

    def _factors(self) -> list[int]:
        """How many times larger than the last map the result of each step is."""
        stride, count = self.strides[-1], len(self.steps)
        return [*(min(2**step, stride) for step in range(1, count)), stride]


class _Step(nn.Module):
    """Upsampling, a skip connection where there is one, and a 3x3 convolution."""

    def __init__(self, in_channels: int, skip_channels: int | None, width: int) -> None:
        super().__init__()
        self.skip = ConvNormAct(skip_channels, width) if skip_channels else None
        self.fuse = ConvNormAct(in_channels + (width if skip_channels else 0), width, kernel_size=3)

    def forward(self, features: torch.Tensor, size: tuple[int, int], skip: torch.Tensor | None) -> torch.Tensor:
        features = resize(features, size)
        if self.skip is not None:
            features = torch.cat([features, resize(self.skip(skip), size)], dim=1)
        fused: torch.Tensor = self.fuse(features)
        return fused
