"""Meta's layout of DINOv2, and timm's, as a Hugging Face configuration and state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinov3_seg_ros.model.pretrained.hugging_face import config_of
from dinov3_seg_ros.support.errors import BackboneError

_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK_PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
_QKV = ("query", "key", "value")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
# Trainings may divide the blocks into chunks: blocks.<chunk>.<block>.
_CHUNKED = re.compile(r"blocks\.\d+\.(\d+\..+)")


def is_dinov2(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names that Meta or timm give a DINOv2 backbone."""
    return {"pos_embed", "patch_embed.proj.weight"} <= tensors.keys() and any(".ls1.gamma" in name for name in tensors)


def convert_dinov2(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a state dict in Meta's or timm's layout to a Hugging Face configuration and state dict.

    Raises:
        BackboneError: a tensor does not belong to DINOv2, or one that tells the architecture is missing.
    """
    tensors = _as_meta({_CHUNKED.sub(r"blocks.\1", name): tensor for name, tensor in tensors.items()})
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block:
            prefix = f"encoder.layer.{block[1]}."
            converted.update({prefix + part: value for part, value in _block_part(block[2], tensor, name).items()})
        elif name in _NAMES:
            converted[_NAMES[name]] = tensor
        else:
            raise _foreign(name)
    return config_of(converted), converted


def _as_meta(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo what timm changes: names, and the class token of models with registers, which holds its position."""
    channels = tensors["patch_embed.proj.weight"].shape[0]
    if "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
        tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, channels), tensors["pos_embed"].float()], dim=1)
    # timm gives the packed layers of SwiGLU the names of a plain MLP.
    inner, outer = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    if inner is not None and outer is not None and inner.shape[0] == 2 * outer.shape[1]:
        tensors = {
            name.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): tensor
            for name, tensor in tensors.items()
        }
    tensors.setdefault("mask_token", torch.zeros(1, channels))
    return tensors


def _block_part(part: str, tensor: Tensor, name: str) -> dict[str, Tensor]:
    """One tensor of a block, ``part`` being its name there, as one or more of Hugging Face's."""
    module, _, kind = part.rpartition(".")
    if module == "attn.qkv":
        pieces = zip(_QKV, tensor.chunk(3), strict=True)
        return {f"attention.attention.{which}.{kind}": piece.clone() for which, piece in pieces}
    if part in ("ls1.gamma", "ls2.gamma"):
        return {f"layer_scale{part[2]}.lambda1": tensor}
    if module not in _BLOCK_PARTS or kind not in ("weight", "bias"):
        raise _foreign(name)
    return {f"{_BLOCK_PARTS[module]}.{kind}": tensor}


def _foreign(name: str) -> BackboneError:
    return BackboneError(f"the tensor {name} does not belong to a DINOv2 backbone as Meta publishes it.")
