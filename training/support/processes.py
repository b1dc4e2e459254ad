"""The processes of a training: one, or several that ``accelerate launch`` or ``torchrun`` started together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from dinov3_seg_ros.support.errors import RecipeError

if TYPE_CHECKING:  # accelerate takes a second, which no help of a command needs
    from accelerate import Accelerator, PartialState

_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# So long processes wait for each other: for the main one above all, which alone checks the data set and evaluates. One
# that fails ends all, whoever launched them sees to that; one that hangs keeps the others' GPUs for so long.
_PATIENCE = timedelta(hours=3)


def process_state() -> PartialState:
    """Index, number and device of this training's processes.

    Processes wait three hours for each other, also while the main one works alone, then all end.
    """
    from accelerate import PartialState

    return PartialState(cpu=_on_cpu(), timeout=_PATIENCE)


def local_process_count() -> int:
    """Number of this training's processes on this machine, as their launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def make_accelerator(precision: str, tracker: str = "none", folder: str | None = None) -> Accelerator:
    """An accelerator for this process's device.

    Args:
        precision: fp32, bf16 or fp16.
        tracker: which of accelerate's trackers its main process can start; none: none.
        folder: for the tracker's files.

    Raises:
        RecipeError: this machine does not support the precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # It keeps the precision of an earlier training in this process, and refuses another.
    AcceleratorState._reset_state()
    process_state()  # accelerate would connect the processes with less patience
    try:
        return Accelerator(
            mixed_precision=_PRECISIONS[precision],
            cpu=_on_cpu(),
            log_with=None if tracker == "none" else tracker,
            project_dir=folder,
        )
    except ValueError as error:
        raise RecipeError(
            f"precision {precision} cannot be used on this machine ({error}); set precision to fp32"
        ) from error


@contextlib.contextmanager
def lack_of_memory_explained() -> Iterator[None]:
    """Turn a GPU's lack of memory in a ``with`` block into a RecipeError that says what takes less of it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            f"the GPU lacks memory ({str(error).partition('. ')[0]}); lower batch_size, and raise accumulate by the "
            "same factor, or lower augmentation.crop or input.network_size"
        ) from error


def _on_cpu() -> bool:
    """Whether accelerate must be told to use CPUs: without a GPU it would not connect the processes otherwise."""
    from accelerate.utils import parse_flag_from_env

    several = "LOCAL_RANK" in os.environ
    return parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.cuda.is_available())
