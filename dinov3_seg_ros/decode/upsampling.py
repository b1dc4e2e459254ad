"""Low-resolution logits to labels and confidence at full resolution, exactly, without the (C, H, W) volume between.

On the CPU, NumPy arrays and tensors are decoded by numba's kernel, or by NumPy while that is compiled and where numba
is not installed. A bilinear sample is a convex combination of the four logits around it. So where the four corners of a
cell agree on the best class, that class wins in the whole cell. Elsewhere a class can win only if its largest corner
reaches the largest, over all classes, of the smallest corner. Few classes are left to be interpolated, and only in few
cells.

Tensors on another device are decoded there, from every class at every pixel. On CUDA one Triton kernel does it, which
keeps no interpolated logits. Where that cannot run, torch does build the volume, in bands of rows of at most 128 MiB
(but of one row at least).

The result is that of ``torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)`` followed
by ``argmax(1)``, but for leads within rounding (1e-5 * max(1, |logit|)). An exact tie goes to the lowest class. A cell
with a corner that is not finite is interpolated plainly, for every class, so that it gives what torch gives: NaN
counts as the largest value, and the first NaN wins.

Importing this module loads none of numba, torch and triton.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.decode.compilation import host_backend, host_decoder
from dinov3_seg_ros.decode.grid import Bytes, Grid, Labels, plan_grid
from dinov3_seg_ros.support.errors import ParameterError

if TYPE_CHECKING:
    import torch

    Array = TypeVar("Array", NDArray[Any], torch.Tensor)


def upsample_argmax(logits: Array, size: Sequence[int], window: Sequence[float] | None = None) -> Array:
    """Class of every output pixel.

    Args:
        logits: (B, C, h, w) of any floating type, a NumPy array or a torch tensor; computed in float32.
        size: (H, W) of the output.
        window: the part of the map that the output covers, as (top, left, height, width) in logit cells; by default
            all of it. Output row y samples the map at (y + 0.5) * height / H + top - 0.5, clamped to the map.

    Returns:
        (B, H, W) class ids, of the kind and on the device of ``logits``: uint8 up to 255 classes, else uint16.

    Raises:
        ParameterError: ``logits`` are empty, not floating or not of four axes, ``size`` is not two positive whole
            numbers, or ``window`` is empty or reaches outside the map.
    """
    return _decode(logits, size, window, with_confidence=False)[0]


def upsample_argmax_confidence(
    logits: Array, size: Sequence[int], window: Sequence[float] | None = None
) -> tuple[Array, Array]:
    """Class of every output pixel, and how sure the logits are of it.

    Args:
        logits, size, window: see `upsample_argmax`.

    Returns:
        The labels as `upsample_argmax` gives them, and the confidence, (B, H, W) uint8: round(255 * the largest softmax
        of the interpolated logits), right to one level; 0 where the softmax is not finite.

    Raises:
        ParameterError: as `upsample_argmax` does.
    """
    labels, confidence = _decode(logits, size, window, with_confidence=True)
    assert confidence is not None
    return labels, confidence


def backend(device: str = "cpu", wait: bool = False) -> str:
    """What decodes now: "numba" or "numpy" on the CPU, "triton" or "torch" on another device.

    Args:
        device: as torch names devices.
        wait: for numba's kernel where it is being compiled, so that the answer stays true; NumPy decodes until then.
    """
    if device == "cpu":
        return host_backend(wait)
    import torch

    from dinov3_seg_ros.decode import torch_form

    return torch_form.backend(torch.device(device))


def _decode(
    logits: Array, size: Sequence[int], window: Sequence[float] | None, with_confidence: bool
) -> tuple[Array, Array | None]:
    if isinstance(logits, np.ndarray):
        return _decode_array(logits, size, window, with_confidence)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(logits, torch.Tensor):
        return _decode_tensor(logits, size, window, with_confidence)
    raise ParameterError(f"logits are of type {type(logits).__name__}; pass a NumPy array or a torch tensor")


def _decode_tensor(
    logits: torch.Tensor, size: Sequence[int], window: Sequence[float] | None, with_confidence: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    import torch

    if not logits.is_floating_point():
        raise _not_floating(logits.dtype)
    if not logits.is_cpu:
        from dinov3_seg_ros.decode import torch_form

        return torch_form.decode(logits, _grid(logits.shape, size, window), with_confidence)
    if logits.dtype != torch.float32:  # NumPy has no bfloat16
        logits = logits.float()
    labels, confidence = _decode_array(logits.numpy(force=True), size, window, with_confidence)
    return torch.from_numpy(labels), None if confidence is None else torch.from_numpy(confidence)


def _decode_array(
    logits: NDArray[Any], size: Sequence[int], window: Sequence[float] | None, with_confidence: bool
) -> tuple[Labels, Bytes | None]:
    if logits.dtype.kind != "f":
        raise _not_floating(logits.dtype)
    grid = _grid(logits.shape, size, window)
    logits = np.ascontiguousarray(logits, np.float32)
    if not logits.flags.aligned:
        logits = logits.copy()
    if logits.shape[1] == 1 and not with_confidence:
        return np.zeros(grid.shape, grid.label_type), None  # a single class wins everywhere
    labels = np.empty(grid.shape, grid.label_type)
    confidence = np.empty(grid.shape, np.uint8) if with_confidence else None
    host_decoder(grid.label_type)(logits, grid, labels, confidence)
    return labels, confidence


def _grid(shape: Sequence[int], size: Sequence[int], window: Sequence[float] | None) -> Grid:
    try:
        return plan_grid(tuple(shape), tuple(size), None if window is None else tuple(window))
    except TypeError as error:
        raise ParameterError(f"size is {size!r} and window {window!r}; pass (H, W) and four numbers or None") from error


def _not_floating(dtype: object) -> ParameterError:
    return ParameterError(f"logits are of type {dtype}; pass floating-point logits, before any argmax")
