"""Stages of a training: their first and last steps, and the work of one step."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import Dataset

from training.loop.model import SegmentationModel
from training.losses import WeightedSum
from training.recipes.schema import Recipe
from training.samples.loader import Batching, BatchLoader, EpochBatches, share_out
from training.support.randomness import Purpose, seed_torch

Batch: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Stage:
    """One stage. Steps are those of the optimizer; steps and epochs count from the start of the training.

    Attributes:
        recipe: recipe of this stage alone.
        batching: division of its epochs into batches.
        first_step, first_epoch: start of the stage.
        steps: number of its steps.
    """

    recipe: Recipe
    batching: Batching
    first_step: int
    first_epoch: int
    steps: int

    @property
    def end(self) -> int:
        """The step after the last one of this stage."""
        return self.first_step + self.steps

    def position(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and number of earlier steps in that epoch."""
        epoch, done = divmod(step - self.first_step, self.batching.steps)
        return self.first_epoch + epoch, done


def plan_stages(recipe: Recipe, count: int, process: int = 0, processes: int = 1) -> list[Stage]:
    """Plan the stages of a recipe, in order.

    Args:
        recipe: the whole recipe.
        count: number of training images.
        process, processes: index and number of processes.

    Raises:
        RecipeError: a batch cannot be divided among the processes.
    """
    batching = share_out(count, recipe.batch_size, recipe.accumulate, process, processes)
    stages, step, epoch = [], 0, 0
    for part in recipe.by_stage():
        steps = part.iterations or (part.epochs or 0) * batching.steps
        stages.append(Stage(part, batching, step, epoch, steps))
        step, epoch = step + steps, epoch + -(-steps // batching.steps)
    return stages


class StageRun:
    """A running stage.

    Args:
        stage: its plan.
        model: the network that trains.
        wrapped: the same network as the accelerator runs it.
        samples: training samples by (draw, index).
        repeats: how often each image is drawn, (images,); None: all alike.
        loss: the loss to minimise.
        ignore_value: mask value of pixels without a class.
        accelerator: runs the network and connects the processes.

    Attributes:
        stage: as given.
        optimizer: optimizer of all trainable parameters.
    """

    def __init__(
        self,
        stage: Stage,
        model: SegmentationModel,
        wrapped: nn.Module,
        samples: Dataset[Any],
        repeats: np.ndarray | None,
        loss: WeightedSum,
        ignore_value: int,
        accelerator: Accelerator,
    ) -> None:
        self.stage = stage
        self._wrapped, self._loss, self._ignore_value, self._accelerator = wrapped, loss, ignore_value, accelerator
        self._order = EpochBatches(stage.batching, stage.recipe.seed, repeats)
        self._loader = BatchLoader(samples, self._order, stage.recipe.worker_count)
        self.optimizer = accelerator.prepare(stage.recipe.optimizer.build(model.backbone, model.head))
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def batches(self, step: int) -> Iterator[list[Batch]]:
        """Yield the batches of each step from ``step`` to the end of its epoch, or of the stage."""
        self._order.epoch, self._order.first_step = self.stage.position(step)
        left = min(self.stage.batching.steps - self._order.first_step, self.stage.end - step)
        loaded = iter(self._loader)
        for _ in range(left):
            yield list(itertools.islice(loaded, self.stage.batching.accumulate))

    def step(self, step: int, batches: list[Batch]) -> Tensor:
        """Take one optimizer step.

        Args:
            step: number of the step in the training.
            batches: this process's part of each batch.

        Returns:
            Loss over all batches of all processes, a scalar.
        """
        recipe, accelerator = self.stage.recipe, self._accelerator
        seed_torch(Purpose.STEP, recipe.seed, step, accelerator.process_index)
        self._wrapped.train()
        factor = recipe.schedule.factor(step - self.stage.first_step, self.stage.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        batches = send_to_device(batches, accelerator.device)
        # Gradients are added up over batches and averaged over processes; so are the counts.
        counts = torch.stack([self._loss.counts(masks, self._ignore_value) for _, masks in batches]).sum(0)
        counts = accelerator.reduce(counts, "mean")
        total = torch.zeros((), device=accelerator.device)
        for number, (seen, masks) in enumerate(batches, 1):
            last = number == len(batches)
            # Processes exchange gradients once, after the last batch.
            with contextlib.nullcontext() if last else accelerator.no_sync(self._wrapped):
                loss = self._loss(self._wrapped(seen), masks, self._ignore_value, counts)
                accelerator.backward(loss)
            total += loss.detach()
        if recipe.optimizer.clip_norm is not None:
            accelerator.unscale_gradients(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained, recipe.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        mean: Tensor = accelerator.reduce(total, "mean")
        return mean
