"""The checkpoint: the state of a training between two steps, on disk."""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import replacing_file
from training.support.writing import save_with_torch


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training needs to go on as if it had never stopped.

    Random numbers are a function of seed, epoch, sample and step, so that no generator's state is kept; the stage, the
    epoch and the place in it follow from the step.

    Attributes:
        step: optimizer steps done.
        seconds: time spent so far.
        losses: (n,) float32, of the steps since the last record.
        records: one for each validation; see `run_folder.RunFolder`.
        points: ``step``, ``loss`` and ``lr`` every few steps.
        model: tensors that training changes, by name; see `ema.changing_tensors`.
        optimizer, scaler, average: their states; None where there is none.
    """

    step: int
    seconds: float
    losses: Tensor
    records: list[dict[str, Any]]
    points: list[dict[str, Any]]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None
    average: dict[str, Any] | None = None


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    with replacing_file(path) as temporary:
        save_with_torch(content, temporary)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Read the checkpoint in a file, onto the CPU; None where there is no such file.

    Raises:
        OutputError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise OutputError(
            f"{path} is damaged, or of another version ({error}); the training cannot be resumed from it. Train again "
            "into another folder"
        ) from error
