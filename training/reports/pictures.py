"""Pictures for people: predictions beside the truth, training curves, confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from dinov3_seg_ros.frames.classes import Colour
from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.frames.overlay import colour_mask, to_bgr
from dinov3_seg_ros.support.files import replacing_file
from training.support.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_HEIGHT = 180
# Of each picture in a row: a PNG file is at most a million pixels wide, and an image may have few lines.
_MOST_WIDTH = 1800
_GAP = 4
_CAPTION_HEIGHT = 20
# In a larger confusion matrix the numbers could not be read.
_MOST_NUMBERED_CLASSES = 20


def prediction_row(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: Sequence[Colour]
) -> np.ndarray:
    """Image | truth | prediction, side by side, (H, W, 3) uint8 RGB; unlabelled pixels of the truth are black.

    They are 180 pixels high; lower, where they would be wider than 1800.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth, prediction: (H, W) class ids.
    """
    height, width = image.shape[:2]
    scale = min(_ROW_HEIGHT / height, _MOST_WIDTH / width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    masks = [colour_mask(mask, palette) for mask in (truth, prediction)]
    image, *masks = (
        cv2.resize(image, size, interpolation=cv2.INTER_AREA),
        *(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT) for mask in masks),
    )
    return np.hstack([image, gap, masks[0], gap, masks[1]])


def captioned(row: np.ndarray, caption: str) -> np.ndarray:
    """Put a line of text above a row of `prediction_row`."""
    strip = np.full((_CAPTION_HEIGHT, row.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, caption, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, row])


def write_predictions(
    rows: Sequence[np.ndarray], class_names: Sequence[str], palette: Sequence[Colour], path: Path
) -> None:
    """Stack rows of `prediction_row`, with the palette below, into a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    picture = np.vstack([*padded, _legend(class_names, palette, width)])
    write_picture(path, to_bgr(picture))


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and mIoU against epochs, as a PNG file.

    Args:
        records: each with epoch, loss and miou.
    """
    epochs = [record["epoch"] for record in records]
    figure, left, right = _two_charts(4.0)
    left.plot(epochs, [record["loss"] for record in records], marker=".")
    left.set(title="training loss", xlabel="epoch")
    right.plot(epochs, [record["miou"] for record in records], marker=".")
    right.set(title="validation mIoU", xlabel="epoch", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing_file(path) as temporary:
        figure.savefig(temporary)


def _two_charts(height: float) -> tuple[Figure, Axes, Axes]:
    """A figure of so many inches with two charts side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height))  # pyplot would need a display and keep the figure
    # Fixed margins: matplotlib's layouts draw everything once more, and a run draws after each validation.
    left, right = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.13, "top": 0.92})
    return figure, left, right


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix as a PNG file: the share of each true class that each class was predicted for.

    Args:
        counts: (C, C + 1), see `ConfusionMatrix`; the column of unlabelled pixels is left out where it is empty.
    """
    from matplotlib.figure import Figure

    if not counts[:, -1].any():
        counts = counts[:, :-1]
    columns = [*class_names, "unlabelled"][: counts.shape[1]]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = min(max(0.3 * len(class_names) + 2.5, 5.0), 40.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set(xlabel="predicted", ylabel="true", title="share of each true class")
    if len(class_names) <= _MOST_NUMBERED_CLASSES:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(picture, shrink=0.7)
    with replacing_file(path) as temporary:
        figure.savefig(temporary)


def draw_reliability(scores: dict[str, Any], path: Path) -> None:
    """Draw accuracy against confidence, and mIoU against coverage, as a PNG file.

    Args:
        scores: result of `training.evaluation.reliability.Reliability.summary`.
        path: the file.
    """
    figure, left, right = _two_charts(4.5)
    bins, points = scores["reliability"], scores["miou_at_coverage"]
    left.plot([0, 1], [0, 1], color="grey", linestyle="--")
    left.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o")
    title = f"expected calibration error {percent(scores['ece'])}"
    left.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    drawn = [point for point in points if point["miou"] is not None]
    right.plot([point["coverage"] for point in drawn], [point["miou"] for point in drawn], marker="o")
    title = "mIoU of the most confident pixels"
    right.set(title=title, xlabel="share of the pixels", ylabel="mIoU", xlim=(0, 1), ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing_file(path) as temporary:
        figure.savefig(temporary)


def _legend(class_names: Sequence[str], palette: Sequence[Colour], width: int) -> np.ndarray:
    cell, line = 150, 18
    columns = max(width // cell, 1)
    legend = np.full((-(-len(class_names) // columns) * line + _GAP, width, 3), 255, np.uint8)
    for index, (name, colour) in enumerate(zip(class_names, palette, strict=True)):
        x, y = index % columns * cell, index // columns * line
        cv2.rectangle(legend, (x + 2, y + 2), (x + 16, y + 16), tuple(map(int, colour)), cv2.FILLED)
        cv2.putText(legend, name, (x + 20, y + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return legend
