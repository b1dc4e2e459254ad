"""Frames from files and devices: a folder of images, a video file, a webcam."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from dinov3_seg_ros.support.errors import DatasetError

#: Endings of files that are taken for images, everywhere.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MOST_FRAMES_PER_SECOND = 1000.0
Frame = tuple[np.ndarray, np.ndarray | None]


def open_source(source: str, masks: Path | None = None) -> Iterator[Frame]:
    """Frames of a source: RGB (H, W, 3) uint8, and the true mask (H, W) uint8 where it is known, else None.

    Args:
        source: the path of a folder of images or of a video file, or the number of a webcam.
        masks: folder of index masks (PNG, by the images' names) for a folder of images.

    Raises:
        DatasetError: the source cannot be opened.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path, masks)
    if source.isdecimal():
        return _capture(cv2.VideoCapture(int(source)), f"webcam {source}")
    if path.is_file():
        return _capture(cv2.VideoCapture(str(path)), source)
    raise DatasetError(f"'{source}' is no folder, video file or webcam number; use one of these")


def find_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The images in a folder, and in its subfolders where ``recursive``, sorted by path.

    Raises:
        DatasetError: there are none.
    """
    found = folder.rglob("*") if recursive else folder.iterdir()
    images = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise DatasetError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return images


def video_rate(path: Path) -> tuple[float | None, int | None]:
    """Frames per second, and number of frames, of a video file as it says itself; None where it does not."""
    capture = cv2.VideoCapture(str(path))
    try:
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    # Some files give nonsense for want of anything better.
    return rate if 0 < rate <= _MOST_FRAMES_PER_SECOND else None, int(count) if count > 0 else None


def _folder(folder: Path, masks: Path | None) -> Iterator[Frame]:
    for path in find_images(folder):
        picture = cv2.cvtColor(_read(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        yield picture, None if masks is None else _read_mask(masks / f"{path.stem}.png", picture.shape[:2])


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    mask = _read(path, cv2.IMREAD_UNCHANGED)
    if mask.dtype != np.uint8 or mask.shape != size:
        raise DatasetError(
            f"{path} is no mask of class ids for its image: it must have one channel of 8 bits, not a palette, and be "
            f"{size[1]}x{size[0]} pixels; OpenCV reads {mask.dtype} of shape {mask.shape}"
        )
    return mask


def _read(path: Path, flags: int) -> np.ndarray:
    picture = cv2.imread(str(path), flags)
    if picture is None:
        raise DatasetError(f"{path} is missing or cannot be read as an image")
    return picture


def _capture(capture: cv2.VideoCapture, name: str) -> Iterator[Frame]:
    if not capture.isOpened():
        raise DatasetError(f"{name} cannot be opened")
    try:
        while True:
            arrived, picture = capture.read()
            if not arrived:
                return
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), None
    finally:
        capture.release()
