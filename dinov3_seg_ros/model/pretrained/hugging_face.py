"""Hugging Face's layout without its config.json: names and shapes of the tensors tell the configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinov3_seg_ros.model.pretrained.configuration import HEAD_CHANNELS, ROPE_THETA, count_blocks, count_heads
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


def config_of(tensors: Mapping[str, Tensor], head_channels: int = HEAD_CHANNELS) -> dict[str, Any]:
    """The configuration of a DINOv2 or DINOv3 backbone, from its tensors.

    Args:
        tensors: by Hugging Face's names.
        head_channels: of each attention head of a ViT, which no tensor tells.

    Raises:
        BackboneError: tensors that tell it are missing, or are not those of a supported backbone.
    """
    tensors = {_bare(name): tensor for name, tensor in tensors.items()}
    try:
        if "embeddings.position_embeddings" in tensors:
            return _dinov2_config(tensors)
        if any(name.startswith("stages.") for name in tensors):
            return _convnext_config(tensors)
        return _dinov3_config(tensors, head_channels)
    except KeyError as error:
        raise BackboneError(f"the tensor {error.args[0]}, as transformers names it, is missing.") from error


def _bare(name: str) -> str:
    return _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name


def _dinov3_config(tensors: Mapping[str, Tensor], head_channels: int) -> dict[str, Any]:
    channels, colours, patch_size, _ = tensors["embeddings.patch_embeddings.weight"].shape
    gated = "layer.0.mlp.gate_proj.weight" in tensors
    return {
        "model_type": "dinov3_vit",
        "patch_size": patch_size,
        "num_channels": colours,
        "hidden_size": channels,
        "intermediate_size": tensors["layer.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": count_blocks(tensors, _DINOV3_LAYER),
        "num_attention_heads": count_heads(channels, head_channels),
        "num_register_tokens": tensors["embeddings.register_tokens"].shape[1],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "layer_norm_eps": 1e-5,
        "rope_theta": ROPE_THETA,
        "query_bias": True,
        "key_bias": "layer.0.attention.k_proj.bias" in tensors,
        "value_bias": True,
    }


def _dinov2_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    channels, colours, patch_size, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    count = tensors["embeddings.position_embeddings"].shape[1]
    side = math.isqrt(max(count - 1, 0))
    if side * side != count - 1:
        raise BackboneError(f"its {count} positions are not those of a class token and a square of patches.")
    config = {
        "model_type": "dinov2",
        "patch_size": patch_size,
        "num_channels": colours,
        "hidden_size": channels,
        "num_hidden_layers": count_blocks(tensors, _DINOV2_LAYER),
        "num_attention_heads": count_heads(channels),
        "mlp_ratio": 4,
        "use_swiglu_ffn": "encoder.layer.0.mlp.weights_in.weight" in tensors,
        "image_size": side * patch_size,
        "layer_norm_eps": 1e-6,
    }
    registers = tensors.get("embeddings.register_tokens")
    if registers is not None:
        config |= {"model_type": "dinov2_with_registers", "num_register_tokens": registers.shape[1]}
    return config


def _convnext_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = range(count_blocks(tensors, _STAGE))
    return {
        "model_type": "dinov3_convnext",
        "num_channels": tensors["stages.0.downsample_layers.0.weight"].shape[1],
        "hidden_sizes": [tensors[f"stages.{stage}.layers.0.gamma"].shape[0] for stage in stages],
        "depths": [count_blocks(tensors, re.compile(rf"stages\.{stage}\.layers\.(\d+)\..+")) for stage in stages],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
