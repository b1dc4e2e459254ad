"""Trackers, early stopping and folds of a training."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from accelerate.utils import LoggerType
from rich.console import Console
from trainings import forget_accelerator, records, tiny_recipe, train

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.support.errors import DatasetError, RecipeError
from training.evaluate import evaluate_bundle
from training.loop import trainer as trainer_module
from training.loop.folds import summarise, train_folds
from training.loop.run_folder import validations_without_gain
from training.loop.trainer import Trainer
from training.recipes.schema import Recipe
from training.train import main


class Run:
    """What the stand-in of wandb was told."""

    def __init__(self, **options: object) -> None:
        self.options, self.logged, self.finished, self.broken = options, [], False, False

    def log(self, values: dict, step: int) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch) -> list[Run]:
    """Weights & Biases, as far as accelerate's tracker asks it; the runs that were begun."""
    begun: list[Run] = []

    def init(**options: object) -> Run:
        begun.append(Run(**options))
        return begun[-1]

    config = types.SimpleNamespace(update=lambda values, **_: begun[-1].options.update(config=values))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, config=config))
    monkeypatch.setattr(
        "accelerate.tracking.get_available_trackers", lambda: [LoggerType.TENSORBOARD, LoggerType.WANDB]
    )
    return begun


def test_weights_and_biases_gets_the_history_and_a_resumed_run_goes_on(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_STEPS_OF_A_POINT", 2)
    recipe = tiny_recipe(tmp_path, tracker="wandb", epochs=1)
    folder = train(recipe).output
    (run,) = runs
    assert (run.options["project"], run.options["name"]) == ("dinov3_seg_ros", "tiny") and run.finished
    assert run.options["config"]["optimizer.lr"] == recipe.optimizer.lr
    assert [step for step, _ in run.logged] == [2, 2]
    assert set(run.logged[0][1]) == {"training/loss", "training/lr"} and "miou" in run.logged[1][1]
    assert not (folder / "tensorboard").exists()

    train(tiny_recipe(tmp_path, tracker="wandb", epochs=2), resume=True)
    assert runs[1].options["id"] == run.options["id"] and runs[1].options["resume"] == "allow"
    assert [step for step, _ in runs[1].logged] == [4, 4]
    # Another tracker is shown the whole history.
    assert (train(tiny_recipe(tmp_path, tracker="tensorboard", epochs=2), resume=True).output / "tensorboard").exists()


def test_a_tracker_that_fails_does_not_end_the_training(runs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Run, "log", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network")))
    assert len(records(train(tiny_recipe(tmp_path, tracker="wandb")).output)) == 2
    assert caplog.text.count("wandb does not take the history (no network)") == 1

    def refuse(**_: object) -> None:
        raise ValueError("api_key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(RecipeError, match=r"wandb cannot be started.*api_key not configured.*`wandb login`.*--resume"):
        train(tiny_recipe(tmp_path, tracker="wandb", output=str(tmp_path / "other")))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_without_its_package_is_refused_before_the_first_step(name, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(RecipeError, match=f"tracker is {name}, but its package is not installed: pip install {name}"):
        train(tiny_recipe(tmp_path, tracker=name))
    assert not (tmp_path / "run").exists()


def test_without_a_tracker_the_run_folder_alone_holds_the_history(tmp_path):
    folder = train(tiny_recipe(tmp_path, tracker="none", epochs=1)).output
    assert len(records(folder)) == 1 and not (folder / "tensorboard").exists()


def test_a_last_stage_without_gain_ends_early_and_goes_on_with_more_patience(tmp_path, monkeypatch):
    real, scores = trainer_module.Validation.run, iter([0.7, 0.5, 0.6, 0.4, 0.6, 0.3, 0.9])

    def run(self, *arguments):
        found, rows = real(self, *arguments)
        return {**found, "miou": next(scores)}, rows

    def recipe(epochs: int, patience: int) -> Recipe:
        return tiny_recipe(tmp_path, stages=[{"epochs": 1}, {"epochs": epochs}], epochs=None, patience=patience)

    monkeypatch.setattr(trainer_module.Validation, "run", run)
    trainer = train(recipe(8, patience=2))
    history = records(trainer.output)
    assert [record["miou"] for record in history] == [0.7, 0.5, 0.6, 0.4, 0.6]
    assert [record.get("stopped_early") for record in history] == [None, None, None, None, True]
    assert load_bundle(trainer.output / "last").manifest.training.metrics["stopped_early"] is True
    assert load_bundle(trainer.output / "best").manifest.training.metrics["epoch"] == 1
    train(recipe(8, patience=2), resume=True)
    assert len(records(trainer.output)) == 5, "it stays at its end"
    train(recipe(6, patience=4), resume=True)
    assert [record["miou"] for record in records(trainer.output)] == [0.7, 0.5, 0.6, 0.4, 0.6, 0.3, 0.9]


def test_patience_counts_from_the_first_of_equal_scores():
    assert [validations_without_gain([{"miou": value} for value in values]) for values in ([], [0.1], [0.2, 0.2])] == [
        *(0, 0, 1)
    ]


def write_folder(root: Path, count: int) -> None:
    """A folder of two classes, without a split."""
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (64, 96, 3), np.uint8)
        for folder, picture in (("images", noise), ("masks", (noise[..., 0] > 128).astype(np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / f"photo_{chr(97 + index)}.png"), picture)


def cross_validate(recipe: Recipe, folds: int, resume: bool = False) -> dict:
    forget_accelerator()
    console = Console(quiet=True)
    return train_folds(recipe, folds, lambda part: Trainer(part, console).run(resume), console)


def test_folds_are_trained_in_folders_of_their_own_and_summed_up(tmp_path, capsys):
    write_folder(tmp_path / "data", 8)
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["dark", "bright"]}
    recipe = tiny_recipe(tmp_path, data=data, epochs=1)
    summary = cross_validate(recipe, 2)
    assert json.loads((tmp_path / "run" / "folds.json").read_text()) == summary
    assert summary["miou"]["folds"] == [records(tmp_path / "run" / f"fold_{fold}")[0]["miou"] for fold in (0, 1)]
    assert set(summary["per_class_iou"]) == {"dark", "bright"}
    assert cross_validate(recipe, 2, resume=True) == summary
    recipe_file = tmp_path / "run" / "fold_0" / "recipe.yaml"
    assert main([str(recipe_file), "--folds", "2", "--dry-run"]) == 2
    with pytest.raises(RecipeError, match="folds need a folder"):
        cross_validate(tiny_recipe(tmp_path), 2)


@pytest.mark.parametrize("root", [None, "pseudo"])
def test_folds_beside_one_teachers_labels_are_warned_of(tmp_path, capsys, root):
    write_folder(tmp_path / "data", 8)
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["dark", "bright"]}
    recipe = tiny_recipe(tmp_path, data=data, pseudo_labels={"root": root})
    scores = {"miou": 0.5, "macc": 0.5, "aacc": 0.5, "per_class_iou": {}}
    (tmp_path / "run").mkdir()
    train_folds(recipe, 2, lambda _: scores, Console(width=1000))
    assert ("warning: the teacher of pseudo_labels.root" in capsys.readouterr().out) == (root is not None)


def test_folds_are_scored_once_by_the_recipes_inference(tmp_path, monkeypatch):
    write_folder(tmp_path / "data", 8)
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["dark", "bright"]}
    recipe = tiny_recipe(tmp_path, data=data, epochs=1, inference={"flip": True, "scales": [0.5, 1.0]})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    forget_accelerator()
    assert main([str(tmp_path / "recipe.json"), "--folds", "2"]) == 0
    of_folds = [json.loads((tmp_path / f"run/fold_{fold}/evaluation.json").read_text()) for fold in (0, 1)]
    summary = json.loads((tmp_path / "run/folds.json").read_text())
    for name in ("miou", "macc", "aacc"):
        assert summary[name]["folds"] == [scores[name] for scores in of_folds]
    assert of_folds[0]["inference"]["flip"] and of_folds[0]["images"] == 4

    evaluated = []

    def evaluate(bundle: Path, *rest: object) -> dict:
        evaluated.append(bundle.parent.name)
        return evaluate_bundle(bundle, *rest)

    monkeypatch.setattr("training.train.evaluate_bundle", evaluate)
    forget_accelerator()
    assert main([str(tmp_path / "recipe.json"), "--folds", "2", "--resume"]) == 0
    assert not evaluated
    (tmp_path / "run/fold_1/evaluation.json").unlink()
    (tmp_path / "data").rename(tmp_path / "moved")
    forget_accelerator()
    moved = ["--data.root", str(tmp_path / "moved")]
    assert main([str(tmp_path / "recipe.json"), "--folds", "2", "--resume", *moved]) == 0
    assert evaluated == ["fold_1"]
    assert json.loads((tmp_path / "run/folds.json").read_text()) == summary


def test_no_fold_is_trained_where_a_later_one_has_no_images(tmp_path):
    write_folder(tmp_path / "data", 4)
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["dark", "bright"], "group": "none"}
    with pytest.raises(DatasetError, match="leaves fold 4 without val images, of 4"):
        cross_validate(tiny_recipe(tmp_path, data=data), 5)
    assert not (tmp_path / "run").exists()


def test_a_summary_of_folds_has_students_interval():
    found = [{"miou": value, "macc": 0.5, "aacc": None, "per_class_iou": {"a": value}} for value in (0.4, 0.5, 0.6)]
    summary = summarise(found)
    assert summary["miou"]["mean"] == pytest.approx(0.5)
    assert summary["miou"]["interval"] == pytest.approx([0.5 - 4.303 * 0.1 / 3**0.5, 0.5 + 4.303 * 0.1 / 3**0.5])
    assert summary["aacc"] == {"mean": None, "interval": None, "folds": [None] * 3}
