"""What both algorithms of the kernel use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from dinov3_seg_ros.decode.grid import Bytes, Floats

LANES = 16
ONE = np.float32(1)
SIXTY_FOURTH = np.float32(1 / 64)

_LEAST_EXPONENT = np.float32(-24 / 64)  # 65535 classes of exp(-24) weigh less than a thousandth of a level
_HALF = np.float32(1 / 2)
_SIXTH = np.float32(1 / 6)
_LEVELS = np.float32(255)

#: How numba compiles every function of the kernel.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile a function of the kernel when a compiled one first calls it."""
    dispatcher: _Function = numba.njit(**OPTIONS)(function)
    return dispatcher


def compiled_for_finite(function: _Function) -> _Function:
    """As `compiled`, for functions that are called with finite numbers only."""
    dispatcher: _Function = numba.njit(**{**OPTIONS, "fastmath": {"contract", "nnan", "nsz"}})(function)
    return dispatcher


@compiled
def unsigned(position: int) -> np.uintp:
    """For innermost loops: a signed index would be tested for being negative, which keeps a loop scalar."""
    unsigned_position: np.uintp = np.uintp(position)
    return unsigned_position


@compiled
def pad_to_lanes(pixels: int) -> int:
    return (pixels + LANES - 1) // LANES * LANES


@compiled
def is_ahead(value: float, best: float) -> bool:
    """The first NaN is ahead of every number."""
    return (value > best) | ((value != value) & (best == best))


@compiled
def exp_of_64_times(t: float) -> float:
    """exp(64 * t) for t <= 0, right to 1e-6; about 0 for NaN. A cubic, squared six times."""
    t = t if t > _LEAST_EXPONENT else _LEAST_EXPONENT
    power: float = ONE + t * (ONE + t * (_HALF + t * _SIXTH))
    power *= power
    power *= power
    power *= power
    power *= power
    power *= power
    power *= power
    return power


@compiled
def write_confidence(total: Floats, best: Floats, confidence: Bytes) -> None:
    """The best class's share is 1 / total; a best logit that is not finite leaves no softmax."""
    height, width = confidence.shape
    for y in range(height):
        for x in range(width):
            p = unsigned(y * width + x)
            confidence[y, x] = np.uint8(_LEVELS / total[p] + _HALF) if best[p] - best[p] == 0 else np.uint8(0)
