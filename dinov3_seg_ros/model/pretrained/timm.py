"""timm's layouts of DINOv3, renamed to Meta's: ViTs of its ``Eva`` class, and ConvNeXts."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dinov3_seg_ros.model.pretrained.configuration import HEAD_CHANNELS, count_heads, rope_periods

_VIT_PARTS = {
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.",
}
_CONVNEXT_PATTERNS = (
    (re.compile(r"stem\."), "downsample_layers.0."),
    (re.compile(r"stages\.(\d+)\.blocks\."), r"stages.\1."),
    (re.compile(r"stages\.(\d+)\.downsample\."), r"downsample_layers.\1."),
    (re.compile(r"\bconv_dw\b"), "dwconv"),
    (re.compile(r"\bmlp\.fc([12])\b"), r"pwconv\1"),
    (re.compile(r"head\.norm\b"), "norm"),
)


def is_timm_dinov3(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names that timm gives a DINOv3 backbone."""
    vit = {"reg_token", "blocks.0.gamma_1"} <= tensors.keys() and "pos_embed" not in tensors
    return vit or {"stem.0.weight", "stages.0.blocks.0.conv_dw.weight"} <= tensors.keys()


def timm_to_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors as Meta does; those that timm does not store are added.

    Raises:
        BackboneError: the channels of a ViT are no multiple of those of an attention head.
    """
    if "reg_token" not in tensors:
        return {_convnext_name(name): tensor for name, tensor in tensors.items()}
    gated = "blocks.0.mlp.fc1_g.weight" in tensors
    renamed = {}
    for name, tensor in tensors.items():
        for part, meta in _VIT_PARTS.items():
            name = name.replace(part, meta)
        renamed[name.replace("mlp.fc2.", "mlp.w3.") if gated else name] = tensor
    renamed["storage_tokens"] = renamed.pop("reg_token")
    for name in [name for name in renamed if name.endswith("attn.q_bias")]:
        block = name.removesuffix("q_bias")
        query, value = renamed.pop(name), renamed.pop(f"{block}v_bias")
        ones, zeros = torch.ones_like(query), torch.zeros_like(query)
        renamed[f"{block}qkv.bias"] = torch.cat([query, zeros, value])
        renamed[f"{block}qkv.bias_mask"] = torch.cat([ones, zeros, ones])
    count_heads(renamed["cls_token"].shape[-1])  # refuses what is no multiple of a head's channels
    renamed["rope_embed.periods"] = rope_periods(HEAD_CHANNELS // 4)
    renamed.setdefault("mask_token", torch.zeros(1, renamed["cls_token"].shape[-1]))
    return renamed


def _convnext_name(name: str) -> str:
    for pattern, replacement in _CONVNEXT_PATTERNS:
        name = pattern.sub(replacement, name)
    return name
