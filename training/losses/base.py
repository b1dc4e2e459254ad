"""The base of all losses, and the weighted sum that training minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training.support.section import Section

# Smallest divisor of a sum: a batch without labelled pixels has the loss 0, not NaN.
_TINY = 1e-6


class LossSettings(Section):
    """Settings that all losses of a recipe have."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this loss in the sum."""


class Loss(nn.Module, ABC):
    """A mean, given as a sum and the count to divide it by.

    The count depends on the masks alone. So the sums of batches that are spread over processes, or whose gradients are
    accumulated, can be divided by the count of all these batches.
    """

    @abstractmethod
    def count(self, target: Tensor, ignore_value: int) -> Tensor:
        """Divisor of the sum for target (B, H, W) int64: a scalar, 0 where no pixel is labelled."""

    @abstractmethod
    def forward(self, logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
        """Sum, a scalar, for logits (B, C, H, W) floating and target (B, H, W) int64; 0 where none is labelled."""


class WeightedSum(nn.Module):
    """Weighted sum of the losses of a recipe.

    Args:
        losses: the losses.
        weights: one for each loss.
    """

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = list(losses)
        self._registered = nn.ModuleList(losses)  # so that `to` moves their class weights
        self.weights = list(weights)

    def counts(self, target: Tensor, ignore_value: int) -> Tensor:
        """Divisor of each loss's sum for these masks: (number of losses,) float32."""
        target = target.long()
        return torch.stack([loss.count(target, ignore_value).float() for loss in self.losses])

    def sums(self, logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
        """Resize logits to the target's size and compute each loss's sum: (number of losses,) float32.

        Args:
            logits: (B, C, h, w) of any floating type; computed in float32, also within autocast.
            target: (B, H, W) class ids or ``ignore_value``, any integer type.
        """
        with torch.autocast(logits.device.type, enabled=False):
            full = F.interpolate(logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False)
            target = target.long()
            return torch.stack([loss(full, target, ignore_value) for loss in self.losses])

    def mean(self, sums: Tensor, counts: Tensor) -> Tensor:
        """The weighted sum of the losses, a scalar, from their `sums` and `counts`."""
        return (sums / counts.clamp(min=_TINY) * sums.new_tensor(self.weights)).sum()

    def forward(self, logits: Tensor, target: Tensor, ignore_value: int, counts: Tensor | None = None) -> Tensor:
        """The weighted sum of the losses of a batch, a scalar; the other arguments are those of `sums`.

        Args:
            counts: divisors instead of the batch's own `counts`. Where gradients are added up over batches, or averaged
                over processes, the sum or the average of their counts gives the mean over all of them.
        """
        counts = self.counts(target, ignore_value) if counts is None else counts
        return self.mean(self.sums(logits, target, ignore_value), counts)
