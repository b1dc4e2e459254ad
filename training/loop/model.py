"""The network that trains: backbone and head in one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.heads import Head, build_head
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.model.weights import build_backbone, load_backbone
from dinov3_seg_ros.support.errors import HeadError, first_of
from training.recipes.schema import BackboneChoice, HeadChoice

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SegmentationModel(nn.Module):
    """Backbone and head: from canvases, the network input (B, H, W, 3) uint8 RGB, to low-resolution logits.

    Args:
        backbone, head: the two parts.
        mean, std: normalisation of each channel, for values 0..1.
        freeze_norm: whether BatchNorm uses its running statistics while training, and leaves them as they are.
    """

    def __init__(
        self, backbone: Backbone, head: Head, mean: Sequence[float], std: Sequence[float], freeze_norm: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self._normalise, self._freeze_norm = Normalise(mean, std), freeze_norm

    def train(self, mode: bool = True) -> SegmentationModel:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode; see `nn.Module.train`."""
        super().train(mode)
        if self._freeze_norm:
            for module in self.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()
        return self

    def normalise(self, canvases: Tensor) -> Tensor:
        """Canvases (B, H, W, 3) uint8 RGB as the backbone and image-guided heads take them, (B, 3, H, W) float32."""
        images: Tensor = self._normalise(canvases)
        return images

    def features(self, canvases: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) of canvases (B, H, W, 3) uint8 RGB."""
        maps: list[Tensor] = self.backbone(self.normalise(canvases))
        return maps

    def forward(self, seen: Tensor | Sequence[Tensor]) -> Tensor:
        """Compute logits (B, C, h, w).

        Args:
            seen: canvases (B, H, W, 3) uint8 RGB; or their feature maps (B, C, h, w) and, for an image-guided head,
                the canvases last.
        """
        images: Tensor | None = None
        if isinstance(seen, Tensor):
            images = self.normalise(seen)
            maps: list[Tensor] = self.backbone(images)
        else:
            count = len(self.head.in_channels)
            maps = [feature_map.float() for feature_map in seen[:count]]
            images = self.normalise(seen[count]) if self.head.reads_images else None
        device = maps[0].device.type
        logits: Tensor
        if device == "cuda":
            logits = self.head(maps, images)
        else:
            # On CPUs torch 2.13 computes wrong bf16 gradients of dilated depthwise convolutions (channels-last order).
            with torch.autocast(device, enabled=False):
                logits = self.head([feature_map.float() for feature_map in maps], images)
        return logits


def make_backbone(choice: BackboneChoice) -> Backbone:
    """Build or load the backbone of a recipe; all of it is frozen but the part that the recipe trains.

    Raises:
        BackboneError: see `dinov3_seg_ros.model.weights`.
    """
    layers = None if choice.layers == "auto" else choice.layers
    feature_norm = None if choice.feature_norm == "auto" else choice.feature_norm
    if choice.config is not None:
        backbone = build_backbone(choice.config, layers, feature_norm, choice.class_token, choice.output_stride)
    else:
        assert choice.source is not None  # the schema demands one of the two
        backbone = load_backbone(choice.source, layers, feature_norm, choice.class_token, choice.output_stride)
    trainable = choice.trainable
    if trainable == "auto":
        trainable = "none" if choice.config is None else "all"
    backbone.freeze(0 if trainable == "none" else trainable)
    return backbone


def make_head(choice: HeadChoice, backbone: Backbone, class_names: Sequence[str]) -> Head:
    """Build the head of a recipe for the maps of ``backbone``, with random weights or those of another bundle.

    Classes keep the weights that they have in the other bundle, by name. New ones have random weights.

    Raises:
        HeadError: see `dinov3_seg_ros.model.heads.build_head`; or the other bundle's weights have another shape.
        BundleError: the bundle to start from cannot be read.
    """
    head = build_head(
        choice.name, backbone.channels, backbone.strides, len(class_names), variant=choice.variant, **choice.options
    )
    if choice.start_from is not None:
        bundle = load_bundle(choice.start_from)
        id_of = {name: index for index, name in enumerate(bundle.manifest.classes.names)}
        sources = [id_of.get(name) for name in class_names]
        try:
            head.load_weights(head.weights_for_classes(bundle.load_head().state_dict(), sources))
        except HeadError as error:
            raise HeadError(
                f"head.start_from is {choice.start_from}, whose head is not this recipe's: {error}"
            ) from error
    return head


def changed_classes(choice: HeadChoice, class_names: Sequence[str]) -> str:
    """Which classes the head of a recipe does not share with the bundle that it starts from; empty for none.

    Raises:
        BundleError: that bundle cannot be read.
    """
    if choice.start_from is None:
        return ""
    before = load_bundle(choice.start_from).manifest.classes.names
    new, gone = (
        [name for name in class_names if name not in before],
        [name for name in before if name not in class_names],
    )
    said = [f"{what}: {first_of(names, 10)}" for what, names in (("new", new), ("no longer there", gone)) if names]
    return f"classes of the head since {choice.start_from}: {'; '.join(said)}" if said else ""
