"""Learning-rate schedules: a factor of the recipe's learning rate for each step, as a pure function of the step.

To add one: write a `Section` with a ``name`` of its own and a method ``factor``, and add it to `ScheduleSection`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from training.section import Section

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Constant(Section):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, total: int) -> float:
        """Factor of the learning rate at step 0 <= ``step`` < ``total``."""
        return 1.0


class Poly(Section):
    """(1 - progress) to a power."""

    name: Literal["poly"] = "poly"
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent; 1 is linear."""

    def factor(self, step: int, total: int) -> float:
        """See `Constant.factor`."""
        return (1.0 - step / total) ** self.power


class Cosine(Section):
    """Linear warm-up, then half a cosine."""

    name: Literal["cosine"] = "cosine"
    warmup: Fraction = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    final: Fraction = 0.0
    """Factor at the end."""

    def factor(self, step: int, total: int) -> float:
        """See `Constant.factor`."""
        warmup_steps = self.warmup * total
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return _half_cosine(1.0, self.final, (step - warmup_steps) / max(total - warmup_steps, 1))


class OneCycle(Section):
    """Half a cosine up from a low learning rate, then half a cosine down."""

    name: Literal["one_cycle"] = "one_cycle"
    warmup: Fraction = 0.3
    """Share of the steps over which the learning rate rises."""
    initial: Fraction = 0.04
    """Factor at the first step."""
    final: Fraction = 0.0
    """Factor at the end."""

    def factor(self, step: int, total: int) -> float:
        """See `Constant.factor`."""
        warmup_steps = self.warmup * total
        if step < warmup_steps:
            return _half_cosine(self.initial, 1.0, step / warmup_steps)
        return _half_cosine(1.0, self.final, (step - warmup_steps) / max(total - warmup_steps, 1))


ScheduleSection: TypeAlias = Annotated[Constant | Poly | Cosine | OneCycle, Field(discriminator="name")]


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
