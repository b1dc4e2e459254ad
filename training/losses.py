"""Losses over full-resolution logits. Ignored pixels change neither value nor gradient.

To add one: write a `Section` with a ``name`` of its own, a ``weight`` and a method ``build``, and add it to
`LossSection`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dinov3_seg_ros.errors import RecipeError
from training.section import Section

#: Fewest valid pixels a mean divides by: a batch without any has the loss 0, not NaN.
_TINY = 1e-6


class CrossEntropySection(Section):
    """Pixel-wise cross-entropy, averaged over the labelled pixels of the batch."""

    name: Literal["cross_entropy"] = "cross_entropy"
    weight: float = 1.0
    """Factor of this loss in the sum."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread over all classes."""
    class_weights: list[float] | Literal["balanced"] | None = None
    """A factor for each class; "balanced" takes 1 / sqrt(share of the labelled pixels), with mean 1."""

    def build(self, num_classes: int, count_pixels: Callable[[], Tensor]) -> CrossEntropy:
        """The loss.

        Args:
            num_classes: number of classes.
            count_pixels: gives the number of training pixels of each class, (num_classes,); only called when needed.

        Raises:
            RecipeError: there is not one weight for each class.
        """
        if self.class_weights is None:
            return CrossEntropy(None, self.label_smoothing)
        if self.class_weights == "balanced":
            return CrossEntropy(balanced_weights(count_pixels()), self.label_smoothing)
        if len(self.class_weights) != num_classes:
            raise RecipeError(
                f"class_weights has {len(self.class_weights)} values; the data set has {num_classes} classes"
            )
        return CrossEntropy(torch.tensor(self.class_weights), self.label_smoothing)


LossSection: TypeAlias = CrossEntropySection


class CrossEntropy(nn.Module):
    """See `CrossEntropySection`."""

    def __init__(self, class_weights: Tensor | None, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
        """Logits (B, C, H, W) float32 and target (B, H, W) int64 -> a scalar; 0 where no pixel is labelled."""
        total = F.cross_entropy(
            logits,
            target,
            weight=self.class_weights,
            ignore_index=ignore_value,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        labelled = target != ignore_value
        if self.class_weights is None:
            return total / labelled.sum().clamp(min=_TINY)
        return total / self.class_weights[target[labelled]].sum().clamp(min=_TINY)


class WeightedSum(nn.Module):
    """The losses of a recipe, each times its weight.

    Args:
        losses: modules called as ``loss(logits, target, ignore_value)``.
        weights: one for each.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = list(weights)

    def forward(self, logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
        """Bring logits to the target's size and add up the losses, in float32 whatever the precision outside.

        Args:
            logits: (B, C, h, w) of any floating type.
            target: (B, H, W) class ids or ``ignore_value``, any integer type.
        """
        with torch.autocast(logits.device.type, enabled=False):
            full = F.interpolate(logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
            target = target.long()
            return sum(
                weight * loss(full, target, ignore_value)
                for weight, loss in zip(self.weights, self.losses, strict=True)
            )


def balanced_weights(pixels: Tensor) -> Tensor:
    """Weights 1 / sqrt(share) with mean 1, from the number of pixels of each class; a class without pixels has 0."""
    share = pixels.double() / pixels.sum().clamp(min=1)
    weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0.0)
    present = (share > 0).sum().clamp(min=1)
    return (weights * present / weights.sum().clamp(min=_TINY)).float()
