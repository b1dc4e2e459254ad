"""The decode as one kernel for GPUs. Importing this module imports torch and triton.

It does not look for cells whose corners agree: a GPU interpolates every class at every pixel sooner than it branches
between neighbouring pixels. Interpolated logits stay in registers; only labels and confidence are written.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import triton
import triton.language as tl

Tables: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_BLOCK = 128  # pixels of one output row in one program: one for each thread of its four warps


def fill(
    logits: torch.Tensor, rows: Tables, columns: Tables, labels: torch.Tensor, confidence: torch.Tensor | None
) -> None:
    """Fill ``labels`` and ``confidence``, both (B, H, W), from ``logits`` (B, C, h, w) of any floating type and layout.

    ``rows`` and ``columns`` are the first four of ``Axis.arrays``. All lie on one device.
    """
    batch, height, width = labels.shape
    blocks = batch * height, triton.cdiv(width, _BLOCK)
    # triton launches on the current device, not on the tensors'.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call] # torch gives it no types
        _decode_block[blocks](
            logits,
            *rows,
            *columns,
            labels,
            confidence,
            logits.shape[1],
            height,
            width,
            *logits.stride(),
            BLOCK=_BLOCK,
        )


# Not specialised for the values of sizes, so that it is compiled only once for each type of logits and labels, with and
# without confidence.
@triton.jit(
    do_not_specialize=[
        "classes",
        "height",
        "width",
        "image_stride",
        "class_stride",
        "row_stride",
        "column_stride",
    ]
)
def _decode_block(
    logits: tl.tensor,
    row_low: tl.tensor,
    row_high: tl.tensor,
    row_low_weight: tl.tensor,
    row_high_weight: tl.tensor,
    column_low: tl.tensor,
    column_high: tl.tensor,
    column_low_weight: tl.tensor,
    column_high_weight: tl.tensor,
    labels: tl.tensor,
    confidence: tl.tensor | None,
    classes: int,
    height: int,
    width: int,
    image_stride: int,
    class_stride: int,
    row_stride: int,
    column_stride: int,
    BLOCK: tl.constexpr,
) -> None:
    """Decode one block of pixels of one row of one image; ``confidence`` is None where none is wanted."""
    line = tl.program_id(0)  # counts the output rows of all images
    image = (line // height).to(tl.int64)
    y = line % height
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width

    left = tl.load(column_low + x, inside, 0) * column_stride
    right = tl.load(column_high + x, inside, 0) * column_stride
    left_weight = tl.load(column_low_weight + x, inside, 0)
    right_weight = tl.load(column_high_weight + x, inside, 0)
    above = logits + image * image_stride + tl.load(row_low + y).to(tl.int64) * row_stride
    below = logits + image * image_stride + tl.load(row_high + y).to(tl.int64) * row_stride
    above_weight = tl.load(row_low_weight + y)
    below_weight = tl.load(row_high_weight + y)

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    winner = tl.full((BLOCK,), 0, tl.int32)
    total = tl.full((BLOCK,), 0, tl.float32)  # the sum of exp(value - best) over the classes so far
    for label in range(classes):
        # Four gathers, which hit the cache: the block's pixels lie in few cells, and the rows near it read the same
        # two map rows.
        top_left = tl.load(above + left).to(tl.float32)
        top_right = tl.load(above + right).to(tl.float32)
        bottom_left = tl.load(below + left).to(tl.float32)
        bottom_right = tl.load(below + right).to(tl.float32)
        # Across, then down, as torch and the other forms blend.
        top = left_weight * top_left + right_weight * top_right
        bottom = left_weight * bottom_left + right_weight * bottom_right
        value = above_weight * top + below_weight * bottom
        ahead = (value > best) | ((value != value) & (best == best))  # the first NaN is ahead of every number
        if confidence is not None:
            distance = tl.where(value == best, 0.0, tl.abs(value - best))  # 0 for two equal infinities too
            share = tl.exp(-distance)
            total = tl.where(ahead, total * share + 1, total + share)
        best = tl.where(ahead, value, best)
        winner = tl.where(ahead, label, winner)
        above += class_stride
        below += class_stride

    pixels = line.to(tl.int64) * width + x
    tl.store(labels + pixels, winner.to(labels.dtype.element_ty), inside)
    if confidence is not None:
        # The best class's share is 1 / total; a best logit that is not finite leaves no softmax.
        level = tl.where(tl.abs(best) < float("inf"), 255 / total + 0.5, 0.0)
        tl.store(confidence + pixels, level.to(tl.uint8), inside)
