"""Write images of a recording as PNG files, for a labelling tool."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dinov3_seg_ros.bag.images import FrameName, ImageReader, Skipped, choose_topics, name_of_frame
from dinov3_seg_ros.bag.message_types import known_types
from dinov3_seg_ros.bag.recordings import Track, messages_of, open_recording, untracked
from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.frames.overlay import to_bgr
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.support.errors import DatasetError, MessageError, OutputError, first_of
from dinov3_seg_ros.support.files import check_outside


@dataclass
class Extraction:
    """What was extracted.

    Attributes:
        written: number of files, by topic.
        passed_over: number of images that another one of their window stands for.
        skipped: images that could not be read, or not be written.
    """

    written: Counter[str] = field(default_factory=Counter)
    passed_over: int = 0
    skipped: Skipped = field(default_factory=Skipped)


class _Picture(NamedTuple):
    name: FrameName
    rgb: np.ndarray
    sharpness: float


class _Windows:
    """Divides the images of one topic into windows of time, and chooses one of each; see `extract`."""

    def __init__(self, every: int | None, sharpest: bool) -> None:
        self.best: _Picture | None = None
        self.passed_over = 0
        self._every, self._sharpest = every, sharpest
        self._start: int | None = None
        self._window = 0

    def offer(
        self, name: FrameName, decode: Callable[[], np.ndarray], pass_over: Callable[[], None]
    ) -> _Picture | None:
        """Take the next image into account; give the choice of the window before, where the image begins another.

        Args:
            name: of the image.
            decode: gives its pixels, (H, W, 3) uint8 RGB.
            pass_over: called where they are not looked at.

        Raises:
            MessageError: the image cannot be decoded; the next one stands in for it.
        """
        self._start = name.stamp if self._start is None else self._start
        window = self._window + 1 if self._every is None else (name.stamp - self._start) // self._every
        is_first = self.best is None or window != self._window
        if not is_first and not self._sharpest:
            pass_over()
            self.passed_over += 1
            return None
        rgb = decode()
        picture, best = _Picture(name, rgb, sharpness(rgb) if self._sharpest else 0.0), self.best
        if is_first:
            self.best, self._window = picture, window
            return best
        self.passed_over += 1
        if best is None or picture.sharpness > best.sharpness:
            self.best = picture
        return None


def extract(
    source: Path,
    folder: Path,
    topics: Sequence[str] = (),
    every: int | None = None,
    sharpest: bool = False,
    options: PublishOptions | None = None,
    track: Track = untracked,
) -> Extraction:
    """Write images of a recording to ``folder / f"{FrameName}.png"``; files that are there stay as they are.

    The files hold what the network sees: 8-bit RGB, decoded and scaled as on the robot.

    Args:
        source: folder (or single file) of a rosbag2.
        folder: made if missing.
        topics: of the images; may be empty where there is one.
        every: from the first image of each topic on, time is divided into windows of so many nanoseconds, and one image
            of each is written; None: all images.
        sharpest: whether that is the sharpest image of the window; otherwise it is the first.
        options: the largest image to read, and the range of 16-bit values.
        track: see `recordings.Track`.

    Raises:
        DatasetError: the recording cannot be read, it is not clear which images are meant, or there are none.
        OutputError: ``folder`` lies in ``source``, or a file cannot be written.
    """
    check_outside(folder, source)
    options, done = options or PublishOptions(), Extraction()
    with open_recording(source) as reader:
        chosen = choose_topics(reader.connections, topics)
        images = ImageReader(known_types(), chosen, options.max_pixels, options.value_range)
        windows = {topic: _Windows(every, sharpest) for topic in chosen}
        connections = [connection for connection in reader.connections if connection.topic in chosen]
        count = sum(connection.msgcount for connection in connections)
        try:
            for connection, recorded, raw in track(messages_of(reader, source, connections), count):
                try:
                    message = images.message(connection, raw)
                    name = name_of_frame(connection.topic, message.header, recorded)
                    decode = functools.partial(images.rgb, connection, message)
                    pass_over = functools.partial(images.pass_over, connection, message)
                    _write(windows[connection.topic].offer(name, decode, pass_over), folder, done)
                except MessageError as error:
                    done.skipped.add(error.fault, f"{connection.topic} at {recorded} ns: {error}")
        except DatasetError:  # damaged from here on
            _finish(windows, folder, done)
            raise
        _finish(windows, folder, done)
    if not (done.written or done.passed_over or done.skipped.counts):
        raise DatasetError(f"{source} has no message on {first_of(chosen)}, and so no image to write")
    return done


def sharpness(rgb: np.ndarray) -> float:
    """How sharp an image is: the variance of its Laplacian (Pech-Pacheco et al., ICPR 2000).

    Only images of one scene can be compared by it.

    Args:
        rgb: (H, W, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _finish(windows: Mapping[str, _Windows], folder: Path, done: Extraction) -> None:
    """Write the choice of each topic's last window."""
    for own in windows.values():
        _write(own.best, folder, done)
        done.passed_over += own.passed_over


def _write(picture: _Picture | None, folder: Path, done: Extraction) -> None:
    if picture is None:
        return
    path = folder / f"{picture.name}.png"
    if path.exists():
        done.skipped.add("file exists", str(path))
        return
    try:
        write_picture(path, to_bgr(picture.rgb), durable=False)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); the {done.written.total()} images before it are whole"
        ) from error
    done.written[picture.name.topic] += 1
