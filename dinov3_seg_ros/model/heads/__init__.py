"""Segmentation heads: decoders from backbone feature maps to low-resolution class logits, one file each.

To add a head: subclass `Head` in a file of its own and add one line to `HEADS`. A head in another package needs no
change here: an entry point of that package names it, in the group `GROUP`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from dinov3_seg_ros.model.heads.aspp import ASPPHead, PlainASPPHead
from dinov3_seg_ros.model.heads.base import Head
from dinov3_seg_ros.model.heads.linear import LinearHead
from dinov3_seg_ros.model.heads.pyramid import PyramidHead
from dinov3_seg_ros.model.heads.unet import UNetHead
from dinov3_seg_ros.support.errors import HeadError, nearest, one_line

#: Entry points of other packages: the name of a head, and where its class is.
GROUP = "dinov3_seg_ros.model.heads"
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
        name: a key of `HEADS`, or of an entry point of another package.
        in_channels: channels of each feature map that the head will be given, in order (an int for one map).
        strides: input pixels per cell of each of these maps.
        num_classes: number of output channels, at least 1.
        variant: which variant of the head (``aspp``: ``atrous`` or ``plain``); None for the default.
        options: keyword options of the head's class; see its docstring.

    Raises:
        HeadError: unknown name, variant or option, values that do not fit the head, or a class that cannot be loaded.
    """
    head_class = _find_class(name, variant)
    in_channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
    strides = [strides] if isinstance(strides, int) else list(strides)
    known, kind = head_options(name, variant), f"'{name}' ({variant or next(iter(_variants(name)))})"
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
        HeadError: unknown name or variant, or a class that cannot be loaded.
    """
    parameters = inspect.signature(_find_class(name, variant)).parameters
    return [option for option in parameters if option not in ("in_channels", "strides", "num_classes")]


def _find_class(name: str, variant: str | None) -> type[Head]:
    variants = _variants(name)
    variant = next(iter(variants)) if variant is None else variant
    if variant not in variants:
        raise HeadError(f"head '{name}' has no variant '{variant}'; its variants are: {', '.join(variants)}")
    return variants[variant]


def _variants(name: str) -> dict[str, type[Head]]:
    if name in HEADS:
        return HEADS[name]
    brought = entry_points(group=GROUP)
    if name not in brought.names:
        known = sorted(HEADS.keys() | brought.names)
        raise HeadError(
            f"unknown head '{name}'{nearest(name, known)}; the heads are: {', '.join(known)}; for another, install the "
            "package that brings it"
        )
    entry = brought[name]
    try:
        found = entry.load()
        if not (isinstance(found, type) and issubclass(found, Head)):
            raise TypeError(f"it is no subclass of {Head.__module__}.{Head.__name__}")
    except Exception as error:  # the code of any package
        raise HeadError(
            f"head '{name}' of the package {entry.dist and entry.dist.name}, {entry.value}, cannot be used: "
            f"{one_line(error)}; correct the package, and install it again"
        ) from error
    return {"default": found}


__all__ = ["HEADS", "Head", "build_head", "head_options"]
