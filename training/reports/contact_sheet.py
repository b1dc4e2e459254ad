"""A contact sheet: many small pictures with captions in one file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.frames.overlay import to_bgr
from training.support.writing import writing

_COLUMNS = 4
_CELL_HEIGHT, _CELL_WIDTH = 180, 240
_LINE, _GAP = 16, 8
_LETTERS = 34


def thumbnail_of(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB in the size of the sheet's cells, its aspect ratio kept."""
    height, width = image.shape[:2]
    scale = min(_CELL_HEIGHT / height, _CELL_WIDTH / width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def write_contact_sheet(pictures: Iterable[tuple[np.ndarray, tuple[str, ...]]], path: Path) -> None:
    """Write pictures in rows, each above its caption, as a PNG file.

    Args:
        pictures: thumbnail (see `thumbnail_of`) and the lines of its caption, all of the same number.
        path: the file.

    Raises:
        OutputError: it cannot be written.
    """
    cells = [_cell(thumbnail, lines) for thumbnail, lines in pictures]
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % min(_COLUMNS, len(cells)))
    columns = min(_COLUMNS, len(cells))
    sheet = np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])
    with writing(path):
        write_picture(path, to_bgr(sheet))


def _cell(thumbnail: np.ndarray, lines: tuple[str, ...]) -> np.ndarray:
    cell = np.full((_CELL_HEIGHT + _LINE * len(lines) + 2 * _GAP, _CELL_WIDTH + _GAP, 3), 255, np.uint8)
    top, left = _CELL_HEIGHT - thumbnail.shape[0], (_CELL_WIDTH - thumbnail.shape[1]) // 2
    cell[top : top + thumbnail.shape[0], left : left + thumbnail.shape[1]] = thumbnail
    for number, line in enumerate(lines):
        # The middle of a long name tells least: a rank or a frame's number is before it, a suffix behind.
        half = (_LETTERS - 3) // 2
        shown = line if len(line) <= _LETTERS else f"{line[: _LETTERS - 3 - half]}...{line[-half:]}"
        place = (2, _CELL_HEIGHT + _LINE * (number + 1))
        cv2.putText(cell, shown, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return cell
