"""The network that trains: backbone and head as one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.heads import Head, build_head
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.model.weights import build_backbone, load_backbone
from dinov3_seg_ros.support.errors import HeadError
from training.recipes.schema import BackboneChoice, HeadChoice


class SegmentationModel(nn.Module):
    """From canvases to low-resolution logits.

    Args:
        backbone, head: the two parts.
        mean, std: normalisation of each channel, for values 0..1.
        freeze_norm: whether BatchNorm keeps to its running statistics while training, and leaves them as they are.
    """

    def __init__(
        self, backbone: Backbone, head: Head, mean: Sequence[float], std: Sequence[float], freeze_norm: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self._normalise, self._freeze_norm = Normalise(mean, std), freeze_norm

    def train(self, mode: bool = True) -> SegmentationModel:
        """Like Module.train, but what is frozen stays in evaluation mode."""
        super().train(mode)
        if self._freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def features(self, canvases: Tensor) -> list[Tensor]:
        """The feature maps of canvases (B, H, W, 3) uint8 RGB."""
        return self.backbone(self._normalise(canvases))

    def forward(self, seen: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits (B, C, h, w) of canvases (B, H, W, 3) uint8 RGB, or of their feature maps."""
        maps = self.features(seen) if isinstance(seen, Tensor) else [feature_map.float() for feature_map in seen]
        device = maps[0].device.type
        if device == "cuda":
            return self.head(maps)
        # On CPUs torch 2.13 computes wrong bf16 gradients of dilated depthwise convolutions (channels-last order).
        with torch.autocast(device, enabled=False):
            return self.head([feature_map.float() for feature_map in maps])


def make_backbone(choice: BackboneChoice) -> Backbone:
    """The backbone of a recipe, frozen but for what the recipe trains.

    Raises:
        BackboneError: see `dinov3_seg_ros.backbone`.
    """
    read = {
        "layers": None if choice.layers == "auto" else choice.layers,
        "feature_norm": None if choice.feature_norm == "auto" else choice.feature_norm,
        "class_token": choice.class_token,
        "output_stride": choice.output_stride,
    }
    if choice.config is not None:
        backbone = build_backbone(choice.config, **read)
    else:
        backbone = load_backbone(choice.source, **read)
    trainable = choice.trainable
    if trainable == "auto":
        trainable = "none" if choice.config is None else "all"
    backbone.freeze(0 if trainable == "none" else trainable)
    return backbone


def make_head(choice: HeadChoice, backbone: Backbone, num_classes: int) -> Head:
    """The head of a recipe for the maps that ``backbone`` gives, with random weights or those to start from.

    Raises:
        HeadError: see `dinov3_seg_ros.model.heads.build_head`; or the weights to start from are of another shape.
        BundleError: the bundle to start from cannot be read.
    """
    head = build_head(
        choice.name, backbone.channels, backbone.strides, num_classes, variant=choice.variant, **choice.options
    )
    if choice.start_from is not None:
        try:
            head.load_weights(load_bundle(choice.start_from).load_head().state_dict())
        except HeadError as error:
            raise HeadError(
                f"head.start_from is {choice.start_from}, whose head is not this recipe's: {error}"
            ) from error
    return head
