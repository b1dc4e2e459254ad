"""Exponential moving average of weights (EMA)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of all tensors of a module that training changes, BatchNorm statistics included.

    Args:
        module: the module that trains.
        decay: decay of the average, reached gradually, since the first weights are random.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay, self._updates = module, decay, 0
        self._average = {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the module's present weights to the average."""
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 10))
        for name, tensor in self._changing().items():
            self._average[name].lerp_(tensor, 1 - decay)

    def state(self) -> dict[str, Any]:
        """State for `restore`: tensors and numbers."""
        return {"updates": self._updates, "average": self._average}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._updates = state["updates"]
        for name, tensor in self._average.items():
            tensor.copy_(state["average"][name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the module has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self._changing().items():
            present = tensor.clone()
            tensor.copy_(self._average[name])
            self._average[name].copy_(present)

    def _changing(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in changing_tensors(self._module).items() if tensor.is_floating_point()}


def changing_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a module that training changes, by name: weights with a gradient, and their layers' statistics.

    The tensors are the module's own, not copies.
    """
    weights = {name: weight.data for name, weight in module.named_parameters() if weight.requires_grad}
    statistics = {
        f"{name}.{key}" if name else key: buffer
        for name, part in module.named_modules()
        if any(weight.requires_grad for weight in part.parameters(recurse=False))
        for key, buffer in part.named_buffers(recurse=False)
    }
    return {**weights, **statistics}
