"""Train by a recipe: ``python -m training.train RECIPE [--key value ...] [--folds N] [--dry-run | --resume]``.

On several GPUs or machines: ``accelerate launch -m training.train RECIPE ...``; see accelerate's own help. In several
processes on CPUs: ``torchrun --nproc-per-node 2 -m training.train RECIPE ...``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dinov3_seg_ros.bundle.manifest import MANIFEST_FILE
from dinov3_seg_ros.support.command_line import UsageError, run_command, whole_number
from dinov3_seg_ros.support.files import sha256_of_file, write_json
from training.data.splits import MOST_FOLDS
from training.evaluate import EvaluationSettings, evaluate_bundle
from training.loop.folds import SCORES, SUMMARY_FILE, fold_recipe, train_folds
from training.loop.origins import ORIGINS_FILE
from training.loop.run_folder import BEST, BEST_LOSS, LAST, check_startable
from training.recipes.loading import RECIPE_HELP, load_recipe
from training.recipes.overrides import SettingsParser
from training.recipes.resolve import output_folder
from training.recipes.schema import Recipe
from training.support.differences import differences
from training.support.processes import process_state
from training.support.text import percent, say
from training.support.writing import writing

if TYPE_CHECKING:
    from training.loop.trainer import Trainer

EVALUATION_FILE = "evaluation.json"
# Its key for what the scores were computed from; what `training.evaluate --json` writes has none.
_SOURCES = "computed_from"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = SettingsParser(
        "training.train",
        "Train by a recipe. Each of its keys is an option, such as --optimizer.lr 1e-3.",
        "RECIPE [--key value ...] [--folds N] [--dry-run | --resume]",
        Recipe,
        lambda options, overrides: load_recipe(options.recipe, overrides),
    )
    parser.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    mode = parser.add_mutually_exclusive_group()
    for flag, text in (
        ("--dry-run", "two steps and a short validation; makes no run folder"),
        ("--resume", "continue an interrupted training from its last checkpoint"),
    ):
        parser.remember(mode.add_argument(flag, action="store_true", help=text))

    parser.add_argument(
        "--folds",
        type=whole_number(2, MOST_FOLDS),
        metavar="N",
        help="cross-validate: train N times, each time on other images",
    )

    def work(words: list[str]) -> None:
        options, overrides = parser.parse_settings(words)
        console = Console(markup=False)
        if options.folds is not None:
            if options.dry_run:
                raise UsageError("--dry-run takes one fold: give --data.folds and --data.fold in place of --folds")
            _cross_validate(load_recipe(options.recipe, overrides), options.folds, options.resume, console)
            return
        _train(load_recipe(options.recipe, overrides), options.dry_run, options.resume, console)

    return run_command(parser, work, arguments)


def _train(recipe: Recipe, dry_run: bool, resume: bool, console: Console) -> None:
    if not dry_run and process_state().is_main_process:
        check_startable(output_folder(recipe), resume)
    found = recipe.data.found()
    if found.kind != recipe.data.name or found.notes:
        for line in found.lines():
            say(console, line)
    from training.loop.trainer import Trainer

    trainer = Trainer(recipe, console)
    _print_resolved(recipe.model_dump(), trainer.recipe.model_dump(), console)
    if dry_run:
        record = trainer.dry_run()
        say(console, f"dry run: loss {record['loss']:.3f}, mIoU {percent(record['miou'])}; no run folder was written")
        return
    _run(trainer, resume, console)


def _run(trainer: Trainer, resume: bool, console: Console) -> Mapping[str, Any]:
    """Train; return the scores of the best bundle by the recipe's inference, which the main process evaluates."""
    best = trainer.run(resume)
    reached = f"best mIoU {percent(best['miou'])} in epoch {best['epoch']}"
    say(console, f"{reached}; bundles in {trainer.output}: {BEST}, {BEST_LOSS}, {LAST}")
    if not process_state().is_main_process:
        return best
    if trainer.recipe.inference.looks_once:
        _remove_evaluation(trainer.output)
        return best
    scores = _evaluate(trainer.output, trainer.recipe, console)
    say(console, f"by the recipe's inference: mIoU {percent(scores['miou'])}; written to {EVALUATION_FILE}")
    return scores


def _remove_evaluation(run: Path) -> None:
    """Remove what `_evaluate` wrote in an earlier start, with other views; what the user keeps there stays."""
    file = run / EVALUATION_FILE
    with contextlib.suppress(OSError, TypeError, ValueError):
        if _SOURCES in json.loads(file.read_text(encoding="utf-8")):
            file.unlink()


def _evaluate(run: Path, recipe: Recipe, console: Console) -> dict[str, Any]:
    """Evaluate the best bundle of a run; a resumed one's scores stay where nothing that they come from has changed."""
    best, file = run / BEST, run / EVALUATION_FILE
    # Since the best bundle was written, the training may have been resumed with moved data and another inference.
    settings = EvaluationSettings(data=recipe.data, inference=recipe.inference)
    source = {
        **settings.model_dump(mode="json", exclude={"data"}),  # the origins tell which images they are
        _SOURCES: {path.name: sha256_of_file(path) for path in (best / MANIFEST_FILE, run / ORIGINS_FILE)},
    }
    with contextlib.suppress(OSError, TypeError, ValueError):
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if kept == {**kept, **source}:
            return kept
    scores = {**evaluate_bundle(best, console, settings), **source}
    with writing(run):
        write_json(file, scores)
    return scores


def _cross_validate(recipe: Recipe, folds: int, resume: bool, console: Console) -> None:
    if process_state().is_main_process:
        for fold in range(folds):
            check_startable(Path(fold_recipe(recipe, folds, fold).output), resume)
    from training.loop.trainer import Trainer

    summary = train_folds(recipe, folds, lambda part: _run(Trainer(part, console), resume, console), console)
    table = Table("", "mean", "95 % interval", *(f"fold {number}" for number in range(folds)), title_justify="left")
    for name, score in [(name, summary[name]) for name in SCORES] + list(summary["per_class_iou"].items()):
        interval = " to ".join(map(percent, score["interval"])) if score["interval"] else "undefined"
        table.add_row(name, percent(score["mean"]), interval, *map(percent, score["folds"]))
    console.print(table)
    say(console, f"written to {output_folder(recipe) / SUMMARY_FILE}")


def _print_resolved(written: dict[str, Any], resolved: dict[str, Any], console: Console) -> None:
    """Print the value that stands for each "auto" of the recipe, and for each that is one by being left out."""
    import torch

    table = Table("auto", "is", title=f"recipe {resolved['name']}", title_justify="left")
    for key, before, after in differences(written, resolved):
        if before in (None, "auto"):
            # See `SegmentationModel.forward`.
            is_mixed = key == "precision" and after != "fp32" and not torch.cuda.is_available()
            table.add_row(key, f"{after} (heads: fp32)" if is_mixed else str(after))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
