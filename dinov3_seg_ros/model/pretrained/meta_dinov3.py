"""Meta's layout of DINOv3, which EUPE and LingBot-Vision share, as a Hugging Face configuration and state dict.

Names and shapes of the tensors tell the architecture; the file's name does not count.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinov3_seg_ros.model.pretrained.configuration import count_blocks, count_heads, rope_periods
from dinov3_seg_ros.model.pretrained.hugging_face import config_of
from dinov3_seg_ros.support.errors import BackboneError

_VIT_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_VIT_BLOCK_PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.up_proj",
    "mlp.w3": "mlp.down_proj",
}
# The position encoding is a function of the configuration; the other norm served small crops during pretraining.
_VIT_DROPPED = ("rope_embed.periods", "local_cls_norm.weight", "local_cls_norm.bias")

_CONVNEXT_BLOCK_PARTS = {
    "dwconv": "depthwise_conv",
    "pwconv1": "pointwise_conv1",
    "pwconv2": "pointwise_conv2",
    "norm": "layer_norm",
}
_CONVNEXT_NAMES = {"norm.weight": "layer_norm.weight", "norm.bias": "layer_norm.bias"}
# The same tensors as norm.weight and norm.bias, saved a second time.
_CONVNEXT_DROPPED = ("norms.3.weight", "norms.3.bias")
# What EUPE was distilled with.
_HEADS = "projectors."

_VIT_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_CONVNEXT_BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.(.+)")
_CONVNEXT_DOWNSAMPLING = re.compile(r"downsample_layers\.(\d+)\.(\d+)\.(weight|bias)")


def is_meta_dinov3(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of this layout."""
    vit = {"patch_embed.proj.weight", "rope_embed.periods"} <= tensors.keys()
    return vit or "downsample_layers.0.0.weight" in tensors


def convert_meta_dinov3(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a state dict in Meta's layout to a Hugging Face configuration and state dict.

    Raises:
        BackboneError: the architecture is not one of DINOv3's ViT (except 7B) or ConvNeXt, or tensors that tell
            it are missing or contradict each other.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEADS)}
    if "rope_embed.periods" not in tensors:
        converted = _convnext_tensors(tensors)
        return config_of(converted), converted
    # Each head has four channels for each period of the position encoding.
    periods = tensors["rope_embed.periods"]
    head_channels = 4 * periods.numel()
    channels = tensors["patch_embed.proj.weight"].shape[0]
    if channels % head_channels or not torch.allclose(periods.float(), rope_periods(periods.numel()), rtol=0.01):
        raise BackboneError("its position encoding (rope_embed.periods) is not that of a published DINOv3 model.")
    count_heads(channels, head_channels)  # refuses the 7B model before its tensors are copied
    converted = _vit_tensors(tensors)
    return config_of(converted, head_channels), converted


def _vit_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block = _VIT_BLOCK.fullmatch(name)
        if block:
            prefix, part = f"layer.{block[1]}.", block[2]
            converted.update({prefix + key: value for key, value in _vit_block_part(part, name, tensors).items()})
        elif name not in _VIT_DROPPED:
            converted[_lookup(_VIT_NAMES, name)] = tensor
    # The largest LingBot-Vision has no such biases; timm leaves out those that are all zero.
    if not any("attn.qkv.bias" in name for name in tensors):
        zeros = torch.zeros(tensors["patch_embed.proj.weight"].shape[0])
        for number, which in itertools.product(range(count_blocks(tensors, _VIT_BLOCK)), "qv"):
            converted[f"layer.{number}.attention.{which}_proj.bias"] = zeros.clone()
    mask_token = converted.get("embeddings.mask_token")
    if mask_token is not None:
        converted["embeddings.mask_token"] = mask_token.reshape(1, 1, -1)
    return converted


def _vit_block_part(part: str, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor of a block, ``part`` being its name there, as zero or more of Hugging Face's."""
    tensor = tensors[name]
    if part == "attn.qkv.weight":
        return {f"attention.{which}_proj.weight": piece for which, piece in _split_qkv(tensor).items()}
    if part == "attn.qkv.bias":
        biases = _split_qkv(tensor)
        if f"{name}_mask" in tensors:
            del biases["k"]
        return {f"attention.{which}_proj.bias": piece for which, piece in biases.items()}
    if part == "attn.qkv.bias_mask":
        _check_bias_mask(tensor, name)
        return {}
    if part in ("ls1.gamma", "ls2.gamma"):
        return {f"layer_scale{part[2]}.lambda1": tensor}
    return {_lookup_part(_VIT_BLOCK_PARTS, part, name): tensor}


def _split_qkv(fused: Tensor) -> dict[str, Tensor]:
    # Copies, so that the three can be saved apart and the fused one is freed.
    return {which: piece.clone() for which, piece in zip("qkv", fused.chunk(3), strict=True)}


def _check_bias_mask(mask: Tensor, name: str) -> None:
    query, key, value = mask.chunk(3)
    if not (bool((query == 1).all()) and bool((key == 0).all()) and bool((value == 1).all())):
        raise BackboneError(f"{name} masks something else than the bias of the keys.")


def _convnext_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_convnext_name(name): tensor for name, tensor in tensors.items() if name not in _CONVNEXT_DROPPED}


def _convnext_name(name: str) -> str:
    downsampling = _CONVNEXT_DOWNSAMPLING.fullmatch(name)
    if downsampling:
        stage, index, kind = downsampling.groups()
        return f"stages.{stage}.downsample_layers.{index}.{kind}"
    block = _CONVNEXT_BLOCK.fullmatch(name)
    if not block:
        return _lookup(_CONVNEXT_NAMES, name)
    stage, index, part = block.groups()
    converted = part if part == "gamma" else _lookup_part(_CONVNEXT_BLOCK_PARTS, part, name)
    return f"stages.{stage}.layers.{index}.{converted}"


def _lookup(names: Mapping[str, str], name: str) -> str:
    if name not in names:
        raise _foreign(name)
    return names[name]


def _lookup_part(parts: Mapping[str, str], part: str, name: str) -> str:
    module, _, kind = part.rpartition(".")
    if module not in parts or kind not in ("weight", "bias"):
        raise _foreign(name)
    return f"{parts[module]}.{kind}"


def _foreign(name: str) -> BackboneError:
    return BackboneError(f"the tensor {name} does not belong to a DINOv3 backbone as Meta publishes it.")
