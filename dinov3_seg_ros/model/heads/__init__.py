"""Segmentation heads: decoders from backbone feature maps to low-resolution class logits, one file each.

To add a head: subclass `Head` in a file of its own and add one line to `HEADS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from dinov3_seg_ros.model.heads.aspp import ASPPHead, PlainASPPHead
from dinov3_seg_ros.model.heads.base import Head
from dinov3_seg_ros.model.heads.linear import LinearHead
from dinov3_seg_ros.model.heads.pyramid import PyramidHead
from dinov3_seg_ros.model.heads.unet import UNetHead
from dinov3_seg_ros.support.errors import HeadError, nearest

# Name -> its variants; the first variant is the default.
HEADS: dict[str, dict[str, type[Head]]] = {
    "aspp": {"atrous": ASPPHead, "plain": PlainASPPHead},
    "linear": {"default": LinearHead},
    "pyramid": {"default": PyramidHead},
    "unet": {"default": UNetHead},
}


def build_head(
    name: str,
    in_channels: Sequence[int] | int,
    strides: Sequence[int] | int,
    num_classes: int,
    variant: str | None = None,
    **options: Any,
) -> Head:
    """Build a randomly initialised head.

    Args:
        name: a key of `HEADS`.
        in_channels: channels of each feature map that the head will be given, in order (an int for one map).
        strides: input pixels per cell of each of these maps.
        num_classes: number of output channels, at least 1.
        variant: which variant of the head (``aspp``: ``atrous`` or ``plain``); None for the default.
        options: keyword options of the head's class; see its docstring.

    Raises:
        HeadError: unknown name, variant or option, or values that do not fit the head.
    """
    head_class = _find_class(name, variant)
    in_channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
    strides = [strides] if isinstance(strides, int) else list(strides)
    known, kind = head_options(name, variant), f"'{name}' ({variant or next(iter(HEADS[name]))})"
    for option in options:
        if option not in known:
            raise HeadError(
                f"head {kind} has no option '{option}'{nearest(option, known)}; its options are: "
                f"{', '.join(known) or 'none'}"
            )
    try:
        return head_class(in_channels, strides, num_classes, **options)
    except (TypeError, ValueError) as error:
        raise HeadError(f"head {kind} cannot be built with the options {options}: {error}") from error


def head_options(name: str, variant: str | None = None) -> list[str]:
    """Return the names of the keyword options that `build_head` takes for a head.

    Raises:
        HeadError: unknown name or variant.
    """
    parameters = inspect.signature(_find_class(name, variant)).parameters
    return [option for option in parameters if option not in ("in_channels", "strides", "num_classes")]


def _find_class(name: str, variant: str | None) -> type[Head]:
    if name not in HEADS:
        raise HeadError(f"unknown head '{name}'{nearest(name, HEADS)}; the heads are: {', '.join(sorted(HEADS))}")
    variants = HEADS[name]
    variant = next(iter(variants)) if variant is None else variant
    if variant not in variants:
        raise HeadError(f"head '{name}' has no variant '{variant}'; its variants are: {', '.join(variants)}")
    return variants[variant]


__all__ = ["HEADS", "Head", "build_head", "head_options"]
