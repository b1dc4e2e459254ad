"""Hugging Face configurations of DINOv2 and DINOv3 backbones, from what their tensors tell in any layout."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinov3_seg_ros.support.errors import BackboneError

#: All published DINOv2 and DINOv3 ViTs have so many channels in an attention head.
HEAD_CHANNELS = 64
_ROPE_THETA = 100.0
_VIT_7B_CHANNELS = 4096


def count_blocks(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    """How many blocks or stages there are: one more than the highest number that ``pattern`` captures in the names."""
    numbers = [int(match[1]) for match in map(pattern.fullmatch, names) if match]
    return max(numbers, default=-1) + 1


def count_heads(channels: int) -> int:
    """How many attention heads a published ViT of so many channels has.

    Raises:
        BackboneError: there is no whole number of them.
    """
    if channels % HEAD_CHANNELS:
        raise BackboneError(
            f"its {channels} channels are no multiple of {HEAD_CHANNELS}, as those of published backbones are; give it "
            "in Hugging Face's layout, with its config.json beside it."
        )
    return channels // HEAD_CHANNELS


def rope_periods(count: int) -> Tensor:
    """The periods of the position encoding of published DINOv3 ViTs, of which each head has four channels each."""
    return _ROPE_THETA ** (torch.arange(count) / count)


def vit_config(
    *,
    channels: int,
    heads: int,
    depth: int,
    hidden: int,
    gated: bool,
    registers: int,
    patch_size: int,
    colours: int,
    key_bias: bool,
) -> dict[str, Any]:
    """The configuration of a DINOv3 ViT.

    Raises:
        BackboneError: it is the 7B model.
    """
    if channels == _VIT_7B_CHANNELS:
        raise BackboneError("DINOv3 ViT-7B/16 is not supported; the largest that is, is ViT-H+/16.")
    return {
        "model_type": "dinov3_vit",
        "patch_size": patch_size,
        "num_channels": colours,
        "hidden_size": channels,
        "intermediate_size": hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_register_tokens": registers,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "layer_norm_eps": 1e-5,
        "rope_theta": _ROPE_THETA,
        "query_bias": True,
        "key_bias": key_bias,
        "value_bias": True,
    }


def dinov2_config(
    *, patches: Tensor, positions: Tensor, registers: Tensor | None, depth: int, swiglu: bool
) -> dict[str, Any]:
    """The configuration of a DINOv2 ViT.

    Args:
        patches: weight of the patch embedding, (channels, colours, size, size).
        positions: position embeddings, (1, 1 + side * side, channels).
        registers: register tokens, (1, number, channels), if any.
        depth: number of blocks.
        swiglu: whether its MLPs are gated.

    Raises:
        BackboneError: its channels or positions are not those of a DINOv2 ViT.
    """
    channels, colours, patch_size, _ = patches.shape
    count = positions.shape[1]
    side = math.isqrt(max(count - 1, 0))
    if side * side != count - 1:
        raise BackboneError(f"its {count} positions are not those of a class token and a square of patches.")
    config = {
        "model_type": "dinov2",
        "patch_size": patch_size,
        "num_channels": colours,
        "hidden_size": channels,
        "num_hidden_layers": depth,
        "num_attention_heads": count_heads(channels),
        "mlp_ratio": 4,
        "use_swiglu_ffn": swiglu,
        "image_size": side * patch_size,
        "layer_norm_eps": 1e-6,
    }
    if registers is not None:
        config |= {"model_type": "dinov2_with_registers", "num_register_tokens": registers.shape[1]}
    return config


def convnext_config(*, colours: int, channels: Sequence[int], depths: Sequence[int]) -> dict[str, Any]:
    """The configuration of a DINOv3 ConvNeXt, with channels and number of blocks of each stage."""
    return {
        "model_type": "dinov3_convnext",
        "num_channels": colours,
        "hidden_sizes": list(channels),
        "depths": list(depths),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
