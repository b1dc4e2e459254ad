"""The folder that an evaluation writes: scores, tables, the confusion matrix, and the worst and best examples."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3_seg_ros.support.files import replacing_folder, write_json
from dinov3_seg_ros.support.metrics import ConfusionMatrix
from training.data import SegmentationDataset
from training.evaluation.scores import per_class_name, per_class_title, titles
from training.reports.pictures import (
    captioned,
    draw_confusion,
    draw_reliability,
    prediction_row,
    write_predictions,
)
from training.support.text import markdown_table, percent
from training.support.writing import writing

SCORES_FILE = "scores.json"
TABLE_FILE = "scores.md"
CONFUSION_FILE = "confusion.csv"
CONFUSION_PICTURE = "confusion.png"
RELIABILITY_PICTURE = "reliability.png"
WORST_FILE, BEST_FILE = "worst.png", "best.png"

_EXAMPLES = 6
_PER_CLASS = ("miou", "boundary_miou", "boundary_miou_3px", "thin_recall")


class Example(NamedTuple):
    """One image of the data set.

    Attributes:
        miou: over the classes of this image alone, 0..1.
        name: name of the image for people.
        row: image, truth and prediction side by side, (height, width, 3) uint8 RGB.
    """

    miou: float
    name: str
    row: np.ndarray


class Examples:
    """The images on which a model does worst and best, by the mIoU of each image alone.

    Args:
        data: source of names and colours.
        count: largest number of images kept of each kind.

    Attributes:
        worst, best: from the most extreme image on.
    """

    def __init__(self, data: SegmentationDataset, count: int = _EXAMPLES) -> None:
        self.data, self._count = data, count
        self.worst: list[Example] = []
        self.best: list[Example] = []

    def add(self, index: int, image: np.ndarray, truth: np.ndarray, labels: np.ndarray) -> None:
        """Keep an item that is among the worst or best so far; labels (H, W) class ids."""
        names = self.data.class_names
        matrix = ConfusionMatrix(len(names))
        matrix.update(truth, labels)
        miou = matrix.summary(names)["miou"]
        if miou is None:  # no pixel is labelled
            return
        example = Example(miou, self.data.describe(index), prediction_row(image, truth, labels, self.data.palette))
        self.worst = sorted([*self.worst, example], key=lambda kept: kept.miou)[: self._count]
        self.best = sorted([*self.best, example], key=lambda kept: -kept.miou)[: self._count]


def write_evaluation(folder: Path, scores: dict[str, Any], matrix: ConfusionMatrix, examples: Examples) -> None:
    """Write the whole folder, or nothing.

    Args:
        folder: replaced; see `writing.new_folder`.
        scores: result of `training.evaluation.scores.Scores.summary`, with ``bundle`` and ``images``.
        matrix: counts of the whole data set.
        examples: images of the same data set.

    Raises:
        OutputError: the folder cannot be written.
    """
    names, palette = examples.data.class_names, examples.data.palette
    with writing(folder), replacing_folder(folder) as temporary:
        write_json(temporary / SCORES_FILE, scores)
        (temporary / TABLE_FILE).write_text(_tables(scores, matrix, examples), encoding="utf-8")
        with open(temporary / CONFUSION_FILE, "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["true class", *names, "unlabelled"])
            writer.writerows([name, *counts] for name, counts in zip(names, matrix.counts.tolist(), strict=True))
        draw_confusion(matrix.counts, names, temporary / CONFUSION_PICTURE)
        draw_reliability(scores, temporary / RELIABILITY_PICTURE)
        for chosen, file in ((examples.worst, WORST_FILE), (examples.best, BEST_FILE)):
            if chosen:
                rows = [captioned(example.row, f"{example.name}: mIoU {percent(example.miou)}") for example in chosen]
                write_predictions(rows, names, palette, temporary / file)


def _tables(scores: dict[str, Any], matrix: ConfusionMatrix, examples: Examples) -> str:
    """All scores as tables in Markdown."""
    lines = [f"# {scores['bundle']} on {scores['images']} images", ""]
    summary = titles(scores)
    lines += markdown_table(list(summary.values()), [[percent(scores[name]) for name in summary]])
    pixels = matrix.counts.sum(axis=1)
    shares = pixels / max(pixels.sum(), 1)
    rows = []
    for name, accuracy, share in zip(examples.data.class_names, matrix.accuracy(), shares, strict=True):
        figures = (*(scores[per_class_name(score)][name] for score in _PER_CLASS), accuracy, share)
        rows.append([name, *(percent(None if f is None or np.isnan(f) else f) for f in figures)])
    columns = ("class", *map(per_class_title, _PER_CLASS), "accuracy", "share of pixels")
    lines += ["", *markdown_table(columns, rows)]
    for title, chosen in (("worst", examples.worst), ("best", examples.best)):
        rows = [[example.name, percent(example.miou)] for example in chosen]
        lines += ["", *markdown_table((f"{title} images", "mIoU"), rows)]
    return "\n".join(lines) + "\n"
