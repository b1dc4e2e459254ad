"""Tiny trainings for the tests: real ones, of a second each."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from rich.console import Console

from training.loop.trainer import Trainer
from training.recipes.schema import Recipe

CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


def tiny_recipe(folder: Path, **changes: object) -> Recipe:
    """A recipe that trains in a second, on scenes cached in ``folder``; keywords replace its sections."""
    content = {
        "name": "tiny",
        "output": str(folder / "run"),
        "data": {"name": "scenes", "count": 8, "val_count": 3, "size": [64, 96], "cache": str(folder / "cache")},
        "input": {"network_size": [64, 96], "geometry": "stretch"},
        "backbone": {"config": CONVNEXT, "layers": [1, 2, 3]},
        "head": {"options": {"width": 16}},
        "epochs": 2,
        "batch_size": 4,
        "workers": 0,
        "precision": "fp32",
    }
    return Recipe.model_validate({**content, **changes})


def forget_accelerator() -> None:
    """Reset accelerate, which keeps the first precision that a process asks for.

    accelerate's own test cases do the same; it has no public way.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(recipe: Recipe, resume: bool = False) -> Trainer:
    """Train by a recipe; return the trainer afterwards."""
    forget_accelerator()
    trainer = Trainer(recipe, Console(quiet=True))
    trainer.run(resume)
    return trainer


def resume_with_one_thread(recipe: Recipe) -> None:
    """Resume a training in a process of its own."""
    torch.set_num_threads(1)
    train(recipe, resume=True)


def start_processes(function: Callable[..., object], *arguments: tuple[object, ...]) -> list[BaseProcess]:
    """Call a function once for each tuple of arguments, each time in a process of its own.

    The processes are forked from one that has imported what a training needs, which takes seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainings"])
    processes: list[BaseProcess] = [context.Process(target=function, args=each) for each in arguments]
    with pytest.MonkeyPatch.context() as patch:  # their parent, which the first start starts, gets no other path
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        for process in processes:
            process.start()
    return processes


def end(process: BaseProcess, seconds: float = 300) -> int | None:
    """Wait for a process and give its exit code; after so many seconds it is killed, and the code is negative."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}
