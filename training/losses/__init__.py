"""Losses over full-resolution logits. Ignored pixels change neither value nor gradient.

To add a loss, write a subclass of `base.LossSettings` with a ``name`` of its own and a method ``build`` that returns a
`base.Loss`, and add it to `LossSection`. The tests then check that ignored pixels change nothing.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from training.losses.base import Loss, WeightedSum
from training.losses.pixels import CrossEntropySection, FocalSection, balanced_weights
from training.losses.regions import DiceSection, LovaszSection

LossSection: TypeAlias = Annotated[
    CrossEntropySection | FocalSection | DiceSection | LovaszSection, Field(discriminator="name")
]

__all__ = [
    "CrossEntropySection",
    "DiceSection",
    "FocalSection",
    "Loss",
    "LossSection",
    "LovaszSection",
    "WeightedSum",
    "balanced_weights",
]
