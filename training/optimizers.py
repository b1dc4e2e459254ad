"""Optimizers and their parameter groups."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn

from training.section import Section

Positive: TypeAlias = Annotated[float, Field(gt=0)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]


class _Optimizer(Section):
    backbone_lr_factor: NotNegative = 1.0
    """Learning rate of the backbone's trainable part, as a factor of lr."""
    clip_norm: Positive | None = None
    """Longest gradient; a longer one is shortened to it."""


class AdamWSection(_Optimizer):
    """Adam with decoupled weight decay; norms, biases and other vectors do not decay."""

    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Largest learning rate."""
    weight_decay: NotNegative = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, backbone: nn.Module, head: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of everything that trains."""
        groups = parameter_groups(backbone, head, self.lr, self.backbone_lr_factor, self.weight_decay)
        return torch.optim.AdamW(groups, betas=self.betas)


class SGDSection(_Optimizer):
    """Stochastic gradient descent with momentum; norms, biases and other vectors do not decay."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 1e-2
    """Largest learning rate."""
    weight_decay: NotNegative = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def build(self, backbone: nn.Module, head: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of everything that trains."""
        groups = parameter_groups(backbone, head, self.lr, self.backbone_lr_factor, self.weight_decay)
        return torch.optim.SGD(groups, momentum=self.momentum)


OptimizerSection: TypeAlias = Annotated[AdamWSection | SGDSection, Field(discriminator="name")]


def parameter_groups(
    backbone: nn.Module, head: nn.Module, lr: float, backbone_lr_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay; ``peak_lr`` of a group is what a schedule scales."""
    groups = []
    for module, module_lr in ((head, lr), (backbone, lr * backbone_lr_factor)):
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decays in (True, False):
            parameters = [parameter for parameter in trainable if (parameter.ndim > 1) == decays]
            if parameters:
                decay = weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr": module_lr, "peak_lr": module_lr, "weight_decay": decay})
    return groups
