"""A training that is killed and resumed ends as though it had never stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import (
    CONVNEXT,
    changed,
    forget_accelerator,
    records,
    resume_with_one_thread,
    start_processes,
    tiny_recipe,
    train,
)

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import locked
from training.loop import trainer as trainer_module
from training.loop.checkpoint import read_checkpoint, write_checkpoint
from training.loop.run_folder import RunFolder
from training.loop.stages import StageRun
from training.loop.tracking import Tracker
from training.loop.trainer import Trainer
from training.recipes.loading import load_recipe
from training.recipes.schema import Recipe
from training.train import main

BUNDLES = ("best", "best_loss", "last")
KILLS = 4
#: Everything that has a state: moments, an average, batch statistics, dropout, stages, a place in the epoch.
FULL = {
    "stages": [{"epochs": 2, "augmentation": {"scale": [0.5, 1.5], "flip": 0.5}}, {"iterations": 7}],
    "epochs": None,
    "batch_size": 2,
    "accumulate": 2,
    "ema": 0.9,
    "checkpoint_minutes": 0,
    "evaluate_every": 2,
}


def weights(folder: Path) -> dict:
    return {
        f"{bundle}/{name}": tensor
        for bundle in BUNDLES
        for file in ("head.safetensors", "backbone/model.safetensors")
        for name, tensor in load_file(folder / bundle / file).items()
    }


def write_images(root: Path, count: int) -> None:
    """A folder data set of two classes, with so many training images."""
    shutil.rmtree(root, ignore_errors=True)
    for split, images in (("train", count), ("val", 1)):
        for index in range(images):
            for folder, picture in (("images", np.full((64, 96, 3), 90, np.uint8)), ("masks", np.eye(64, 96) > 0)):
                path = root / split / folder / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), picture.astype(np.uint8))


def history(folder: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records(folder)]


def drawn_steps(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("miou")]


def train_until(stop: int, recipe: Recipe) -> None:
    """Start a training that ends before a step."""
    original = StageRun.step

    def stopped(self, step, batches):
        if step == stop:
            raise MemoryError
        return original(self, step, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "step", stopped)
        with pytest.raises(MemoryError):
            train(recipe)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(folder: Path, expected: Path) -> None:
    assert not changed(weights(folder), weights(expected))
    assert history(folder) == history(expected)
    assert drawn_steps(folder) == [record["step"] for record in history(expected)]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the processes that are killed have: sums are rounded in the order in which threads share them out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, float]:
    """A training that was never stopped, and the seconds it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(tiny_recipe(folder, **FULL))  # the first pays for the scenes
    start = time.monotonic()
    output = train(tiny_recipe(folder, **FULL, output=str(folder / "again"))).output
    return output, time.monotonic() - start


def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path, unbroken):
    expected, seconds = unbroken
    recipe = tiny_recipe(tmp_path, **FULL)
    moments, kills, deadline = random.Random(0), 0, time.monotonic() + 300
    while True:
        (process,) = start_processes(resume_with_one_thread, (recipe,))
        # The first at the first checkpoint: a random moment may come after the end.
        while process.exitcode is None and not (Path(recipe.output) / "checkpoint.pt").exists():
            assert time.monotonic() < deadline, "there was no checkpoint within 300 s"
            process.join(0.005)
        if kills:
            process.join(moments.uniform(0, seconds) if kills < KILLS else 300)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert kills < KILLS, "the training did not end within 300 s"
        kills += 1
        for bundle in BUNDLES:
            if (Path(recipe.output) / bundle).exists():
                load_bundle(Path(recipe.output) / bundle).load_head()
    assert process.exitcode == 0
    assert kills > 0
    assert_same(Path(recipe.output), expected)


@pytest.mark.parametrize("stop", [1, 4, 10])
def test_stopped_before_a_step_it_ends_with_the_same_weights(tmp_path, unbroken, stop):
    recipe = tiny_recipe(tmp_path, **FULL)
    train_until(stop, recipe)
    output = train(recipe, resume=True).output
    assert read_checkpoint(output / "checkpoint.pt").step == 11
    assert_same(output, unbroken[0])


def test_an_unfinished_validation_is_recorded_once_after_resuming(tmp_path, unbroken, monkeypatch):
    recipe, original = tiny_recipe(tmp_path, **FULL), RunFolder.save

    def killed(self, checkpoint):
        if checkpoint.records:
            raise MemoryError
        original(self, checkpoint)

    monkeypatch.setattr(RunFolder, "save", killed)
    with pytest.raises(MemoryError):
        train(recipe)
    monkeypatch.undo()
    assert len(history(Path(recipe.output))) == 1
    assert_same(train(recipe, resume=True).output, unbroken[0])


def test_resuming_a_finished_training_changes_nothing(tmp_path):
    recipe = tiny_recipe(tmp_path)
    before = weights(train(recipe).output)
    trainer = train(recipe, resume=True)
    assert not changed(before, weights(trainer.output))
    assert [record["epoch"] for record in records(trainer.output)] == [1, 2]


