"""Small bundles for the tests: random weights, real files."""

from __future__ import annotations

from pathlib import Path

import torch

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.manifest import BACKBONE_FOLDER, InputSection, Manifest
from dinov3_seg_ros.bundle.saving import describe_backbone, describe_head, save_bundle
from dinov3_seg_ros.frames.classes import ClassesSection, default_palette
from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.heads import build_head
from dinov3_seg_ros.model.identity import backbone_identity, save_backbone
from dinov3_seg_ros.model.weights import build_backbone

_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
#: Configurations, by family, of networks that take no time.
TINY_BACKBONES = {
    "dinov3_vit": {
        **_VIT, "model_type": "dinov3_vit", "patch_size": 16, "intermediate_size": 48, "num_register_tokens": 4,
        "use_gated_mlp": True, "hidden_act": "silu",
    },
    "dinov3_convnext": {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "dinov2": {**_VIT, "model_type": "dinov2", "patch_size": 16, "image_size": 224},
    "resnet": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}  # fmt: skip


def made_backbone(family: str, layers: list[int] | None = None) -> Backbone:
    """A frozen backbone of a family, with other weights than its initial ones."""
    torch.manual_seed(0)
    backbone = build_backbone(TINY_BACKBONES[family], layers=layers)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    backbone.freeze()
    return backbone.eval()


def tiny_backbone(layers: list[int] | None = None) -> Backbone:
    """A DINOv3 ConvNeXt of a few thousand parameters with reproducible random weights."""
    torch.manual_seed(0)
    return build_backbone(TINY_BACKBONES["dinov3_convnext"], layers=layers or [1, 2, 3])


def write_tiny_bundle(
    path: Path,
    *,
    name: str = "tiny",
    num_classes: int = 5,
    backbone: Backbone | None = None,
    network_size: tuple[int, int] = (64, 96),
    geometry: str = "letterbox",
    seed: int = 1,
    detail: bool = False,
) -> Bundle:
    """Write a bundle with random weights whose labels vary over the picture; with ``detail``, as the image does."""
    backbone = backbone or tiny_backbone()
    torch.manual_seed(seed)
    options = {"width": 16, "detail": True} if detail else {"width": 16}
    head = build_head("aspp", backbone.channels, backbone.strides, num_classes, **options).eval()
    # Random weights alone give almost one class everywhere.
    for layer in (head.classifier, *([head.detail.classifier] if head.detail else [])):
        torch.nn.init.normal_(layer.weight, std=3.0)

    def write_backbone(folder: Path) -> None:
        save_backbone(backbone, folder / BACKBONE_FOLDER)

    manifest = Manifest(
        name=name,
        backbone=describe_backbone(
            backbone, storage="embedded", source="random weights", identity=backbone_identity(backbone)
        ),
        input=InputSection(
            network_size=network_size, geometry=geometry, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        classes=ClassesSection(names=[f"class_{i}" for i in range(num_classes)], palette=default_palette(num_classes)),
        head=describe_head(head, "aspp", **options),
    )
    return save_bundle(path, manifest, head.state_dict(), write_backbone)
