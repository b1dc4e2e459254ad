"""Learning-rate schedules: a factor of the recipe's learning rate for each step, as a pure function of the step.

Steps count from the start of the training, or of the stage that the schedule belongs to.

To add a schedule, write a `Section` with a ``name`` of its own and a method ``factor``, and add it to
`ScheduleSection`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from training.support.section import Section

Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class _AfterWarmUp(Section, ABC):
    warmup: Fraction = 0.0
    """Share of the steps over which the learning rate first rises from 0."""

    def factor(self, step: int, total: int) -> float:
        """Factor of the learning rate at step 0 <= ``step`` < ``total``."""
        warmup_steps = self.warmup * total
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return self._after_warm_up((step - warmup_steps) / max(total - warmup_steps, 1))

    @abstractmethod
    def _after_warm_up(self, progress: float) -> float:
        """Factor after a share 0 <= ``progress`` < 1 of the steps after the warm-up."""


class Constant(_AfterWarmUp):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"

    def _after_warm_up(self, progress: float) -> float:
        return 1.0


class Poly(_AfterWarmUp):
    """(1 - progress) to a power."""

    name: Literal["poly"] = "poly"
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent; 1 is linear."""

    def _after_warm_up(self, progress: float) -> float:
        return math.pow(1.0 - progress, self.power)


class Step(_AfterWarmUp):
    """A learning rate that drops at milestones."""

    name: Literal["step"] = "step"
    milestones: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.5, 0.75)
    """Shares of the steps after the warm-up at which it drops."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor at each milestone."""

    def _after_warm_up(self, progress: float) -> float:
        passed = sum(progress >= milestone for milestone in self.milestones)
        return math.pow(self.gamma, passed)


class Cosine(_AfterWarmUp):
    """Half a cosine."""

    name: Literal["cosine"] = "cosine"
    final: Fraction = 0.0
    """Factor at the end."""

    def _after_warm_up(self, progress: float) -> float:
        return _half_cosine(1.0, self.final, progress)


class OneCycle(Section):
    """Half a cosine up from a low learning rate, then half a cosine down.

    Leslie N. Smith, Nicholay Topin: Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates, 2017, arXiv:1708.07120. The article's momentum falls while the rate rises; here it stays.
    """

    name: Literal["one_cycle"] = "one_cycle"
    warmup: Fraction = 0.3
    """Share of the steps over which the learning rate rises."""
    initial: Fraction = 0.04
    """Factor at the first step."""
    final: Fraction = 0.0
    """Factor at the end."""

    def factor(self, step: int, total: int) -> float:
        """Factor of the learning rate at step 0 <= ``step`` < ``total``."""
        warmup_steps = self.warmup * total
        if step < warmup_steps:
            return _half_cosine(self.initial, 1.0, step / warmup_steps)
        return _half_cosine(1.0, self.final, (step - warmup_steps) / max(total - warmup_steps, 1))


ScheduleSection: TypeAlias = Annotated[Constant | Poly | Step | Cosine | OneCycle, Field(discriminator="name")]


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
