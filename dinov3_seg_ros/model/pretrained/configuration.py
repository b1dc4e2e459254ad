"""What published DINOv2 and DINOv3 backbones have in common, in any layout of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from dinov3_seg_ros.support.errors import BackboneError

#: All published DINOv2 and DINOv3 ViTs have so many channels in an attention head.
HEAD_CHANNELS = 64
ROPE_THETA = 100.0
_VIT_7B_CHANNELS = 4096


def count_blocks(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    """How many blocks or stages there are: one more than the highest number that ``pattern`` captures in the names."""
    numbers = [int(match[1]) for match in map(pattern.fullmatch, names) if match]
    return max(numbers, default=-1) + 1


def count_heads(channels: int, head_channels: int = HEAD_CHANNELS) -> int:
    """How many attention heads a ViT of so many channels has.

    Raises:
        BackboneError: there is no whole number of them, or it is the 7B model.
    """
    if channels == _VIT_7B_CHANNELS:
        raise BackboneError("DINOv3 ViT-7B/16 is not supported; the largest that is, is ViT-H+/16.")
    if channels % head_channels:
        raise BackboneError(
            f"its {channels} channels are no multiple of {head_channels}, as those of published backbones are; give it "
            "in Hugging Face's layout, with its config.json beside it."
        )
    return channels // head_channels


def rope_periods(count: int) -> Tensor:
    """The periods of the position encoding of published DINOv3 ViTs, of which each head has four channels each."""
    return ROPE_THETA ** (torch.arange(count) / count)
