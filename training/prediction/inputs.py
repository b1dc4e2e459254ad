"""What can be segmented: images, a video, a webcam, a recording; whole, or divided into parts."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dinov3_seg_ros.bag.images import FrameName
from dinov3_seg_ros.frames.image_files import read_image
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES, no_source, open_source, scale_of_all, video_rate
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError
from training.data.reading.tree import images_below
from training.unlabelled.images import RecordedImages, Span, is_recording, stamp_twice

# Of a stream that does not state its rate.
_FRAMES_PER_SECOND = 10.0


@dataclass
class Source:
    """Named frames.

    Attributes:
        frames: name (a relative path without suffix) and RGB image (H, W, 3) uint8.
        count: their probable number; None if unknown.
        rate: frames per second of a stream; None for independent images.
        unreadable: path of each image that cannot be read -> reason; filled while frames are taken.
    """

    frames: Iterator[tuple[str, np.ndarray]]
    count: int | None
    rate: float | None = None
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Which frames of an input are meant.

    Attributes:
        names: of images, as paths relative to their folder.
        topic: of a recording.
        start, stop: the first, and the first after the last: frame numbers of a video, recording times of a recording
            in nanoseconds; None: no limit.
    """

    names: tuple[str, ...] = ()
    topic: str = ""
    start: int | None = None
    stop: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Part:
        """The part whose fields, as `dataclasses.asdict` gives them, were sent as JSON."""
        return cls(**{**content, "names": tuple(content["names"])})

    def __str__(self) -> str:
        if self.names:
            return f"images {self.names[0]} to {self.names[-1]}"
        ends = f"from {'the beginning' if self.start is None else self.start} to {self.stop or 'the end'}"
        return f"messages on {self.topic} {ends} ns" if self.topic else f"frames {ends}"


class Input(ABC):
    """What a command line names, opened.

    Attributes:
        rate: frames per second of a stream; None for independent images.
    """

    rate: float | None = None

    @abstractmethod
    def source(self, part: Part | None = None) -> Source:
        """The frames of a part, or of all.

        Of a part, 16-bit images are refused with ParameterError where their range is to be learned from all.

        Raises:
            DatasetError: there is nothing to segment, or two images would have the same mask.
        """

    @abstractmethod
    def parts(self, size: int) -> list[Part]:
        """Divide the input into parts of about ``size`` frames; each frame is in one of them.

        Raises:
            DatasetError: there is nothing to segment, or the input cannot be divided.
        """

    @abstractmethod
    def count(self) -> int | None:
        """The probable number of frames; None if unknown."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the files' names, sizes and times of change: the same as long as nobody touches them."""

    def repeated(self, name: str) -> tuple[str, str]:
        """The entry in ``unreadable`` for a frame whose name an earlier frame has."""
        raise AssertionError(f"the frames of {type(self).__name__} have different names, but '{name}' came twice")


def open_input(source: str, value_range: ValueRange = "auto", topics: Sequence[str] = ()) -> Input:
    """Open an image, a folder of images (and of its subfolders), a recording, a video file or a webcam's number.

    Args:
        source: path or number.
        value_range: which values of 16-bit images are black and white.
        topics: of a recording; may be empty where there is one with images.

    Raises:
        DatasetError: it is none of these, or the topics do not fit.
    """
    path = Path(source)
    if not path.exists() and not source.isdecimal():
        raise no_source(
            source, "an image, a folder of images, a recording (rosbag2), a video or the number of a webcam"
        )
    if is_recording(path):
        return Recording(path, value_range, topics)
    if topics:
        raise DatasetError(f"topics are those of a recording, but '{source}' is none; leave out --topics")
    if path.is_dir():
        return ImageFolder(path, value_range)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFolder(path.parent, value_range, path)
    return VideoInput(source)


class ImageFolder(Input):
    """The images below a folder, or one of them. Whether an image can be read shows when it is taken.

    Args:
        root: the folder.
        value_range: see `open_input`.
        only: the only image that is meant.
    """

    def __init__(self, root: Path, value_range: ValueRange, only: Path | None = None) -> None:
        self._root, self._value_range, self._only = root, value_range, only

    def source(self, part: Part | None = None) -> Source:
        """See `Input.source`."""
        paths = self._paths if part is None else {_stem(name): self._root / name for name in part.names}
        source = Source(iter(()), len(paths))
        if part is None:
            scale = scale_of_all(paths.values(), self._value_range)
        else:
            scale = ValueScale(self._value_range, is_whole=False)
        source.frames = _readable(paths, source.unreadable, scale)
        return source

    def parts(self, size: int) -> list[Part]:
        """See `Input.parts`."""
        names = [path.relative_to(self._root).as_posix() for path in self._paths.values()]
        return [Part(names=tuple(names[start : start + size])) for start in range(0, len(names), size)]

    def count(self) -> int:
        """See `Input.count`."""
        return len(self._paths)

    def digest(self) -> str:
        """See `Input.digest`."""
        return _digest(self._root, self._paths.values())

    @cached_property
    def _paths(self) -> dict[str, Path]:
        path_of: dict[str, Path] = {}
        for path in [self._only] if self._only is not None else images_below(self._root):
            name = _stem(path.relative_to(self._root).as_posix())
            if name in path_of:
                raise DatasetError(f"{path_of[name]} and {path.name} would have the same mask; rename one of them")
            path_of[name] = path
        return path_of


