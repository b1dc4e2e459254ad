"""Pictures for people: predictions beside the truth, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from dinov3_seg_ros.files import replacing_file
from dinov3_seg_ros.overlay import colour_mask
from training.datasets import Colour

_ROW_HEIGHT = 180
_GAP = 4


def prediction_row(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, palette: Sequence[Colour]
) -> np.ndarray:
    """Image | truth | prediction, side by side, as RGB of a fixed height; unlabelled pixels of the truth are black.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth, prediction: (H, W) class ids.
    """
    height, width = image.shape[:2]
    size = (max(round(width * _ROW_HEIGHT / height), 1), _ROW_HEIGHT)
    gap = np.full((_ROW_HEIGHT, _GAP, 3), 255, np.uint8)
    masks = [colour_mask(mask, palette) for mask in (truth, prediction)]
    image, *masks = (
        cv2.resize(image, size, interpolation=cv2.INTER_AREA),
        *(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT) for mask in masks),
    )
    return np.hstack([image, gap, masks[0], gap, masks[1]])


def write_predictions(
    rows: Sequence[np.ndarray], class_names: Sequence[str], palette: Sequence[Colour], path: Path
) -> None:
    """Stack rows of `prediction_row`, with the palette below, into a PNG file."""
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    picture = np.vstack([*padded, _legend(class_names, palette, width)])
    with replacing_file(path) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def percent(fraction: float | None) -> str:
    """A score for people."""
    return "undefined" if fraction is None else f"{100 * fraction:.2f} %"


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and mIoU against epochs, as a PNG file.

    Args:
        records: each with epoch, loss and miou.
    """
    epochs = [record["epoch"] for record in records]
    figure = Figure(figsize=(10, 4), layout="constrained")  # not pyplot, which wants a display and keeps figures
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [record["loss"] for record in records], marker=".")
    left.set(title="training loss", xlabel="epoch")
    right.plot(epochs, [record["miou"] for record in records], marker=".")
    right.set(title="validation mIoU", xlabel="epoch", ylim=(0, 1))
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
