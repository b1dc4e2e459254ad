"""Trains the folds of a cross-validation one after the other, and sums up their scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from dinov3_seg_ros.support.errors import RecipeError
from dinov3_seg_ros.support.files import write_json
from training.recipes.resolve import output_folder
from training.recipes.schema import Recipe
from training.support.processes import process_state
from training.support.text import say
from training.support.writing import writing

#: The file of the summary, in the folder that holds those of the folds.
SUMMARY_FILE = "folds.json"

#: Scores of the summary beside the classes' IoU.
SCORES = ("miou", "macc", "aacc")
# The 97.5 % points of Student's t distribution with 1, 2, ... degrees of freedom.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)


def train_folds(
    recipe: Recipe, folds: int, train: Callable[[Recipe], Mapping[str, Any]], console: Console
) -> dict[str, Any]:
    """Train a recipe once for each fold, into folders of their own below its output folder; return the summary.

    Args:
        recipe: as written.
        folds: their number.
        train: trains by the recipe of a fold, and returns the scores that `summarise` takes.
        console: for people.

    Raises:
        RecipeError: the data set has a split of its own that cannot be divided anew.
        DatasetError: a fold would have no images; nothing was trained.
        SegmentationError: see ``train``.
    """
    recipes = [fold_recipe(recipe, folds, fold) for fold in range(folds)]
    for part in recipes:  # before hours are spent on the first: has every fold its images?
        part.data.open("train"), part.data.open("val")
    if recipe.pseudo_labels.root is not None:
        say(
            console,
            "warning: the teacher of pseudo_labels.root may have learned the validation images of each fold, and then "
            "the scores are too high; train a teacher for each fold by data.folds and data.fold, label by it, and "
            "train the student on that fold alone",
            "yellow",
        )
    scores = []
    for number, part in enumerate(recipes):
        say(console, f"fold {number} of {folds}, into {part.output}", "bold")
        scores.append(train(part))
    summary = summarise(scores)
    if process_state().is_main_process:
        folder = output_folder(recipe)
        with writing(folder):
            write_json(folder / SUMMARY_FILE, summary)
    return summary


def fold_recipe(recipe: Recipe, folds: int, fold: int) -> Recipe:
    """The recipe of one fold.

    Raises:
        RecipeError: see `train_folds`.
    """
    if "folds" not in type(recipe.data).model_fields:
        raise RecipeError(
            f"data.name is {recipe.data.name}, whose split is that of its authors; folds need a folder of images and "
            "labels, data.name auto or folder"
        )
    data = type(recipe.data).model_validate({**recipe.data.model_dump(), "folds": folds, "fold": fold})
    return recipe.model_copy(update={"data": data, "output": str(output_folder(recipe) / f"fold_{fold}")})


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over folds of the scores of their best bundles, with 95 % intervals.

    The interval is Student's, of the mean. The folds share training images, so it is a little too narrow.

    Args:
        records: scores of each fold's best bundle.

    Returns:
        ``folds``, their number; of each score and each class's IoU ``mean``, ``interval`` (two ends; None with fewer
        than two values) and ``folds``, the values (None where a class does not occur).
    """
    names = dict.fromkeys(name for record in records for name in record["per_class_iou"])
    return {
        "folds": len(records),
        **{score: _summary([record[score] for record in records]) for score in SCORES},
        "per_class_iou": {name: _summary([record["per_class_iou"].get(name) for record in records]) for name in names},
    }


def _summary(values: Sequence[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    mean = statistics.fmean(defined) if defined else None
    interval = None
    if mean is not None and len(defined) > 1:
        half = _STUDENT[len(defined) - 2] * statistics.stdev(defined) / math.sqrt(len(defined))
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "folds": list(values)}
