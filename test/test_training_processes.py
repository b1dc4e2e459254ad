"""Several processes train as one process does."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from trainings import CONVNEXT, end, forget_accelerator, records, start_processes, tiny_recipe, train

from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from training.evaluate import evaluate_bundle
from training.loop.stages import StageRun
from training.recipes import resolve
from training.recipes.schema import Recipe
from training.support.processes import make_accelerator

#: At random sizes, the processes' images have different numbers of labelled pixels.
ALIKE = {
    "augmentation": {"scale": [0.3, 1.0]},
    "head": {"options": {"width": 16, "dropout": 0}},
    "batch_norm": "frozen",
    "optimizer": {"name": "adamw", "lr": 0.01},
    "losses": [{"name": "cross_entropy", "class_weights": "balanced"}],
    "accumulate": 2,
    "batch_size": 2,
    "checkpoint_minutes": 0,
}


def train_together(recipe: Recipe, processes: int = 2, resume: bool = False) -> None:
    """Train in several processes, as a launcher starts them."""
    with launched(processes) as variables:
        together = start_processes(_join, *((each, recipe, resume) for each in variables))
        assert [end(process) for process in together] == [0] * processes


@contextlib.contextmanager
def launched(processes: int) -> Iterator[list[dict[str, str]]]:
    """What a launcher tells each process in its environment; until the end, nobody else is given their port."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as process 0 does, which may so bind it
        held.bind(("127.0.0.1", 0))
        same = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        same |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(held.getsockname()[1])}
        yield [{"RANK": str(rank), "LOCAL_RANK": str(rank), **same} for rank in range(processes)]


def _join(variables: dict[str, str], recipe: Recipe, resume: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= variables
    train(recipe, resume)
    torch.distributed.destroy_process_group()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "head.safetensors") | load_file(folder / "last" / "backbone/model.safetensors")


def frozen(folder: Path) -> dict:
    """Changes to a recipe: a frozen backbone whose features are kept."""
    torch.manual_seed(3)
    save_backbone(build_backbone(CONVNEXT), folder / "source")
    backbone = {"source": str(folder / "source"), "layers": [1, 2, 3], "storage": "embedded"}
    return {"backbone": backbone, "cache": {"views": 2, "folder": str(folder / "features")}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of a training by one process."""
    return train(tiny_recipe(tmp_path_factory.mktemp("alone"), **ALIKE)).output


def assert_agree(folder: Path, alone: Path) -> None:
    for one, other in zip(records(folder), records(alone), strict=True):
        for key in ("loss", "val_loss", "miou"):
            assert one[key] == pytest.approx(other[key], abs=1e-4)
    expected = weights(alone)
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-3, rtol=1e-2)


def test_two_processes_give_the_losses_of_one_and_write_once(tmp_path, alone):
    recipe = tiny_recipe(tmp_path, **ALIKE)
    train_together(recipe)
    assert_agree(Path(recipe.output), alone)
    names = {path.name for path in Path(recipe.output).iterdir()}
    assert names == {path.name for path in alone.iterdir()}
    assert len(list((Path(recipe.output) / "tensorboard").iterdir())) == 1


def test_two_processes_resume_the_training_of_one(tmp_path, alone, monkeypatch):
    recipe, original = tiny_recipe(tmp_path, **ALIKE), StageRun.step

    def stopped(self, step, batches):
        if step == 3:
            raise MemoryError
        return original(self, step, batches)

    monkeypatch.setattr(StageRun, "step", stopped)
    with pytest.raises(MemoryError):
        train(recipe)
    monkeypatch.undo()
    train_together(recipe, resume=True)
    assert_agree(Path(recipe.output), alone)


def test_two_processes_fill_one_cache_and_train_from_it(tmp_path):
    recipe = tiny_recipe(tmp_path, **ALIKE, **frozen(tmp_path))
    train_together(recipe)
    (cache,) = (path for path in (tmp_path / "features").iterdir())
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2 * 8 + 1
    other = tiny_recipe(tmp_path, **ALIKE, **frozen(tmp_path), output=str(tmp_path / "alone"))
    assert_agree(Path(recipe.output), train(other).output)


def test_all_processes_validate_with_the_saved_batch_statistics(tmp_path):
    recipe = tiny_recipe(tmp_path, **{**ALIKE, "batch_norm": "process", "epochs": 2, "ema": 0.5})
    train_together(recipe)
    folder = Path(recipe.output)
    scores = evaluate_bundle(folder / "last", Console(quiet=True))
    assert scores["miou"] == pytest.approx(records(folder)[-1]["miou"], abs=1e-6)


def test_processes_wait_for_hours_for_what_the_main_one_does_alone(monkeypatch):
    connect, waits = torch.distributed.init_process_group, []

    def connected(**options: object) -> None:
        waits.append(options.get("timeout"))
        connect(**options)

    monkeypatch.setattr(torch.distributed, "init_process_group", connected)
    forget_accelerator()
    with launched(1) as (variables,):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        make_accelerator("fp32")
        torch.distributed.destroy_process_group()
    forget_accelerator()
    assert waits == [timedelta(hours=3)]


def test_one_process_trains_in_one_precision_after_the_other():
    for precision, expected in {"fp32": "no", "bf16": "bf16"}.items():
        assert make_accelerator(precision).mixed_precision == expected
    forget_accelerator()


@pytest.mark.parametrize(("count", "processes", "workers"), [(6, 1, 6), (6, 2, 3), (2, 4, 1), (64, 2, 8)])
def test_processes_on_one_machine_share_the_cores_that_load_data(count, processes, workers, cores, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cores(count)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert resolve._best_workers() == workers
