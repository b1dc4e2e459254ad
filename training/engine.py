"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dinov3_seg_ros.bundle import Bundle
from dinov3_seg_ros.errors import RecipeError
from dinov3_seg_ros.pipeline import Segmenter
from dinov3_seg_ros.preprocessing import check_geometry
from training.bundles import BundleWriter
from training.ema import MovingAverage
from training.evaluate import evaluate
from training.loader import AugmentedDataset, EpochSampler, make_loader
from training.losses import WeightedSum
from training.model import SegmentationModel, make_backbone, make_head
from training.randomness import Purpose, seed_torch
from training.recipe import Recipe
from training.report import percent, prediction_row
from training.resolve import resolve
from training.run_folder import BEST, LAST, RunFolder
from training.runtime import ModelRuntime
from training.transforms import CanvasSettings

_PICTURED = 6
_DRY_RUN_STEPS = 2
_DRY_RUN_IMAGES = 2
_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Trainer:
    """Everything one training needs, built from a recipe.

    Attributes:
        recipe: with every "auto" resolved.
        output: the folder for everything written.
        model: what trains.
        average: the moving average of its weights, or None.

    Raises:
        SegmentationError: the recipe, the data, the backbone or the head do not fit; the message says which and how.
    """

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self._console = console
        self._train_data, self._val_data = recipe.data.open("train"), recipe.data.open("val")
        seed_torch(Purpose.INITIAL_WEIGHTS, recipe.seed)
        backbone = make_backbone(recipe.backbone)
        self.recipe = recipe = resolve(recipe, backbone)
        self.output = Path(recipe.output)
        head = make_head(recipe.head, backbone, len(self._train_data.class_names))
        self.model = SegmentationModel(backbone, head, recipe.input.mean, recipe.input.std)
        self._bundles = BundleWriter(recipe, self.model, self._val_data)
        self._accelerator = _make_accelerator(recipe.precision)
        self._loss = self._make_loss().to(self._accelerator.device)
        self._sampler = EpochSampler(len(self._train_data), recipe.seed)
        self._wrapped, self._optimizer, self._loader = self._accelerator.prepare(
            self.model,
            recipe.optimizer.build(backbone, head),
            make_loader(self._training_samples(), self._sampler, recipe.batch_size, recipe.workers),
        )
        self.average = MovingAverage(self.model, recipe.ema) if recipe.ema else None
        self._total_steps = recipe.iterations or recipe.epochs * len(self._loader)
        self._step = 0
        self._losses: list[torch.Tensor] = []

    def run(self) -> dict[str, Any]:
        """Train, validate, and write bundles, pictures and history; returns the best validation's record.

        Raises:
            OutputError: the output folder holds something, or cannot be written.
            DatasetError: an item of the data set cannot be used.
            RecipeError: training diverged.
            KeyboardInterrupt: interrupted; the last bundle has been written.
        """
        folder = RunFolder(self.output, self.recipe)
        try:
            self._train(folder)
        except KeyboardInterrupt:
            with self._averaged_weights():
                self._bundles.save(folder.path / LAST, {"step": self._step, "interrupted": True})
            raise
        finally:
            folder.close()
        return folder.best

    def dry_run(self) -> dict[str, Any]:
        """Two steps and one validation on a few images; writes nothing. Returns its record."""
        for _, batch in zip(range(_DRY_RUN_STEPS), self._batches(epoch=0), strict=False):
            self._train_step(*batch)
        scores, _ = self._validate(range(min(_DRY_RUN_IMAGES, len(self._val_data))))
        return {"step": self._step, "loss": self._mean_loss(), **scores}

    def _train(self, folder: RunFolder) -> None:
        start, epoch = time.monotonic(), 0
        with _progress(self._console) as progress:
            task = progress.add_task("training", total=self._total_steps, loss="-", miou="-")
            while self._step < self._total_steps:
                for batch in self._batches(epoch):
                    self._train_step(*batch)
                    progress.advance(task)
                epoch += 1
                if epoch % self.recipe.evaluate_every and self._step < self._total_steps:
                    continue
                record = {
                    "epoch": epoch,
                    "step": self._step,
                    "seconds": round(time.monotonic() - start, 1),
                    "lr": self._optimizer.param_groups[0]["lr"],
                    "loss": self._mean_loss(),
                }
                record |= self._validate_and_save(folder, record)
                progress.update(task, loss=f"{record['loss']:.3f}", miou=percent(record["miou"]))

    def _validate_and_save(self, folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
        """Write bundles, history and pictures of the model as it is; returns the scores."""
        with self._averaged_weights():
            scores, rows = self._validate(range(len(self._val_data)))
            record = {**record, **scores}
            is_best = folder.is_best(record)
            for which in (LAST, BEST) if is_best else (LAST,):
                self._bundles.save(folder.path / which, record)
        folder.add(record)
        if is_best:
            folder.write_predictions(rows, self._val_data)
        self._console.print(
            f"epoch {record['epoch']:3d}  {record['seconds']:7.0f} s  loss {record['loss']:.4f}  "
            f"mIoU {percent(record['miou'])}  aAcc {percent(record['aacc'])}{' (best)' if is_best else ''}"
        )
        return scores

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of one epoch, up to the last step of the training."""
        self._sampler.epoch = epoch
        for batch in self._loader:
            yield batch
            if self._step >= self._total_steps:
                return

    def _train_step(self, canvases: torch.Tensor, masks: torch.Tensor) -> None:
        recipe = self.recipe
        seed_torch(Purpose.STEP, recipe.seed, self._step, self._accelerator.process_index)
        self._wrapped.train()
        factor = recipe.schedule.factor(self._step, self._total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        loss = self._loss(self._wrapped(canvases), masks, self._train_data.ignore_value)
        self._accelerator.backward(loss)
        if recipe.optimizer.clip_norm is not None:
            self._accelerator.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        self._losses.append(loss.detach())
        self._step += 1

    def _mean_loss(self) -> float:
        """Mean over the steps since it was last asked for."""
        loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        if not math.isfinite(loss):
            raise RecipeError(
                f"training diverged before step {self._step}: the loss is {loss}; lower optimizer.lr, or set "
                "optimizer.clip_norm"
            )
        return loss

    def _validate(self, indices: Sequence[int]) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Scores over items of the validation split, and pictures of some."""
        data, rows = self._val_data, []
        pictured = set(np.linspace(0, len(data) - 1, _PICTURED).round().astype(int).tolist())

        def picture(index: int, image: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
            if index in pictured:
                rows.append(prediction_row(image, truth, labels, data.palette))

        self.model.eval()
        bundle = Bundle(self.output, self._bundles.manifest())
        segmenter = Segmenter([bundle], ModelRuntime(self.model, self._accelerator.device))
        return evaluate(segmenter, data, indices, picture).summary(data.class_names), rows

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def _training_samples(self) -> AugmentedDataset:
        recipe, multiple = self.recipe, self.model.backbone.patch_multiple
        size = recipe.augmentation.crop or recipe.input.network_size
        for checked in (recipe.input.network_size, size):
            check_geometry(recipe.input.geometry, checked, multiple)
        settings = CanvasSettings(
            recipe.input.network_size,
            size,
            recipe.input.geometry,
            multiple,
            recipe.input.mean,
            self._train_data.ignore_value,
        )
        return AugmentedDataset(self._train_data, settings, recipe.augmentation, recipe.seed)

    def _make_loss(self) -> WeightedSum:
        data = self._train_data
        classes = len(data.class_names)

        def count_pixels() -> torch.Tensor:
            masks = (data.item(index)[1] for index in range(len(data)))
            return torch.from_numpy(sum(np.bincount(mask.ravel(), minlength=65536)[:classes] for mask in masks))

        losses = [section.build(classes, count_pixels) for section in self.recipe.losses]
        return WeightedSum(losses, [section.weight for section in self.recipe.losses])


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


def _make_accelerator(precision: str) -> Accelerator:
    try:
        return Accelerator(mixed_precision=_PRECISIONS[precision])
    except ValueError as error:
        raise RecipeError(f"precision {precision} cannot be used on this machine: {error}") from error