class VideoInput(Input):
    """The frames of a video file or a webcam, named by their numbers.

    A part is found by decoding from the beginning, since OpenCV jumps to a wrong frame in some files (opencv#9053; in
    MPEG-1, for one). What comes before is not converted to pixels, which takes most of the time. The file stays open,
    so that parts in order are read in one pass.

    Args:
        name: path or number.
    """

    def __init__(self, name: str) -> None:
        self._name, self._path = name, Path(name)
        rate, self._count = video_rate(self._path) if self._path.is_file() else (None, None)
        self.rate = rate or _FRAMES_PER_SECOND
        self._capture: cv2.VideoCapture | None = None
        self._position = 0

    def source(self, part: Part | None = None) -> Source:
        """See `Input.source`."""
        if part is None:
            frames = ((f"{number:06d}", image) for number, (image, _) in enumerate(open_source(self._name)))
            return Source(frames, self._count, self.rate)
        return Source(self._between(part.start or 0, part.stop), None, self.rate)

    def parts(self, size: int) -> list[Part]:
        """See `Input.parts`. The last part goes to the end, wherever the header says that this is."""
        if not self._path.is_file():
            raise DatasetError(f"'{self._name}' is no file, and only files can be divided; leave out --cluster")
        starts = list(range(0, self._count or 1, size))
        return [Part(start=start, stop=stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)]

    def count(self) -> int | None:
        """See `Input.count`."""
        return self._count

    def digest(self) -> str:
        """See `Input.digest`."""
        return _digest(self._path.parent, [self._path])

    def _between(self, start: int, stop: int | None) -> Iterator[tuple[str, np.ndarray]]:
        capture = self._capture
        if capture is None or self._position > start:
            capture, self._position = cv2.VideoCapture(self._name), 0
            if not capture.isOpened():
                raise DatasetError(f"{self._name} cannot be opened as a video")
            self._capture = capture
        while stop is None or self._position < stop:
            if not capture.grab():
                self._capture = None
                return
            self._position += 1
            if self._position > start:
                decoded, image = capture.retrieve()
                if not decoded:  # where `open_source` ends too
                    self._capture = None
                    return
                yield f"{self._position - 1:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class Recording(Input):
    """The images of a recording, named by topic and stamp.

    Args:
        path: the rosbag2.
        value_range, topics: see `open_input`.

    Raises:
        DatasetError: the recording cannot be read, or it is not clear which topics are meant.
        RuntimeUnavailableError: rosbags is not installed.
    """

    def __init__(self, path: Path, value_range: ValueRange, topics: Sequence[str]) -> None:
        self._path, self._value_range = path, value_range
        self._whole = RecordedImages(path, value_range, topics)

    def source(self, part: Part | None = None) -> Source:
        """See `Input.source`."""
        images = self._whole
        if part is not None:
            images = RecordedImages(self._path, self._value_range, (), span=Span(part.topic, part.start, part.stop))
        frames = ((_stem(image.name), image.pixels) for image in images.take())
        return Source(frames, len(self._whole) if part is None else None, unreadable=images.unreadable)

    def parts(self, size: int) -> list[Part]:
        """See `Input.parts`: by topic and time."""
        return [Part(topic=span.topic, start=span.start, stop=span.stop) for span in self._whole.spans(size)]

    def count(self) -> int:
        """See `Input.count`."""
        return len(self._whole)

    def digest(self) -> str:
        """See `Input.digest`."""
        files = [self._path] if self._path.is_file() else [file for file in self._path.iterdir() if file.is_file()]
        return _digest(self._path.parent, sorted(files))

    def repeated(self, name: str) -> tuple[str, str]:
        """See `Input.repeated`."""
        frame = FrameName.parse(name)
        assert frame is not None  # all frames of a recording are named so
        return f"{frame}.png", f"{frame.topic}: {stamp_twice(frame)}"


def _readable(
    path_of: dict[str, Path], unreadable: dict[str, str], scale: ValueScale
) -> Iterator[tuple[str, np.ndarray]]:
    for name, path in path_of.items():
        try:
            image = read_image(path, scale)
        except DatasetError as error:
            unreadable[str(path)] = str(error)
        else:
            yield name, image


def _stem(name: str) -> str:
    """A relative path without its suffix."""
    return Path(name).with_suffix("").as_posix()


def _digest(root: Path, paths: Iterable[Path]) -> str:
    """See `Input.digest`."""
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
