"""Hugging Face's layout without its config.json: names and shapes of the tensors tell the configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinov3_seg_ros.model.pretrained.meta_dinov3 import count_blocks, vit_config
from dinov3_seg_ros.model.pretrained.timm import HEAD_CHANNELS
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
        heads=_heads(channels),
        depth=count_blocks(tensors, _DINOV3_LAYER),
        hidden=tensors["layer.0.mlp.up_proj.weight"].shape[0],
        gated="layer.0.mlp.gate_proj.weight" in tensors,
        registers=tensors["embeddings.register_tokens"].shape[1],
        patch_size=patch_size,
        colours=colours,
        key_bias="layer.0.attention.k_proj.bias" in tensors,
    )


def _dinov2_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    channels, colours, patch_size, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    side = math.isqrt(tensors["embeddings.position_embeddings"].shape[1] - 1)
    config = {
        "model_type": "dinov2",
        "patch_size": patch_size,
        "num_channels": colours,
        "hidden_size": channels,
        "num_hidden_layers": count_blocks(tensors, _DINOV2_LAYER),
        "num_attention_heads": _heads(channels),
        "mlp_ratio": 4,
        "use_swiglu_ffn": "encoder.layer.0.mlp.weights_in.weight" in tensors,
        "image_size": side * patch_size,
        "layer_norm_eps": 1e-6,
    }
    if "embeddings.register_tokens" in tensors:
        registers = tensors["embeddings.register_tokens"].shape[1]
        config |= {"model_type": "dinov2_with_registers", "num_register_tokens": registers}
    return config


def _convnext_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = count_blocks(tensors, _STAGE)
    return {
        "model_type": "dinov3_convnext",
        "num_channels": tensors["stages.0.downsample_layers.0.weight"].shape[1],
        "hidden_sizes": [tensors[f"stages.{stage}.layers.0.gamma"].shape[0] for stage in range(stages)],
        "depths": [
            count_blocks(tensors, re.compile(rf"stages\.{stage}\.layers\.(\d+)\..+")) for stage in range(stages)
        ],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def _heads(channels: int) -> int:
    if channels % HEAD_CHANNELS:
        raise BackboneError(
            f"its {channels} channels are no multiple of {HEAD_CHANNELS}, as those of published backbones are; put its "
            "config.json beside it."
        )
    return channels // HEAD_CHANNELS
