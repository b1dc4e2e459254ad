"""Optimizers and their parameter groups."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn

from training.support.section import Section

Positive: TypeAlias = Annotated[float, Field(gt=0)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
BelowOne: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class _Optimizer(Section):
    lr: Positive
    """Largest learning rate."""
    weight_decay: NotNegative
    backbone_lr_factor: NotNegative = 1.0
    """Learning rate of the backbone's trainable part, as a factor of lr."""
    decay_vectors: bool = False
    """Whether norms, biases and other vectors decay too."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; a longer gradient is shortened to it."""

    def _groups(self, backbone: nn.Module, head: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(backbone, head, self.lr, self.backbone_lr_factor, self.weight_decay, self.decay_vectors)


class AdamWSection(_Optimizer):
    """Adam with decoupled weight decay.

    Ilya Loshchilov, Frank Hutter: Decoupled Weight Decay Regularization, 2017, arXiv:1711.05101.
    """

    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Largest learning rate."""
    weight_decay: NotNegative = 0.01
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)

    def build(self, backbone: nn.Module, head: nn.Module) -> torch.optim.Optimizer:
        """Optimizer of all trainable parameters."""
        return torch.optim.AdamW(self._groups(backbone, head), betas=self.betas)


class AdamSection(_Optimizer):
    """Adam; weight decay is part of the gradient.

    Diederik P. Kingma, Jimmy Ba: Adam: A Method for Stochastic Optimization, 2014, arXiv:1412.6980.
    """

    name: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    """Largest learning rate."""
    weight_decay: NotNegative = 0.0
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)

    def build(self, backbone: nn.Module, head: nn.Module) -> torch.optim.Optimizer:
        """Optimizer of all trainable parameters."""
        return torch.optim.Adam(self._groups(backbone, head), betas=self.betas)


class SGDSection(_Optimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 1e-2
    """Largest learning rate."""
    weight_decay: NotNegative = 1e-4
    momentum: BelowOne = 0.9

    def build(self, backbone: nn.Module, head: nn.Module) -> torch.optim.Optimizer:
        """Optimizer of all trainable parameters."""
        return torch.optim.SGD(self._groups(backbone, head), momentum=self.momentum)


OptimizerSection: TypeAlias = Annotated[AdamWSection | AdamSection | SGDSection, Field(discriminator="name")]


def parameter_groups(
    backbone: nn.Module,
    head: nn.Module,
    lr: float,
    backbone_lr_factor: float,
    weight_decay: float,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    Args:
        backbone, head: only parameters that require a gradient are taken.
        lr: learning rate of the head; the backbone's is ``lr * backbone_lr_factor``.
        weight_decay: for matrices and kernels; for vectors (norms, biases) only with ``decay_vectors``.

    Returns:
        Groups for an optimizer; a schedule scales ``peak_lr`` of each.
    """
    groups = []
    for module, module_lr in ((head, lr), (backbone, lr * backbone_lr_factor)):
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decays in (True, False):
            parameters = [parameter for parameter in trainable if (parameter.ndim > 1) == decays]
            if parameters:
                decay = weight_decay if decays or decay_vectors else 0.0
                groups.append({"params": parameters, "lr": module_lr, "peak_lr": module_lr, "weight_decay": decay})
    return groups
