"""The training loop: takes the steps of a recipe, validates, and writes bundles and checkpoints."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast, broadcast_object_list
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from torch.utils.data import Dataset

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.support.errors import RecipeError
from training.checks.problems import check_before_training
from training.data.pseudo_labels import JoinedImages
from training.loop.bundle_writer import BundleWriter
from training.loop.caching import StageCaches
from training.loop.checkpoint import Checkpoint
from training.loop.model import SegmentationModel, changed_classes, make_backbone, make_head
from training.loop.origins import Origins, find_origins
from training.loop.parts import (
    make_loss,
    make_repeats,
    make_samples,
    open_training_data,
    pixel_counter,
)
from training.loop.run_folder import (
    BEST,
    LAST,
    RunFolder,
    best_record,
    bundles_led,
    check_startable,
    validations_without_gain,
)
from training.loop.stages import Batch, Stage, StageRun, plan_stages
from training.loop.tracking import Tracker, check_tracker
from training.loop.validation import Validation
from training.losses import WeightedSum
from training.optimization.ema import MovingAverage, changing_tensors
from training.recipes.resolve import resolve
from training.recipes.schema import Recipe
from training.support.processes import lack_of_memory_explained, make_accelerator
from training.support.randomness import Purpose, seed_torch
from training.support.text import percent, say

_STEPS_OF_A_POINT = 20
_DRY_RUN_STEPS = 2
_DRY_RUN_IMAGES = 2

_Shared = TypeVar("_Shared")


class Trainer:
    """A training, built from a recipe. Under ``accelerate launch`` it is one of several processes.

    Args:
        recipe: as written, or resolved.
        console: for people; quiet in all processes but the main one.

    Attributes:
        recipe: with every "auto" resolved.
        output: folder of everything written.
        model: the network that trains.
        average: moving average of the model's weights, or None.
        stages: stages of the training, in order.

    Raises:
        SegmentationError: recipe, data, backbone or head do not fit; the message says which and how.
    """

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self._console = console
        check_tracker(recipe.tracker)
        self._train_data, self._val_data = open_training_data(recipe), recipe.data.open("val")
        seed_torch(Purpose.INITIAL_WEIGHTS, recipe.seed)
        backbone = make_backbone(recipe.backbone)
        self.recipe = recipe = resolve(recipe, backbone)
        self.output = Path(recipe.output)
        if recipe.cache.views and backbone.trainable_blocks != 0:
            raise RecipeError("cache.views asks for the features of a frozen backbone, but the backbone trains; set 0")
        head = make_head(recipe.head, backbone, self._train_data.class_names)
        freeze_norm = recipe.batch_norm == "frozen"
        mean, std = backbone.normalisation = recipe.input.normalisation
        self.model = SegmentationModel(backbone, head, mean, std, freeze_norm)
        if recipe.batch_norm == "synchronised":
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]  # torch's own
        self._bundles = BundleWriter(recipe, self.model, self._val_data)
        self._accelerator = accelerator = make_accelerator(recipe.precision, recipe.tracker, recipe.output)
        self._tracker = Tracker(recipe.tracker, accelerator)
        console.quiet = console.quiet or not accelerator.is_main_process
        self.stages = plan_stages(recipe, len(self._train_data), accelerator.process_index, accelerator.num_processes)
        self._samples: Sequence[Dataset[Any]] = [
            make_samples(stage.recipe, self._train_data, backbone.patch_multiple) for stage in self.stages
        ]
        self._count_pixels = pixel_counter(self._train_data)
        self._head = head
        self._wrapped = accelerator.prepare(self.model)
        self.average = MovingAverage(self.model, recipe.ema) if recipe.ema else None
        self._step = 0
        self._step_losses: list[torch.Tensor] = []
        self._records: list[dict[str, Any]] = []
        self._points: list[dict[str, Any]] = []

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Train, validate, and write bundles, pictures and history; return the record of the best validation.

        Args:
            resume: go on where an earlier training by this recipe stopped; the result is the same as without the stop.

        Raises:
            OutputError: the output folder holds something, cannot be written, or belongs to another training.
            DatasetError: the data set, or an item of it, cannot be used.
            RecipeError: a loss does not fit the classes, training diverged, the GPU lacks memory, or the tracker cannot
                be started.
            KeyboardInterrupt: interrupted; the last bundle has been written.
        """
        with contextlib.ExitStack() as stack:
            folder = None
            if self._accelerator.is_main_process:
                check_startable(self.output, resume)
                self._check_data()
                folder = stack.enter_context(
                    RunFolder(self.output, self.recipe, self.stages[-1].end, self._tracker, resume)
                )
                changes = changed_classes(self.recipe.head, self._train_data.class_names)
                for note in [*folder.start(self._origins), *([changes] if changes else [])]:
                    say(self._console, note, "yellow")
            checkpoint = self._shared(folder.checkpoint if folder is not None else None)
            try:
                with lack_of_memory_explained():
                    self._train(folder, checkpoint)
            except KeyboardInterrupt:
                if folder is not None and self._step > (checkpoint.step if checkpoint is not None else 0):
                    if not self._is_validated():
                        with self._averaged_weights():
                            self._bundles.save(folder.path / LAST, {"step": self._step, "interrupted": True})
                    say(
                        self._console,
                        f"the model after step {self._step} is in the bundle '{LAST}'; --resume goes on from the "
                        f"checkpoint, at most {self.recipe.checkpoint_minutes:g} minutes before",
                    )
                raise
        return best_record(self._records)

    def dry_run(self) -> dict[str, Any]:
        """Take two steps, validate on a few images, and write no run folder; return the record."""
        if self._accelerator.is_main_process:
            self._check_data()
        with lack_of_memory_explained():
            run = self.start(self.stages[0])
            for _, batches in zip(range(_DRY_RUN_STEPS), run.batches(0), strict=False):
                self._take_step(run, batches)
            scores, _ = self._validate(min(_DRY_RUN_IMAGES, len(self._val_data)))
        return {"step": self._step, "loss": self._mean_loss(), **scores}

    def start(self, stage: Stage) -> StageRun:
        """Prepare a stage to take its steps."""
        index = self.stages.index(stage)
        return StageRun(
            stage,
            self.model,
            self._wrapped,
            self._samples[index],
            self._repeats,
            self._losses[index],
            self._train_data.ignore_value,
            self._accelerator,
        )

    def use_cache(self) -> None:
        """Make the stages that start from now on read features from the disk; compute absent features first.

        Raises:
            SegmentationError: see `cache_filling.fill_caches`.
        """
        caches = self.caches(self._shared(self.data_digest() if self._accelerator.is_main_process else ""))
        caches.fill(self._console)
        self._samples = caches.by_stage

    def caches(self, digest: str) -> StageCaches:
        """The stages' feature caches, for training data with a digest; nothing is computed yet."""
        manifest = self._bundles.manifest()
        return StageCaches(self.stages, self._train_data, digest, manifest, self.model, self._accelerator)

    def data_digest(self) -> str:
        """The digest of the training data, which reads all of them."""
        return self._origins.data["train"].digest()

    def _check_data(self) -> None:
        """For the main process; see `check_before_training`."""
        taught = self._train_data.taught if isinstance(self._train_data, JoinedImages) else None
        check_before_training(self.recipe.data, self._console, taught)
        _ = self._losses, self._repeats  # what cannot be counted is told before anything is written

    @functools.cached_property
    def _losses(self) -> list[WeightedSum]:
        """The loss of each stage, then that of the validation; for balanced weights all masks are read."""
        recipe, classes, device = self.recipe, self._head.num_classes, self._accelerator.device
        return [make_loss(part, classes, self._count_pixels).to(device) for part in (*recipe.by_stage(), recipe)]

    @functools.cached_property
    def _repeats(self) -> np.ndarray | None:
        """See `make_repeats`; for a threshold all masks are read."""
        return make_repeats(self.recipe, self._train_data, self._count_pixels)

    def _train(self, folder: RunFolder | None, checkpoint: Checkpoint | None) -> None:
        """Take the steps after the checkpoint's; only the main process has a folder."""
        self._began = self._saved = time.monotonic()
        if checkpoint is not None:
            self._restore(checkpoint)
            if self._step == self.stages[-1].end and not self._is_validated():
                self._validate_shortened(folder, checkpoint)
        if self._is_at_its_end():
            return
        if self.recipe.cache.views:
            self.use_cache()
        with _progress(self._console) as progress:
            task = progress.add_task("training", total=self.stages[-1].end, completed=self._step, loss="-", miou="-")
            for run in self._runs_left(checkpoint):
                while self._step < run.stage.end and not self._is_at_its_end():
                    epoch, _ = run.stage.position(self._step)
                    for batches in run.batches(self._step):
                        if folder is not None and self._checkpoint_is_due():
                            self._save_checkpoint(folder, run)
                        self._take_step(run, batches)
                        progress.advance(task)
                        if self._step % _STEPS_OF_A_POINT == 0:
                            point = self._add_point(folder, run)
                            progress.update(task, loss=f"{point['loss']:.3f}")
                    if (epoch + 1) % self.recipe.evaluate_every == 0 or self._step == run.stage.end:
                        record = self._validate_and_save(folder, run, epoch + 1)
                        progress.update(task, loss=f"{record['loss']:.3f}", miou=percent(record["miou"]))

    def _validate_shortened(self, folder: RunFolder | None, checkpoint: Checkpoint) -> None:
        """Validate and save at the end of a training that was shortened to the steps that it has taken."""
        run = self.start(self.stages[-1])
        run.optimizer.load_state_dict(checkpoint.optimizer)
        last_epoch, _ = run.stage.position(self._step - 1)
        self._validate_and_save(folder, run, last_epoch + 1)

    def _is_validated(self) -> bool:
        """Whether the last validation, which wrote calibrated bundles, was after the last step."""
        return bool(self._records) and self._records[-1]["step"] == self._step

    def _is_at_its_end(self) -> bool:
        """Whether all steps are taken, or patience is lost."""
        return self._step >= self.stages[-1].end or self._has_lost_patience(self._records)

    def _has_lost_patience(self, records: Sequence[dict[str, Any]]) -> bool:
        """Whether so many validations of the last stage as the recipe allows have brought no higher mIoU."""
        last = [record for record in records if record["step"] > self.stages[-1].first_step]
        return self.recipe.patience is not None and validations_without_gain(last) >= self.recipe.patience

    def _runs_left(self, checkpoint: Checkpoint | None) -> Iterator[StageRun]:
        """Yield the stages from the present step on, each started after the end of the one before."""
        for stage in self.stages:
            if self._step < stage.end:
                run = self.start(stage)
                if checkpoint is not None and stage.first_step < checkpoint.step < stage.end:
                    run.optimizer.load_state_dict(checkpoint.optimizer)
                yield run

    def _take_step(self, run: StageRun, batches: list[Batch]) -> None:
        self._step_losses.append(run.step(self._step, batches))
        if self.average is not None:
            self.average.update()
        self._step += 1

    def _add_point(self, folder: RunFolder | None, run: StageRun) -> dict[str, Any]:
        """Record the loss of the last few steps and the learning rate; return them."""
        loss = self._finite(torch.stack(self._step_losses[-_STEPS_OF_A_POINT:]).mean())
        point = {"step": self._step, "loss": loss, "lr": run.optimizer.param_groups[0]["lr"]}
        self._points.append(point)
        if folder is not None:
            folder.add_point(point)
        return point

    def _validate_and_save(self, folder: RunFolder | None, run: StageRun, epoch: int) -> dict[str, Any]:
        """Validate the model; write bundles, history, pictures and a checkpoint; return the record."""
        record = {
            "epoch": epoch,
            "step": self._step,
            "seconds": round(self._seconds(), 1),
            "lr": run.optimizer.param_groups[0]["lr"],
            "loss": self._mean_loss(),
        }
        self._agree_on_statistics()
        with self._averaged_weights():
            scores, rows = self._validate(len(self._val_data))
            record |= scores
            if self._step < self.stages[-1].end and self._has_lost_patience([*self._records, record]):
                record["stopped_early"] = True
            led = bundles_led(record, self._records)
            if folder is not None:
                for bundle in (LAST, *led):
                    self._bundles.save(folder.path / bundle, record)
        self._records.append(record)
        if folder is not None:
            if BEST in led:
                folder.write_predictions(rows, self._val_data)
            folder.add(self._records)
            self._save_checkpoint(folder, run)
        say(
            self._console,
            f"epoch {epoch:3d}  {record['seconds']:7.0f} s  loss {record['loss']:.4f}  validation loss "
            f"{record['val_loss']:.4f}  mIoU {percent(record['miou'])}  aAcc {percent(record['aacc'])}"
            f"{' (best)' if BEST in led else ''}",
        )
        if "stopped_early" in record:
            say(
                self._console,
                f"no higher mIoU in {self.recipe.patience} validations: the training ends after {self._step} of "
                f"{self.stages[-1].end} steps",
            )
        return record

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._saved >= 60 * self.recipe.checkpoint_minutes

    def _save_checkpoint(self, folder: RunFolder, run: StageRun) -> None:
        scaler = self._accelerator.scaler
        if self._step_losses:
            self._finite(torch.stack(self._step_losses).mean())  # a diverged model must not replace a good checkpoint
        folder.save(
            Checkpoint(
                step=self._step,
                seconds=self._seconds(),
                losses=torch.stack(self._step_losses).cpu() if self._step_losses else torch.zeros(0),
                records=self._records,
                points=self._points,
                model=changing_tensors(self.model),
                optimizer=run.optimizer.state_dict(),
                scaler=None if scaler is None else scaler.state_dict(),
                average=None if self.average is None else self.average.state(),
            )
        )
        self._saved = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint, except the optimizer's, which belongs to a stage."""
        self._step, self._records = checkpoint.step, list(checkpoint.records)
        self._points = list(checkpoint.points)
        self._step_losses = list(checkpoint.losses.to(self._accelerator.device))
        self._began -= checkpoint.seconds
        for name, tensor in changing_tensors(self.model).items():
            tensor.copy_(checkpoint.model[name])
        if self.average is not None and checkpoint.average is not None:
            self.average.restore(checkpoint.average)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(checkpoint.scaler)

    def _seconds(self) -> float:
        """Seconds since the training began, without the time in which it was stopped."""
        return time.monotonic() - self._began

    def _mean_loss(self) -> float:
        """Mean loss of the steps since the last call."""
        loss = self._finite(torch.stack(self._step_losses).mean())
        self._step_losses.clear()
        return loss

    def _finite(self, mean_loss: torch.Tensor | float) -> float:
        loss = float(mean_loss)
        if not math.isfinite(loss):
            raise RecipeError(
                f"training diverged before step {self._step}: the loss is {loss}; lower optimizer.lr, or set "
                "optimizer.clip_norm"
            )
        return loss

    def _validate(self, count: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Validate on the first ``count`` items; see `Validation.run`."""
        validation = Validation(self.model, self._val_data, self._losses[-1], self._accelerator)
        scores, rows = validation.run(Bundle(self.output, self._bundles.manifest()), range(count))
        self._finite(scores["val_loss"])  # the last step may have been too large
        return scores, rows

    def _agree_on_statistics(self) -> None:
        """Copy the main process's BatchNorm statistics to all: those are saved, so those must be validated."""
        if self._accelerator.num_processes > 1:
            weights = {name for name, _ in self.model.named_parameters()}
            statistics = [changing_tensors(self.model)]
            if self.average is not None:
                statistics.append(self.average.state()["average"])
            for tensors in statistics:
                for name, tensor in tensors.items():
                    if name not in weights:
                        tensor.copy_(broadcast(tensor))

    @functools.cached_property
    def _origins(self) -> Origins:
        """For the main process, before the first step; reads all files of the data set that are new or have changed."""
        with self._console.status("reading the data set, to recognise it when the training is resumed"):
            data = {"train": self._train_data, "val": self._val_data}
            return find_origins(self.recipe, data, self._bundles, self._head)

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def _shared(self, value: _Shared) -> _Shared:
        """The main process's value, in every process."""
        shared: _Shared = broadcast_object_list([value])[0]
        return shared


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  mIoU {task.fields[miou]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