def test_resuming_without_a_training_starts_a_new_one(tmp_path):
    assert [record["epoch"] for record in records(train(tiny_recipe(tmp_path), resume=True).output)] == [1, 2]


def test_a_changed_recipe_is_refused_by_the_key_that_differs(tmp_path):
    train(tiny_recipe(tmp_path, epochs=1))
    with pytest.raises(OutputError, match=r"optimizer\.lr = 0\.001.* 0\.5"):
        train(tiny_recipe(tmp_path, epochs=1, optimizer={"name": "adamw", "lr": 0.5}), resume=True)
    with pytest.raises(OutputError, match="stages"):
        train(tiny_recipe(tmp_path, epochs=1, stages=[{"epochs": 2}]), resume=True)
    train(tiny_recipe(tmp_path, epochs=1, checkpoint_minutes=9), resume=True)


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 1}, {"precision": "bf16"}, {"batch_size": 2}, {"accumulate": 2}, {"ema": 0.9}),
        *({"batch_norm": "frozen"}, {"repeat_threshold": 0.5}, {"schedule": {"name": "poly"}}, {"cache": {"views": 2}}),
        *({"input": {"network_size": [64, 96]}}, {"augmentation": {"flip": 0.5}}, {"head": {"name": "linear"}}),
        *({"losses": [{"name": "dice"}]}, {"backbone": {"config": CONVNEXT, "layers": [3]}}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_weights_may_not_change(tmp_path, change):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(tiny_recipe(tmp_path).model_dump_json())
    with pytest.raises(OutputError, match=f"cannot be resumed: its training had {next(iter(change))}"):
        RunFolder(tmp_path / "run", tiny_recipe(tmp_path, **change), 4, Tracker("none", None), resume=True)


def test_a_training_whose_data_changed_is_refused_and_untouched(tmp_path):
    def recipe(count: int) -> Recipe:
        data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["a", "b"]}
        write_images(tmp_path / "data", count)
        return tiny_recipe(tmp_path, data=data, epochs=1, description=f"of {count} images")

    output = train(recipe(4)).output
    with open(output / "metrics.jsonl", "a") as history_after_the_checkpoint:
        history_after_the_checkpoint.write("{}\n")
    before = contents(output)
    with pytest.raises(OutputError, match=r"removed: .*--output"):
        train(recipe(3), resume=True)
    assert contents(output) == before


def test_after_a_validation_file_is_mended_it_goes_on_and_says_so(tmp_path, capsys):
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["a", "b"]}
    write_images(tmp_path / "data", 4)
    train(tiny_recipe(tmp_path, data=data, epochs=1))
    cv2.imwrite(str(tmp_path / "data/val/masks/0.png"), np.eye(64, 96, 3).astype(np.uint8))
    forget_accelerator()
    Trainer(tiny_recipe(tmp_path, data=data, epochs=2), Console(width=300)).run(resume=True)
    assert len(records(tmp_path / "run")) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "the val split of the data set changed (changed: val/masks/0.png), so scores before and after" in said
    assert "epochs was 1 and is 2: the steps still to take follow the schedule" in said


@pytest.mark.parametrize(
    "changes",
    [{"evaluate_every": 1}, {"name": "other"}, {"description": "better"}, {"checkpoint_minutes": 9}],
    ids=str,
)
def test_what_changes_no_weights_may_change(tmp_path, unbroken, changes):
    output = tmp_path / "copied"
    shutil.copytree(unbroken[0], output)
    train(tiny_recipe(tmp_path, **{**FULL, **changes, "output": str(output)}), resume=True)
    assert not changed(weights(output), weights(unbroken[0]))


def test_a_finished_training_may_be_made_longer_and_keeps_its_time_and_history(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "_STEPS_OF_A_POINT", 1)
    path = train(tiny_recipe(tmp_path, epochs=1, schedule={"name": "constant"})).output / "checkpoint.pt"
    write_checkpoint(path, dataclasses.replace(read_checkpoint(path), seconds=1000.0))
    longer = train(tiny_recipe(tmp_path, epochs=2, schedule={"name": "constant"}), resume=True).output
    assert records(longer)[-1]["seconds"] >= 1000  # tenths of a second: a fast machine may need none
    assert [point["step"] for point in read_checkpoint(path).points] == [1, 2, 3, 4]
    at_once = tiny_recipe(tmp_path, epochs=2, schedule={"name": "constant"}, output=str(tmp_path / "at_once"))
    assert not changed(weights(longer), weights(train(at_once).output))


