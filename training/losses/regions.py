"""Losses of whole regions: the overlap of prediction and truth, class by class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from training.losses.base import Loss, LossSettings

Classes = Literal["present", "all"]


class _RegionSettings(LossSettings):
    classes: Classes = "present"
    """Classes over which the loss is averaged: those in the masks, or all."""
    per_image: bool = False
    """Whether the loss is the mean over images; otherwise the batch counts as one image. Only the mean over images is
    the same for several processes or accumulated steps as for one batch."""


class DiceSection(_RegionSettings):
    """1 - Dice coefficient of the probabilities and the truth.

    Fausto Milletari, Nassir Navab, Seyed-Ahmad Ahmadi: V-Net: Fully Convolutional Neural Networks for Volumetric
    Medical Image Segmentation, 2016, arXiv:1606.04797; here over the softmax, the mean over classes.
    """

    name: Literal["dice"] = "dice"
    squared: bool = True
    """Whether the denominator sums squares, as in the article, or plain probabilities."""
    smooth: Annotated[float, Field(ge=0)] = 0.0
    """Pixels added to numerator and denominator, so that a class of a few pixels matters less. Above 0 where classes
    is all: else a class that no mask shows gives no gradient."""

    @model_validator(mode="after")
    def _counts_all(self) -> DiceSection:
        if self.classes == "all" and not self.smooth:
            raise ValueError("classes is all, but classes that no mask shows have no effect with smooth 0; set it to 1")
        return self

    def build(self, num_classes: int, count_pixels: Callable[[], Tensor]) -> Dice:
        """See `CrossEntropySection.build`; never raises."""
        return Dice(self.classes, self.per_image, self.squared, self.smooth)


class LovaszSection(_RegionSettings):
    """The Lovász extension of 1 - IoU, a convex surrogate of 1 - mIoU.

    Maxim Berman, Amal Rannen Triki, Matthew B. Blaschko: The Lovász-Softmax loss: A tractable surrogate for the
    optimization of the intersection-over-union measure in neural networks, 2018, arXiv:1705.08790.
    """

    name: Literal["lovasz"] = "lovasz"

    def build(self, num_classes: int, count_pixels: Callable[[], Tensor]) -> Lovasz:
        """See `CrossEntropySection.build`; never raises."""
        return Lovasz(self.classes, self.per_image)


class _RegionLoss(Loss):
    """A loss of probabilities and truth over the labelled pixels; ignored pixels are removed before."""

    def __init__(self, classes: Classes, per_image: bool) -> None:
        super().__init__()
        self.classes, self.per_image = classes, per_image

    def count(self, target: Tensor, ignore_value: int) -> Tensor:
        labelled = target != ignore_value
        return labelled.flatten(1).any(1).sum() if self.per_image else labelled.any()

    def forward(self, logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
        groups = [slice(index, index + 1) for index in range(len(target))] if self.per_image else [slice(None)]
        total = logits[:0].sum()  # a zero that gradients can flow through, where nothing is labelled
        for group in groups:
            truth = target[group]
            labelled = truth != ignore_value
            if labelled.any():
                total = total + self._loss(logits[group].softmax(1), truth, labelled)
        return total

    @abstractmethod
    def _loss(self, probabilities: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
        """The loss of probabilities (B, C, H, W) and truth (B, H, W) int64 where labelled (B, H, W), which some are."""

    def _considered(self, pixels: Tensor) -> Tensor:
        """(C,) bool: the classes over which the loss is averaged, from the number of pixels of each."""
        return torch.ones_like(pixels, dtype=torch.bool) if self.classes == "all" else pixels > 0


class Dice(_RegionLoss):
    """See `DiceSection`."""

    def __init__(self, classes: Classes, per_image: bool, squared: bool, smooth: float) -> None:
        super().__init__(classes, per_image)
        self.squared, self.smooth = squared, smooth

    def _loss(self, probabilities: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
        # Ignored pixels are multiplied by 0: to select the others costs several times as much as all the rest.
        num_classes = probabilities.shape[1]
        ids = truth.where(labelled, 0)
        of_truth = probabilities.gather(1, ids.unsqueeze(1)).squeeze(1) * labelled
        intersection = probabilities.new_zeros(num_classes).index_add(0, ids.flatten(), of_truth.flatten())
        predicted = probabilities.square() if self.squared else probabilities
        pixels = torch.bincount(truth.where(labelled, num_classes).flatten(), minlength=num_classes)[:num_classes]
        total = (predicted * labelled.unsqueeze(1)).sum((0, 2, 3)) + pixels
        tiny = torch.finfo(total.dtype).tiny
        dice = (2 * intersection + self.smooth) / (total + self.smooth).clamp(min=tiny)
        return (1 - dice)[self._considered(pixels)].mean()


class Lovasz(_RegionLoss):
    """See `LovaszSection`."""

    def _loss(self, probabilities: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
        truth, probabilities = truth[labelled], probabilities.movedim(1, 0)[:, labelled]
        considered = self._considered(torch.bincount(truth, minlength=len(probabilities))).tolist()
        # One class at a time: sorting needs several times the memory of what is sorted.
        losses = [
            _lovasz_extension(probability, truth == index)
            for index, probability in enumerate(probabilities.unbind())
            if considered[index]
        ]
        return torch.stack(losses).mean()


def _lovasz_extension(probability: Tensor, foreground: Tensor) -> Tensor:
    """The Lovász extension of 1 - IoU at the errors of one class; both arguments (N,).

    The extension is linear as long as the order of the errors stays. So its gradient is constant there, and the
    backward pass needs no graph of how that gradient was computed.
    """
    errors = torch.where(foreground, 1 - probability, probability)
    return errors @ _steps_of_jaccard(errors.detach(), foreground)


def _steps_of_jaccard(errors: Tensor, foreground: Tensor) -> Tensor:
    """Growth of 1 - IoU with each pixel, (N,), when pixels become wrong in the order of falling errors.

    A missed pixel shrinks the intersection by one; a false pixel enlarges the union by one. The differences are written
    in closed form, since subtracting one IoU from the next in float32 would lose their digits.
    """
    order = errors.argsort(descending=True)
    missed = foreground[order]
    pixels = missed.sum()
    intersection = (pixels - missed.cumsum(0)).to(errors.dtype)
    union = (pixels + (~missed).cumsum(0)).to(errors.dtype)
    steps = torch.where(missed, 1 / union, intersection / (union * (union - 1).clamp(min=1)))
    steps[0] += pixels == 0  # without foreground, the IoU falls from 1 to 0 with the first false pixel
    return torch.empty_like(steps).scatter_(0, order, steps)
