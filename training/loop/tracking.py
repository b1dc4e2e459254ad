"""Shows the history of a training in TensorBoard, Weights & Biases or MLflow, through accelerate."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dinov3_seg_ros.support.errors import RecipeError
from dinov3_seg_ros.support.files import write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

Record: TypeAlias = Mapping[str, Any]

#: Folder and file of a run folder: TensorBoard's events, and which run of another tool a training has.
TENSORBOARD_FOLDER, RUN_FILE = "tensorboard", "tracker.json"

# The project or experiment of the runs, where the tool's own variable names none.
_PROJECT = "dinov3_seg_ros"
_SET_UP = {
    "wandb": "log in once with `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "correct MLFLOW_TRACKING_URI",
    "tensorboard": "install it again",
}
_logger = logging.getLogger(__name__)


def check_tracker(name: str) -> None:
    """Raise RecipeError where the tracker's package is not installed."""
    from accelerate.tracking import get_available_trackers

    if name != "none" and name not in [str(getattr(kind, "value", kind)) for kind in get_available_trackers()]:
        raise RecipeError(
            f"tracker is {name}, but its package is not installed: pip install {name}; or set tracker to "
            "tensorboard or none"
        )


class Tracker:
    """The tracker of one training; does something in the main process only.

    Args:
        name: tensorboard, wandb, mlflow or none.
        accelerator: made with this tracker; see `processes.make_accelerator`.
    """

    def __init__(self, name: str, accelerator: Accelerator) -> None:
        self._name, self._accelerator = name, accelerator
        self._complained = False

    def start(
        self, folder: Path, recipe: Mapping[str, Any], points: Sequence[Record], records: Sequence[Record]
    ) -> None:
        """Begin a run, or go on with the one that an earlier start of this training has begun.

        Args:
            folder: the run folder.
            recipe: shown as the run's configuration.
            points, records: the history up to now, of a training that is resumed; what is already shown is not shown
                again. TensorBoard's files are written anew.

        Raises:
            RecipeError: the tool cannot be used, such as for want of a login.
            OSError: TensorBoard's files cannot be written.
        """
        if self._name == "none":
            return
        shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)
        run = _read_run(folder / RUN_FILE, self._name)
        try:
            if self._name == "tensorboard":
                self._accelerator.init_trackers(TENSORBOARD_FOLDER)
            else:
                self._start_service(folder, recipe, run)
        except Exception as error:
            if self._name == "tensorboard" and isinstance(error, OSError):
                raise
            raise RecipeError(
                f"tracker {self._name} cannot be started ({type(error).__name__}: {error}); {_SET_UP[self._name]}, or "
                "set tracker to tensorboard or none; then start again with --resume"
            ) from error
        if run is None:
            for point in points:
                self.add_point(point)
            for record in records:
                self.add_record(record)

    def add_point(self, point: Record) -> None:
        """Show ``loss`` and ``lr`` of a ``step``."""
        self._log({f"training/{name}": point[name] for name in ("loss", "lr")}, point["step"])

    def add_record(self, record: Record) -> None:
        """Show the numbers of a validation."""
        numbers = {
            name: value
            for name, value in record.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._log(numbers, record["step"])

    def close(self) -> None:
        """End the run."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
        self._accelerator.trackers.clear()

    def _start_service(self, folder: Path, recipe: Mapping[str, Any], run: str | None) -> None:
        if self._name == "wandb":
            run = run or uuid.uuid4().hex[:8]
            options: dict[str, Any] = {"id": run, "resume": "allow", "name": recipe["name"], "dir": str(folder)}
            project = os.environ.get("WANDB_PROJECT", _PROJECT)
        else:
            options, project = {"run_id": run, "run_name": recipe["name"]}, _PROJECT
        config = dict(_flat(recipe)) if run is None or self._name == "wandb" else None
        self._accelerator.init_trackers(project, config, {self._name: options})
        if self._name == "mlflow":
            run = self._accelerator.get_tracker("mlflow", unwrap=True).info.run_id
        write_json(folder / RUN_FILE, {"tracker": self._name, "run": run})

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._name == "none":
            return
        try:
            self._accelerator.log(dict(values), step=step)
        except Exception as error:
            if self._name == "tensorboard":  # its files are the training's own
                raise
            if not self._complained:
                self._complained = True
                _logger.warning("%s does not take the history (%s); the training goes on", self._name, error)


def _read_run(path: Path, name: str) -> str | None:
    """The run that an earlier start has begun; None where there is none, or it is of another tool."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["run"]) if content["tracker"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flat(content: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and plain values of a nested mapping."""
    if isinstance(content, Mapping):
        return [pair for key, value in content.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, content if isinstance(content, bool | int | float | str) else json.dumps(content))]
