"""Losses of single pixels, averaged over the labelled pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from dinov3_seg_ros.support.errors import RecipeError
from training.losses.base import Loss, LossSettings


class _PixelSettings(LossSettings):
    class_weights: list[Annotated[float, Field(ge=0)]] | Literal["balanced"] | None = None
    """A factor for each class; "balanced" takes 1 / sqrt(share of the labelled pixels), with mean 1."""

    @field_validator("class_weights")
    @classmethod
    def _weigh_something(cls, weights: list[float] | str | None) -> list[float] | str | None:
        if isinstance(weights, list) and not any(weights):
            raise ValueError("all are 0; give a class that should be learned a weight above 0")
        return weights

    def _weights(self, num_classes: int, count_pixels: Callable[[], Tensor]) -> Tensor | None:
        """A factor for each class, (num_classes,) float32, or None."""
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            return balanced_weights(count_pixels())
        if len(self.class_weights) != num_classes:
            raise RecipeError(
                f"class_weights has {len(self.class_weights)} values and the data set {num_classes} classes; give one "
                "weight for each class"
            )
        return torch.tensor(self.class_weights)


class CrossEntropySection(_PixelSettings):
    """Pixel-wise cross-entropy, averaged over the labelled pixels of the batch."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread over all classes."""

    def build(self, num_classes: int, count_pixels: Callable[[], Tensor]) -> CrossEntropy:
        """The loss.

        Args:
            num_classes: number of classes.
            count_pixels: returns the number of training pixels of each class, (num_classes,); called only if needed.

        Raises:
            RecipeError: the number of weights is not that of the classes.
        """
        return CrossEntropy(self._weights(num_classes, count_pixels), self.label_smoothing)


class FocalSection(_PixelSettings):
    """Cross-entropy times (1 - probability of the true class) ** gamma, which reduces the weight of easy pixels.

    Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár: Focal Loss for Dense Object Detection, 2017,
    arXiv:1708.02002; here over the softmax, and averaged over the labelled pixels of the batch.
    """

    name: Literal["focal"] = "focal"
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent; 0 is plain cross-entropy."""

    def build(self, num_classes: int, count_pixels: Callable[[], Tensor]) -> Focal:
        """See `CrossEntropySection.build`."""
        return Focal(self._weights(num_classes, count_pixels), self.gamma)


class _PixelLoss(Loss):
    """A loss that weights each pixel by its true class."""

    class_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def count(self, target: Tensor, ignore_value: int) -> Tensor:
        labelled = target != ignore_value
        if self.class_weights is None:
            return labelled.sum()
        return self.class_weights[target[labelled]].sum()


class CrossEntropy(_PixelLoss):
    """See `CrossEntropySection`."""

    def __init__(self, class_weights: Tensor | None, label_smoothing: float) -> None:
        super().__init__(class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
        if self.class_weights is not None:
            # `count` leaves these pixels out, but smoothing would give them a loss.
            weights = self.class_weights[target.masked_fill(target == ignore_value, 0)]
            target = target.masked_fill(weights == 0, ignore_value)
        return F.cross_entropy(
            logits,
            target,
            weight=self.class_weights,
            ignore_index=ignore_value,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )


class Focal(_PixelLoss):
    """See `FocalSection`."""

    def __init__(self, class_weights: Tensor | None, gamma: float) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
        surprise = F.cross_entropy(logits, target, ignore_index=ignore_value, reduction="none")
        # 1 - exp(-surprise), without cancellation. Below 1 the power's slope at 0 is infinite: stay just above.
        missing = -torch.expm1(-surprise)
        focal = missing.clamp(min=torch.finfo(missing.dtype).tiny) ** self.gamma * surprise
        if self.class_weights is not None:
            focal = focal * self.class_weights[target.masked_fill(target == ignore_value, 0)]
        return focal.sum()  # the surprise of ignored pixels is 0


def balanced_weights(pixels: Tensor) -> Tensor:
    """Weights 1 / sqrt(share) with mean 1, from the number of pixels of each class; 0 for a class without pixels."""
    share = pixels.double() / pixels.sum().clamp(min=1)
    weights = torch.where(share > 0, share.clamp(min=1e-12).rsqrt(), 0.0)
    present = (share > 0).sum().clamp(min=1)
    return (weights * present / weights.sum().clamp(min=1e-6)).float()
