"""The folder that a training writes: recipe, history, checkpoint, curves and pictures; the bundles lie beside them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import locked, replacing_file
from training.data import SegmentationDataset
from training.loop.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.recipes.schema import Recipe
from training.reports.pictures import draw_curves, write_predictions
from training.support.output import check_free, writing

Record = dict[str, Any]

BEST, BEST_LOSS, LAST = "best", "best_loss", "last"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
PREDICTIONS_FILE = "predictions.png"
CHECKPOINT_FILE = "checkpoint.pt"
TENSORBOARD_FOLDER = "tensorboard"

#: Bundle -> what the record of its model has most of.
RANKINGS: dict[str, Callable[[Record], float]] = {
    BEST: lambda record: -1.0 if record["miou"] is None else record["miou"],
    BEST_LOSS: lambda record: -record["val_loss"],
}

_REPLACED = (BEST, BEST_LOSS, LAST, RECIPE_FILE, METRICS_FILE, CURVES_FILE, PREDICTIONS_FILE, CHECKPOINT_FILE)
# What changes nothing of the weights: a training may be resumed in a folder that was moved, with another number of
# processes to load its data, with more room for features, and be evaluated in another way.
_FREE_KEYS = ("output", "workers", "checkpoint_minutes", "cache.folder", "cache.max_gb", "inference")


class RunFolder:
    """A folder that belongs to one training; a context, within which no other training may write it.

    Args:
        path: must not exist, or be empty, unless the training is resumed.
        recipe: resolved; written into a new folder.
        resume: whether to take over what a training by this recipe left. Where it left nothing, this is a new one.

    Attributes:
        path: the folder.
        checkpoint: where the training goes on, or None.

    Raises:
        OutputError: the folder holds something else, is in use, or cannot be written; or its training had another
            recipe.
    """

    def __init__(self, path: Path, recipe: Recipe, resume: bool = False) -> None:
        self.path = path
        self.checkpoint: Checkpoint | None = None
        content = recipe.model_dump(mode="json")
        taken_over = resume and (path / RECIPE_FILE).exists()
        if taken_over:
            _check_recipe(path / RECIPE_FILE, content)
        else:
            if resume:
                _remove_leftovers(path, RECIPE_FILE)
            check_free(path, "--output")
            _write_recipe(path / RECIPE_FILE, content)
        with writing(path), contextlib.ExitStack() as resources:
            self._lock(resources)
            if taken_over:
                _write_recipe(path / RECIPE_FILE, content)
                self.checkpoint = read_checkpoint(path / CHECKPOINT_FILE)
                _remove_leftovers(path, *_REPLACED)
                shutil.rmtree(path / TENSORBOARD_FOLDER, ignore_errors=True)
            self._tensorboard = SummaryWriter(str(path / TENSORBOARD_FOLDER))
            resources.callback(self._tensorboard.close)
            if taken_over:
                self._rewrite_history()
            self._resources = resources.pop_all()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def add_point(self, point: Record) -> None:
        """Show ``loss`` and ``lr`` of a ``step`` in TensorBoard.

        Raises:
            OutputError: they cannot be written.
        """
        with writing(self.path):
            self._draw_point(point)

    def add(self, records: Sequence[Record]) -> None:
        """Append the last of ``records`` to metrics.jsonl, TensorBoard and the curves.

        Raises:
            OutputError: one of them cannot be written.
        """
        with writing(self.path):
            with open(self.path / METRICS_FILE, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(records[-1]) + "\n")
            self._draw(records[-1])
            draw_curves(records, self.path / CURVES_FILE)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in place of the one before.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.path):
            write_checkpoint(self.path / CHECKPOINT_FILE, checkpoint)

    def write_predictions(self, rows: Sequence[np.ndarray], data: SegmentationDataset) -> None:
        """Write the picture of predictions from rows of `report.prediction_row`.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.path):
            write_predictions(rows, data.class_names, data.palette, self.path / PREDICTIONS_FILE)

    def _lock(self, resources: contextlib.ExitStack) -> None:
        try:
            resources.enter_context(locked(self.path, wait=False))
        except BlockingIOError as error:
            raise OutputError(f"another training is writing {self.path}; wait for its end, or stop it") from error

    def _rewrite_history(self) -> None:
        """Forget what came after the checkpoint: its steps will be done again."""
        records = self.checkpoint.records if self.checkpoint else []
        for point in self.checkpoint.points if self.checkpoint else []:
            self._draw_point(point)
        with replacing_file(self.path / METRICS_FILE) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        for record in records:
            self._draw(record)

    def _draw_point(self, point: Record) -> None:
        for name in ("loss", "lr"):
            self._tensorboard.add_scalar(f"training/{name}", point[name], point["step"])

    def _draw(self, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, record["step"])
        self._tensorboard.flush()


def best_record(records: Sequence[Record]) -> Record:
    """The one with the highest mIoU; the first of several."""
    return max(records, key=RANKINGS[BEST])


def bundles_led(record: Record, earlier: Sequence[Record]) -> list[str]:
    """The bundles of which a new record's model is better than all before."""
    return [
        bundle for bundle, ranking in RANKINGS.items() if all(ranking(record) > ranking(other) for other in earlier)
    ]


def _remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what a killed training left of files and folders that it was about to replace; see `files`."""
    for name in names:
        for leftover in folder.glob(f".{Path(name).stem}.*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _write_recipe(path: Path, recipe: dict[str, Any]) -> None:
    with writing(path.parent), replacing_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Raise OutputError unless the training of a folder had this recipe."""
    try:
        earlier = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise OutputError(
            f"{path.parent} holds no training that could be resumed ({error}); nothing in it was touched. Name the "
            "folder of one with --output, or leave out --resume"
        ) from error
    for key, before, now in differences(earlier, recipe):
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE_KEYS):
            raise OutputError(
                f"{path.parent} cannot be resumed: its training had {key} = {before}, the recipe now has {now}. Change "
                "it back, or train into another folder with --output"
            )


def differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested mappings differ: (dotted key, value before, value after); None for a key that is absent."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in {**before, **after}
            for difference in differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        return differences(dict(enumerate(before)), dict(enumerate(after)), prefix)
    return [] if before == after else [(prefix, before, after)]
