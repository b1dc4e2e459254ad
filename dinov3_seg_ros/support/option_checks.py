"""What options must satisfy beyond their type, choices and range.

The launch files import this module. They run under the system's Python, which lacks the libraries of the node's
environment, so it imports nothing but the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dinov3_seg_ros.support.errors import ParameterError
from dinov3_seg_ros.support.option_values import number_pair

#: The most pixels of a frame, unless the user says otherwise: those of 8K UHD.
MAX_PIXELS = 1 << 25


def check_options(values: Mapping[str, Any]) -> None:
    """Check all values, given by the names of their options, for which there is a check here.

    Raises:
        ParameterError: one of them cannot be used.
    """
    for name, check in CHECKS.items():
        if name in values:
            check(values[name])


def check_device(name: str) -> None:
    """Raise ParameterError where this names no kind of device."""
    if not re.fullmatch(r"auto|cpu|(cuda|gpu|npu)(:\d{1,3})?", name, re.ASCII):
        raise ParameterError(f"device is {name!r}; use auto, cpu, cuda, gpu, npu, or cuda:N for the GPU with number N")


def check_providers(names: Sequence[str]) -> None:
    """Raise ParameterError where these are no full names of execution providers, or one occurs twice."""
    for name in names:
        if not name.isidentifier() or not name.endswith("ExecutionProvider") or names.count(name) > 1:
            raise ParameterError(
                f"providers holds '{name}'; give each of ONNX Runtime's execution providers once and by its full "
                "name, such as CUDAExecutionProvider, CPUExecutionProvider"
            )


def check_cameras(names: Sequence[str]) -> None:
    """Raise ParameterError where these are no prefixes of topics, or one occurs twice."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", name, re.ASCII) or names.count(name) > 1:
            raise ParameterError(
                f"cameras holds '{name}'; each must occur once, and is a name, or several with slashes between them: "
                "letters, digits and underscores, a letter first"
            )


def parse_mask_size(text: str) -> str | tuple[int, int]:
    """A mask size in words, for `Segmenter.segment`: ``source``, ``network``, or ``WIDTHxHEIGHT`` as (height, width).

    Raises:
        ParameterError: none of these, or more pixels than `MAX_PIXELS`.
    """
    if text in ("source", "network"):
        return text
    if match := re.fullmatch(r"(\d{1,9})x(\d{1,9})", text, re.ASCII):
        width, height = map(int, match.groups())
        if 0 < width * height <= MAX_PIXELS:
            return height, width
    raise ParameterError(
        f"mask_size is '{text}'; use source, network or WIDTHxHEIGHT (at most {MAX_PIXELS} pixels), for example 640x480"
    )


def parse_value_range(value: Any) -> Any:
    """A value range from what parameters, flags and launch arguments hold: a word, ``LOW,HIGH``, or two numbers.

    Raises:
        ParameterError: none of these, or not 0 <= low < high <= 65535.
    """
    if value in ("auto", "full"):
        return value
    pair = number_pair(value)
    if pair is not None and 0 <= pair[0] < pair[1] <= 65535:
        return pair
    shown = value if isinstance(value, str | int | float) else list(value or ())
    raise ParameterError(
        f"value_range is {shown}; use auto, full, or two whole numbers from 0 to 65535, the lower one first, such as "
        "0,4095"
    )


#: By the name of the option.
CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "device": check_device,
    "providers": check_providers,
    "cameras": check_cameras,
    "mask_size": parse_mask_size,
    "value_range": parse_value_range,
}
