"""Hugging Face's layout without its config.json: names and shapes of the tensors tell the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinov3_seg_ros.model.pretrained.configuration import (
    convnext_config,
    count_blocks,
    count_heads,
    dinov2_config,
    vit_config,
)
from dinov3_seg_ros.support.errors import BackboneError

# Whole models keep their backbone below the name of its type.
_PREFIX = re.compile(r"(dinov2|dinov2_with_registers|dinov3_vit|dinov3_convnext)\.")
_DINOV3_LAYER = re.compile(r"layer\.(\d+)\..+")
_DINOV2_LAYER = re.compile(r"encoder\.layer\.(\d+)\..+")
_STAGE = re.compile(r"stages\.(\d+)\..+")


def is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names that Hugging Face gives a DINOv2 or DINOv3 backbone."""
    names = set(map(_bare, tensors))
    return "embeddings.cls_token" in names or any(name.startswith("stages.0.layers.0.") for name in names)


def config_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of a published DINOv2 or DINOv3 backbone, from its tensors.

    Raises:
        BackboneError: tensors that tell it are missing.
    """
    tensors = {_bare(name): tensor for name, tensor in tensors.items()}
    try:
        if "embeddings.position_embeddings" in tensors:
            return _dinov2_config(tensors)
        if "embeddings.cls_token" in tensors:
            return _dinov3_config(tensors)
        return _convnext_config(tensors)
    except KeyError as error:
        raise BackboneError(f"the tensor {error.args[0]} is missing.") from error


def _bare(name: str) -> str:
    return _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name


def _dinov3_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    channels, colours, patch_size, _ = tensors["embeddings.patch_embeddings.weight"].shape
    return vit_config(
        channels=channels,
        heads=count_heads(channels),
        depth=count_blocks(tensors, _DINOV3_LAYER),
        hidden=tensors["layer.0.mlp.up_proj.weight"].shape[0],
        gated="layer.0.mlp.gate_proj.weight" in tensors,
        registers=tensors["embeddings.register_tokens"].shape[1],
        patch_size=patch_size,
        colours=colours,
        key_bias="layer.0.attention.k_proj.bias" in tensors,
    )


def _dinov2_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return dinov2_config(
        patches=tensors["embeddings.patch_embeddings.projection.weight"],
        positions=tensors["embeddings.position_embeddings"],
        registers=tensors.get("embeddings.register_tokens"),
        depth=count_blocks(tensors, _DINOV2_LAYER),
        swiglu="encoder.layer.0.mlp.weights_in.weight" in tensors,
    )


def _convnext_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = range(count_blocks(tensors, _STAGE))
    return convnext_config(
        colours=tensors["stages.0.downsample_layers.0.weight"].shape[1],
        channels=[tensors[f"stages.{stage}.layers.0.gamma"].shape[0] for stage in stages],
        depths=[count_blocks(tensors, re.compile(rf"stages\.{stage}\.layers\.(\d+)\..+")) for stage in stages],
    )