def test_only_the_last_stage_may_be_made_longer(tmp_path):
    stages = [{"epochs": 1}, {"epochs": 1}]
    train(tiny_recipe(tmp_path, epochs=None, stages=stages))
    with pytest.raises(OutputError, match=r"stages\.0\.epochs = 1, the recipe now has 2"):
        train(tiny_recipe(tmp_path, epochs=None, stages=[{"epochs": 2}, {"epochs": 1}]), resume=True)
    output = train(tiny_recipe(tmp_path, epochs=None, stages=[{"epochs": 1}, {"epochs": 2}]), resume=True).output
    assert [record["epoch"] for record in records(output)] == [1, 2, 3]


def test_fewer_steps_than_are_done_are_refused_and_nothing_changes(tmp_path):
    output = train(tiny_recipe(tmp_path, epochs=2)).output
    written = (output / "recipe.yaml").read_bytes()
    with pytest.raises(OutputError, match=r"has taken 4 steps, the recipe now has 2; raise epochs"):
        train(tiny_recipe(tmp_path, epochs=1), resume=True)
    assert (output / "recipe.yaml").read_bytes() == written


@pytest.mark.parametrize("evaluate_every", [1, 9], ids=["validated before", "never validated"])
def test_shortened_to_the_steps_that_are_done_it_is_validated(tmp_path, evaluate_every):
    def recipe(steps: int, output: str) -> Recipe:
        changes = {"epochs": None, "schedule": {"name": "constant"}, "checkpoint_minutes": 0}
        changes |= {"evaluate_every": evaluate_every, "output": str(tmp_path / output)}
        return tiny_recipe(tmp_path, iterations=steps, **changes)

    train_until(3, recipe(4, "shortened"))
    shortened = train(recipe(3, "shortened"), resume=True).output
    assert_same(shortened, train(recipe(3, "at_once")).output)


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("precious.txt", ".recipe.k1ll3d__.yaml"):
        (tmp_path / "run" / name).write_text("keep")
    before = contents(tmp_path / "run")
    with pytest.raises(OutputError, match="--output"):
        train(tiny_recipe(tmp_path), resume=True)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("content", [b"name: caf\xe9", b"name: 2026-13-45", b"name: [", b"name: tiny"])
def test_a_recipe_that_cannot_be_read_is_refused_and_untouched(tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_bytes(content)
    with pytest.raises(OutputError, match=r"holds no training that can be resumed \(recipe\.yaml: .*--output"):
        train(tiny_recipe(tmp_path), resume=True)
    assert contents(tmp_path / "run") == {Path("recipe.yaml"): content}


def test_a_training_that_was_killed_before_its_first_file_starts_anew(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.k1ll3d__.yaml").write_text("half")
    output = train(tiny_recipe(tmp_path, epochs=1), resume=True).output
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_resuming_removes_what_a_killed_one_left_and_no_other_file(tmp_path):
    recipe = tiny_recipe(tmp_path, epochs=1)
    output = train(recipe).output
    for name in (".best.k1ll3d__", ".best.backup"):
        shutil.copytree(output / "best", output / name)
    for name in (".recipe.k1ll3d__.yaml", ".recipe.yaml.swp"):
        shutil.copy(output / "recipe.yaml", output / name)
    train(recipe, resume=True)
    hidden = {path.name for path in output.iterdir() if path.name.startswith(".")}
    assert hidden == {".best.backup", ".recipe.yaml.swp"}


def test_a_folder_in_use_is_refused(tmp_path):
    recipe = tiny_recipe(tmp_path, epochs=1)
    output = train(recipe).output
    with locked(output), pytest.raises(OutputError, match="another process writes to"):
        train(recipe, resume=True)


@pytest.mark.parametrize(
    ("folder", "words", "is_running", "message"),
    [
        ("run", [], False, "run holds a training; continue it with --resume"),
        ("run", [], True, "another process writes to .*run"),
        ("run", ["--resume"], True, "another process writes to .*run"),
        ("run/fold_1", ["--folds", "2"], False, "fold_1 holds a training; continue it with --resume"),
    ],
)
def test_a_training_in_the_folder_is_told_before_data_are_read(tmp_path, capfd, folder, words, is_running, message):
    data = {"name": "folder", "root": str(tmp_path / "nowhere")}
    path, output = tmp_path / "recipe.json", tmp_path / folder
    path.write_text(tiny_recipe(tmp_path, data=data).model_dump_json())
    output.mkdir(parents=True)
    (output / "recipe.yaml").write_text("name: tiny")
    with locked(output) if is_running else contextlib.nullcontext():
        assert main([str(path), *words]) == 1
    assert re.search(message, capfd.readouterr().err)


def test_a_damaged_checkpoint_is_named(tmp_path):
    recipe = tiny_recipe(tmp_path, epochs=1)
    path = train(recipe).output / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"checkpoint\.pt is damaged"):
        train(recipe, resume=True)


def test_the_written_recipe_resumes_too(tmp_path):
    output = train(tiny_recipe(tmp_path)).output
    before = weights(output)
    (output / "checkpoint.pt").unlink()
    assert not changed(before, weights(train(load_recipe(output / "recipe.yaml"), resume=True).output))
    assert len(records(output)) == 2
