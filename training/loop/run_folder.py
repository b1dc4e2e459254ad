"""The folder that a training writes: recipe, origins, history, checkpoint, curves, pictures and bundles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import find_temporaries, remove_temporaries, replacing_file
from dinov3_seg_ros.support.yaml_text import parse_yaml
from training.data import SegmentationDataset
from training.loop.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.loop.origins import ORIGINS_FILE, Origins, read_origins, write_origins
from training.loop.tracking import RUN_FILE, Tracker
from training.recipes.problems import describe_problem
from training.recipes.schema import Recipe
from training.reports.pictures import draw_curves, write_predictions
from training.support.differences import differences
from training.support.writing import check_free, only_writer, writing

Record = dict[str, Any]

BEST, BEST_LOSS, LAST = "best", "best_loss", "last"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
PREDICTIONS_FILE = "predictions.png"
CHECKPOINT_FILE = "checkpoint.pt"

#: From the name of a bundle to the score by which the best record is chosen.
RANKINGS: dict[str, Callable[[Record], float]] = {
    BEST: lambda record: -1.0 if record["miou"] is None else record["miou"],
    BEST_LOSS: lambda record: -record["val_loss"],
}

_REPLACED = (
    *(BEST, BEST_LOSS, LAST, RECIPE_FILE, ORIGINS_FILE, METRICS_FILE, CURVES_FILE, PREDICTIONS_FILE, CHECKPOINT_FILE),
    RUN_FILE,
)
# Keys that may change between starts, since they do not change the weights.
_HARMLESS_KEYS: tuple[str, ...] = (
    *("name", "output", "description", "licences", "workers", "checkpoint_minutes", "evaluate_every", "inference"),
    *("cache.folder", "cache.max_gb", "calibrate", "tracker", "patience"),
)
# Keys that say how long the last stage lasts: it may become longer or shorter, down to the steps that are done.
_DURATION_KEYS = ("epochs", "iterations")
# Keys that name files. The content of the files is compared instead; see `origins`.
_KEYS_OF_FILES = ("data", "backbone.source", "head.start_from", "pseudo_labels.root")


class RunFolder:
    """A folder that belongs to one training. Within this context no other training can write it.

    Files of a training that is resumed stay as they are before `start`.

    Args:
        path: must not exist, or be empty, unless the training is resumed.
        recipe: resolved; written into the folder.
        steps: number of optimizer steps of the whole training.
        tracker: shows the history.
        resume: whether to go on with the training in the folder; where there is none, a new one starts.

    Attributes:
        path: the folder.
        checkpoint: state from which the training goes on, or None.

    Raises:
        OutputError: the folder holds something else, is in use, or cannot be written; or its training had another
            recipe, or took more steps.
    """

    def __init__(self, path: Path, recipe: Recipe, steps: int, tracker: Tracker, resume: bool = False) -> None:
        self.path, self._tracker, self._recipe = path, tracker, recipe.model_dump(mode="json")
        self.checkpoint: Checkpoint | None = None
        self._notes: list[str] = []
        if not path.is_dir():
            check_free(path, "--output")
        with writing(path), contextlib.ExitStack() as resources:
            resources.enter_context(only_writer(path))
            self._is_resumed = resume and (path / RECIPE_FILE).exists()
            if self._is_resumed:
                self._notes = _check_recipe(path / RECIPE_FILE, self._recipe)
                self.checkpoint = read_checkpoint(path / CHECKPOINT_FILE)
                _check_steps(path, self.checkpoint, steps)
            else:
                if resume:
                    _remove_false_start(path)
                check_free(path, "--output")
            self._resources = resources.pop_all()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    def start(self, origins: Origins) -> list[str]:
        """Write recipe and origins, and start the tracker; of a training that is resumed, if its origins are the same.

        Returns:
            Harmless differences since the training stopped, as text.

        Raises:
            OutputError: what changes the weights is another than before, and nothing was changed; or a file cannot be
                read or written.
            RecipeError: the tracker cannot be started.
        """
        path, notes = self.path, list(self._notes)
        if self.checkpoint is not None:
            notes += self._compare(origins, self.checkpoint)
        points, records = (self.checkpoint.points, self.checkpoint.records) if self.checkpoint else ([], [])
        with writing(path):
            _write_recipe(path / RECIPE_FILE, self._recipe)
            for name in _REPLACED:
                remove_temporaries(path / name)
            self._tracker.start(path, self._recipe, points, records)
            self._resources.callback(self._tracker.close)
            if self._is_resumed:
                self._rewrite_history(records)
            write_origins(path / ORIGINS_FILE, origins)
        return notes

    def add_point(self, point: Record) -> None:
        """Show ``loss`` and ``lr`` of a ``step`` in the tracker.

        Raises:
            OutputError: they cannot be written.
        """
        with writing(self.path):
            self._tracker.add_point(point)

    def add(self, records: Sequence[Record]) -> None:
        """Append the last of ``records`` to metrics.jsonl, the tracker and the curves.

        Raises:
            OutputError: a file cannot be written.
        """
        with writing(self.path):
            with open(self.path / METRICS_FILE, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(records[-1]) + "\n")
            self._tracker.add_record(records[-1])
            draw_curves(records, self.path / CURVES_FILE)

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint.

        Raises:
            OutputError: the file cannot be written.
        """
        with writing(self.path):
            write_checkpoint(self.path / CHECKPOINT_FILE, checkpoint)

    def write_predictions(self, rows: Sequence[np.ndarray], data: SegmentationDataset) -> None:
        """Write the picture of predictions from rows of `pictures.prediction_row`.

        Raises:
            OutputError: the file cannot be written.
        """
        with writing(self.path):
            write_predictions(rows, data.class_names, data.palette, self.path / PREDICTIONS_FILE)

    def _compare(self, origins: Origins, checkpoint: Checkpoint) -> list[str]:
        """Harmless differences of the origins, as text; OutputError where a difference changes the weights."""
        before = read_origins(self.path / ORIGINS_FILE)
        changes = origins.changes_since(before)
        if changes:
            raise OutputError(
                f"{self.path} cannot be resumed, since it would not be the same training: {'; '.join(changes)}. "
                "Undo the change, or train into another folder with --output"
            )
        changed = origins.validation_changes_since(before)
        if not changed:
            return []
        compared = ", so scores before and after it are of different files" if checkpoint.records else ""
        return [f"the val split of the data set changed ({changed}){compared}"]

    def _rewrite_history(self, records: Sequence[Record]) -> None:
        """Remove the history after the checkpoint: its steps will be done again."""
        with replacing_file(self.path / METRICS_FILE) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def check_startable(path: Path, resume: bool) -> None:
    """Raise OutputError where `RunFolder` with these arguments would, as far as it shows before the data are read."""
    if path.is_dir():
        with only_writer(path):
            pass
    if not resume:
        if (path / RECIPE_FILE).exists():
            raise OutputError(f"{path} holds a training; continue it with --resume, or choose another with --output")
        check_free(path, "--output")


