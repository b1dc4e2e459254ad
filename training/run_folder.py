"""The folder that a training writes: recipe, history, curves and pictures; the bundles lie beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from dinov3_seg_ros.files import replacing_file
from training.datasets import SegmentationDataset
from training.output import check_free, writing
from training.recipe import Recipe
from training.report import draw_curves, write_predictions

BEST, LAST = "best", "last"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
PREDICTIONS_FILE = "predictions.png"
TENSORBOARD_FOLDER = "tensorboard"


class RunFolder:
    """A folder that belongs to one training.

    Args:
        path: must not exist, or be empty.
        recipe: written into it.

    Attributes:
        path: the folder.
        records: one for each validation, in order: epoch, step, seconds, lr, loss and the scores.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        check_free(path, "--output")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            with replacing_file(path / RECIPE_FILE) as temporary:
                content = recipe.model_dump(mode="json")
                temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
            self._tensorboard = SummaryWriter(str(path / TENSORBOARD_FOLDER))

    @property
    def best(self) -> dict[str, Any]:
        """The record with the highest mIoU."""
        return max(self.records, key=quality)

    def is_best(self, record: dict[str, Any]) -> bool:
        """Whether a new record is better than all before."""
        return all(quality(record) > quality(earlier) for earlier in self.records)

    def add(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl, TensorBoard and the curves.

        Raises:
            OutputError: one of them cannot be written.
        """
        self.records.append(record)
        with writing(self.path):
            with open(self.path / METRICS_FILE, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")
            for name, value in record.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(name, value, record["step"])
            self._tensorboard.flush()
            draw_curves(self.records, self.path / CURVES_FILE)

    def write_predictions(self, rows: Sequence[np.ndarray], data: SegmentationDataset) -> None:
        """Write the picture of predictions from rows of `report.prediction_row`.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.path):
            write_predictions(rows, data.class_names, data.palette, self.path / PREDICTIONS_FILE)

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._tensorboard.close()


def quality(record: dict[str, Any]) -> float:
    """What the best record has most of; -1 where mIoU is undefined."""
    return -1.0 if record["miou"] is None else record["miou"]
