"""Frames from files and devices: a folder of images, a video file, a webcam."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path

import cv2
import numpy as np

from dinov3_seg_ros.frames.compression import has_16_bits
from dinov3_seg_ros.frames.order import in_order
from dinov3_seg_ros.frames.value_range import ValueEnds, ValueScale
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError, MessageError

_logger = logging.getLogger("dinov3_seg_ros.frames")

#: Suffixes of image files, for every command that reads a folder of images.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Those of pictures that phones, cameras and web pages give, and no command takes from a folder.
_UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".gif", ".dng")
#: So many bytes tell whether an image may have 16 bits, see `may_have_16_bits`; the last is the depth of a PNG.
HEAD_BYTES = 25
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF
_READERS = 8
_MOST_FRAMES_PER_SECOND = 1000.0
#: RGB (H, W, 3) uint8, and the true mask (H, W) uint8 where it is known.
Frame = tuple[np.ndarray, np.ndarray | None]


def open_source(source: str, masks: Path | None = None, value_range: ValueRange = "auto") -> Iterator[Frame]:
    """Open a folder of images, a video file or a webcam.

    Args:
        source: path of a folder, whose images are taken in the order of `order.in_order`, or of a video file, or the
            number of a webcam.
        masks: folder of true masks for a folder of images: PNG files of class ids, named like the images. Other
            sources have none.
        value_range: which values of a folder's 16-bit images are black and white; videos have 8 bits.

    Returns:
        An iterator over frames: RGB (H, W, 3) uint8, and the true mask (H, W) uint8 or None.

    Raises:
        DatasetError: the source cannot be opened; or, while iterating, an image, a mask or a video's first frame cannot
            be read.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return _folder(path, masks, value_range)
    if source.isdecimal():
        return _capture(cv2.VideoCapture(int(source)), f"webcam {source}")
    if path.is_file():
        return _capture(cv2.VideoCapture(str(path)), source)
    raise no_source(source, "a folder of images, a video file or the number of a webcam")


def no_source(source: str | Path, kinds: str) -> DatasetError:
    """The error for a source that is not there, or is none of some kinds: "a folder of images or a video file"."""
    if Path(source).exists():
        return DatasetError(f"'{source}' is not {kinds}; give one of these")
    return DatasetError(f"'{source}': there is no such file or folder; give {kinds}")


def find_images(folder: Path) -> list[Path]:
    """List the images in a folder, sorted by path.

    Args:
        folder: an existing folder; files with a suffix of `IMAGE_SUFFIXES` count, in upper or lower case.

    Raises:
        DatasetError: the folder holds no image.
    """
    files = list(folder.iterdir())
    unread = unread_pictures(folder, files)
    images = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise DatasetError(unread or f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    if unread:
        _logger.warning(unread)
    return images


def unread_pictures(folder: str | Path, files: Iterable[str | Path]) -> str:
    """What to say of pictures that no command takes from a folder; empty where there are none."""
    suffixes = (os.path.splitext(file)[1].lower() for file in files)
    counts = Counter(suffix for suffix in suffixes if suffix in _UNREAD_SUFFIXES)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    return f"{folder} holds pictures that are not read ({listed}); convert them to JPEG or PNG" if listed else ""


def video_rate(path: Path) -> tuple[float | None, int | None]:
    """Read frames per second and number of frames from a video's header; None for what it does not state."""
    capture = cv2.VideoCapture(str(path))
    try:
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    # Some files state an impossible rate because they have none.
    return rate if 0 < rate <= _MOST_FRAMES_PER_SECOND else None, int(count) if count > 0 else None


def decode_pixels(content: bytes, name: object) -> np.ndarray:
    """Decode an image file as it is: (H, W) grey or (H, W, 3) RGB, uint8 or uint16; an alpha channel is dropped.

    The picture is turned as its EXIF tag says.

    Args:
        content: of the file.
        name: for messages.

    Raises:
        DatasetError: the content is no image, or its values have neither 8 nor 16 bits.
    """
    picture = None
    with contextlib.suppress(cv2.error):  # raised for an empty file, for one
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if picture is None:
        raise DatasetError(f"{name} cannot be read as an image")
    if picture.dtype not in (np.uint8, np.uint16):
        raise DatasetError(f"{name} has pixels of type {picture.dtype}; convert it to 8 or 16 bits per channel")
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def decode_rgb(content: bytes, name: object, scale: ValueScale) -> np.ndarray:
    """Decode an image file as (H, W, 3) uint8 RGB; ``scale``, of all images of its source, scales 16-bit values.

    Raises:
        DatasetError: see `decode_pixels`; or the range of 16-bit values cannot be told.
    """
    picture = decode_pixels(content, name)
    if picture.dtype == np.uint16:
        try:
            picture = scale.to_8_bits(picture)
        except MessageError as error:
            raise DatasetError(f"{name}: {error}") from error
    return picture if picture.ndim == 3 else cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)


def may_have_16_bits(head: bytes) -> bool:
    """Whether an image may have 16 bits per channel, which of a TIFF its first bytes do not tell.

    Args:
        head: the first `HEAD_BYTES` of its file.
    """
    return has_16_bits(memoryview(head)) or head.startswith(_TIFF)


def scale_of_all(paths: Iterable[Path], choice: ValueRange, source: str = "") -> ValueScale:
    """The scale of images that belong together: ``auto`` is learned from all of them, whichever comes first.

    Args:
        paths: of the images; those that cannot be read are left out.
        choice: see `options.ValueRange`.
        source: for the log.
    """
    if choice != "auto":
        return ValueScale(choice, source)
    with ThreadPoolExecutor(_READERS) as readers:
        found = [ends for ends in readers.map(_ends_of_16_bits, paths) if ends is not None]
    return ValueScale(source=source, ends=reduce(ValueEnds.joined, found) if found else None)


def _ends_of_16_bits(path: Path) -> ValueEnds | None:
    with contextlib.suppress(DatasetError, OSError):
        # A named pipe would be waited for.
        if path.is_file() and may_have_16_bits(_head(path)):
            pixels = decode_pixels(path.read_bytes(), path)
            return ValueEnds.of(pixels) if pixels.dtype == np.uint16 else None
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _folder(folder: Path, masks: Path | None, value_range: ValueRange) -> Iterator[Frame]:
    paths = in_order(find_images(folder), lambda path: path.name)
    scale = scale_of_all(paths, value_range, str(folder))
    for path in paths:
        picture = decode_rgb(path.read_bytes(), path, scale)
        yield picture, None if masks is None else _read_mask(masks / f"{path.stem}.png", picture.shape[:2])


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    # A named pipe would be waited for.
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if mask is None:
        raise DatasetError(f"{path} is missing or cannot be read as an image")
    if mask.dtype != np.uint8 or mask.shape != size:
        raise DatasetError(
            f"{path} is no mask of class ids for its image: it must have one channel of 8 bits, no palette, and "
            f"{size[1]}x{size[0]} pixels; OpenCV reads {mask.dtype} of shape {mask.shape}"
        )
    return mask


def _capture(capture: cv2.VideoCapture, name: str) -> Iterator[Frame]:
    if not capture.isOpened():
        raise DatasetError(f"{name} cannot be opened as a video")
    try:
        arrived, picture = capture.read()
        if not arrived:
            raise DatasetError(f"{name} gives no frame; is the file whole, and is the webcam free?")
        while arrived:
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), None
            arrived, picture = capture.read()
    finally:
        capture.release()
