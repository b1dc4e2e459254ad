"""Video files that appear when they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from dinov3_seg_ros.frames.sources import video_rate
from dinov3_seg_ros.support.files import replacing_file
from training.support.writing import writing


class Video:
    """A video file of the size of its first frame."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._count = 0

    def write(self, picture: np.ndarray) -> None:
        """Append a picture (H, W, 3) uint8 BGR."""
        if self._writer is None:
            height, width = picture.shape[:2]
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate, (width, height))
        self._writer.write(picture)
        self._count += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: it holds fewer frames than were written, which OpenCV does not report.
        """
        if self._writer is not None:
            self._writer.release()
        _, held = video_rate(self._path)
        # It may hold one more, if Ctrl-C came before the frame was counted.
        if (held or 0) < self._count:
            raise OSError(f"it holds {held} of {self._count} frames")


@contextlib.contextmanager
def new_video(path: Path, rate: float) -> Iterator[Video]:
    """A video that appears under its name when it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), replacing_file(path) as temporary:
        video = Video(temporary, rate)
        yield video
        video.close()