def best_record(records: Sequence[Record]) -> Record:
    """The record with the highest mIoU; the first of several."""
    return max(records, key=RANKINGS[BEST])


def validations_without_gain(records: Sequence[Record]) -> int:
    """Number of validations since the one with the highest mIoU."""
    return len(records) - 1 - records.index(best_record(records)) if records else 0


def bundles_led(record: Record, earlier: Sequence[Record]) -> list[str]:
    """Names of the bundles for which the model of a new record is better than all earlier ones."""
    return [
        bundle for bundle, ranking in RANKINGS.items() if all(ranking(record) > ranking(other) for other in earlier)
    ]


def _remove_false_start(folder: Path) -> None:
    """Empty a folder in which a training was killed before its first file was whole; leave any other as it is."""
    left = find_temporaries(folder / RECIPE_FILE)
    if {*folder.iterdir()} <= {*left}:
        remove_temporaries(folder / RECIPE_FILE)


def _write_recipe(path: Path, recipe: dict[str, Any]) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _check_recipe(path: Path, recipe: dict[str, Any]) -> list[str]:
    """Return what changed in the recipe of a folder's training; keys absent from its file have defaults.

    Raises:
        OutputError: the folder's training had a recipe that leads to other weights.
    """
    try:
        earlier = Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        problem = describe_problem(error, Recipe) if isinstance(error, ValidationError) else error
        raise OutputError(
            f"{path.parent} holds no training that can be resumed ({path.name}: {problem}); nothing in it was changed. "
            "Name the folder of a training with --output, or leave out --resume"
        ) from error
    last = f"stages.{len(earlier.stages) - 1}." if earlier.stages else ""
    duration, notes = [f"{last}{key}" for key in _DURATION_KEYS], []
    for key, before, now in differences(earlier.model_dump(mode="json"), recipe):
        if key in duration:
            notes.append(
                f"{key} was {before} and is {now}: the steps still to take follow the schedule of the new length"
            )
        elif not any(key == free or key.startswith(f"{free}.") for free in (*_HARMLESS_KEYS, *_KEYS_OF_FILES)):
            raise OutputError(
                f"{path.parent} cannot be resumed: its training had {key} = {before}, the recipe now has {now}. Change "
                "it back, or train into another folder with --output"
            )
    return notes


def _check_steps(path: Path, checkpoint: Checkpoint | None, steps: int) -> None:
    """Raise OutputError where the training of a folder took more steps than the recipe now has."""
    if checkpoint is not None and checkpoint.step > steps:
        raise OutputError(
            f"{path} cannot be resumed: its training has taken {checkpoint.step} steps, the recipe now has {steps}; "
            "raise epochs or iterations, or train into another folder with --output"
        )
