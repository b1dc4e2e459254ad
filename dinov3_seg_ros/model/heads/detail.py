"""The image-guided branch: logits at stride 4, sharpened by the network input."""

from __future__ import annotations

import torch
from torch import nn

from dinov3_seg_ros.model.heads.blocks import ConvNormAct, SeparableConvNormAct, resize

_STEM_WIDTH, _WIDTH = 24, 48


class DetailBranch(nn.Module):
    """Corrects coarse logits by what a small convolutional branch sees in the image.

    The image goes through a 3x3 convolution and two depthwise-separable blocks to 48 channels at stride 4. The head's
    features are projected to as many channels and upsampled beside them. Two separable blocks and a 1x1 classifier give
    a correction, which is added to the upsampled logits. 36,000 parameters at 11 classes on features of 192 channels.

    The branch for fine detail beside a deep one is that of Yu et al., "BiSeNet: Bilateral Segmentation Network for
    Real-time Semantic Segmentation" (2018, arXiv:1808.00897); here the deep one is a frozen backbone.

    Args:
        feature_channels: channels of the head's last features.
        num_classes: output channels.
    """

    def __init__(self, feature_channels: int, num_classes: int) -> None:
        super().__init__()
        self.image = nn.Sequential(
            ConvNormAct(3, _STEM_WIDTH, kernel_size=3, stride=2),
            SeparableConvNormAct(_STEM_WIDTH, _WIDTH, stride=2),
            SeparableConvNormAct(_WIDTH, _WIDTH),
        )
        self.project = ConvNormAct(feature_channels, _WIDTH)
        self.fuse = nn.Sequential(
            SeparableConvNormAct(2 * _WIDTH, 2 * _WIDTH), SeparableConvNormAct(2 * _WIDTH, 2 * _WIDTH)
        )
        self.classifier = nn.Conv2d(2 * _WIDTH, num_classes, kernel_size=1)

    def forward(self, images: torch.Tensor, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Sharpen logits.

        Args:
            images: (B, 3, H, W) normalised, as the backbone takes them.
            features: (B, feature_channels, h, w), the head's last features.
            logits: (B, num_classes, h, w), made from them.

        Returns:
            Logits (B, num_classes, H / 4, W / 4).
        """
        seen = self.image(images)
        size = (seen.shape[-2], seen.shape[-1])
        correction: torch.Tensor = self.classifier(
            self.fuse(torch.cat([seen, resize(self.project(features), size)], 1))
        )
        return correction + resize(logits, size)
