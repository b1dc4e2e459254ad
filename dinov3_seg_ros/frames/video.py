"""Video files that appear when they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from dinov3_seg_ros.frames.sources import video_rate
from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import replacing_file

# The encoder of "mp4v" takes no longer sides.
_LONGEST_SIDE = 8190


class Video:
    """A video file of the size of its first picture, at most 8190 pixels a side, to which others are resized."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size = 0, 0
        self._count = 0

    def write(self, picture: np.ndarray) -> None:
        """Append a picture (H, W, 3) uint8 BGR."""
        if self._writer is None:
            height, width = picture.shape[:2]
            scale = min(1.0, _LONGEST_SIDE / max(height, width))
            self._size = max(1, round(width * scale)), max(1, round(height * scale))
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate, self._size)
        # OpenCV leaves out pictures of other sizes.
        self._writer.write(cv2.resize(picture, self._size))
        self._count += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: it holds fewer pictures than were written, which OpenCV does not report, or none was written.
        """
        if self._writer is None:
            raise OSError("it got no picture")
        self._writer.release()
        _, held = video_rate(self._path)
        # It may hold one more, if Ctrl-C came before the frame was counted.
        if (held or 0) < self._count:
            raise OSError(f"it holds {held} of {self._count} frames")


@contextlib.contextmanager
def new_video(path: Path, rate: float) -> Iterator[Video]:
    """A video that appears under its name when it is complete.

    Raises:
        OutputError: it cannot be written, holds fewer pictures than were written, or none was written.
    """
    with contextlib.ExitStack() as stack:
        with _writing(path):
            temporary = stack.enter_context(replacing_file(path))
        video = Video(temporary, rate)
        yield video
        with _writing(path):
            video.close()
            stack.close()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error}); free some space, or choose another folder with --output"
        ) from error
