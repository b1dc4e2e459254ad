"""Images without labels, from a folder or a recording, each under a name of its own."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from dinov3_seg_ros.bag.images import FrameName, ImageReader, choose_topics, name_of_frame
from dinov3_seg_ros.bag.message_types import known_types
from dinov3_seg_ros.bag.recordings import check_metadata, messages_of, open_recording
from dinov3_seg_ros.frames.compression import write_picture
from dinov3_seg_ros.frames.image_files import read_image
from dinov3_seg_ros.frames.overlay import to_bgr
from dinov3_seg_ros.frames.sources import IMAGE_SUFFIXES, no_source, scale_of_all
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.errors import DatasetError, MessageError, RuntimeUnavailableError
from dinov3_seg_ros.support.files import replacing_file
from dinov3_seg_ros.support.installation import how_to_install
from dinov3_seg_ros.support.option_checks import MAX_PIXELS
from training.data.reading.tree import images_below
from training.support.writing import writing
from training.unlabelled.labelled import mask_files

_RECORDING_SUFFIXES = (".db3", ".mcap", ".bag")


class UnlabelledImage(NamedTuple):
    """One image.

    Attributes:
        name: relative path with ``/`` and a suffix; no other image of its source has it.
        pixels: (H, W, 3) uint8 RGB.
        file: where it was read from; None where that is no image file.
    """

    name: str
    pixels: np.ndarray
    file: Path | None = None

    def copy_to(self, target: Path) -> None:
        """Write the image: its own file as it is, or its pixels as PNG.

        Raises:
            OutputError: the file cannot be written.
        """
        with writing(target):
            if self.file is None:
                write_picture(target, to_bgr(self.pixels))
                return
            with replacing_file(target) as temporary:
                shutil.copyfile(self.file, temporary)


class UnlabelledImages(Protocol):
    """A source of images, read one after the other.

    Attributes:
        unreadable: name -> reason of each image that could not be read; filled while images are taken.
    """

    unreadable: dict[str, str]

    def __len__(self) -> int:
        """Number of images, with those that cannot be read; of a recording the most that it can be."""

    def check_label_names(self) -> None:
        """Refuse images whose names differ in their suffix alone: files of labels have another one.

        Raises:
            DatasetError: there are two.
        """

    def take(self, names: Collection[str] | None = None) -> Iterator[UnlabelledImage]:
        """The images in order; only those of some names where these are given.

        Raises:
            DatasetError: the source cannot be read.
        """


def open_images(
    source: str | Path, value_range: ValueRange = "auto", topics: Sequence[str] = (), every: int | None = None
) -> UnlabelledImages:
    """Find the images of a folder (and of its subfolders), of one file, or of a recording.

    Masks of a labelled folder are no images, though they look like them.

    Args:
        source: folder or file of images, or a rosbag2.
        value_range: which values of 16-bit images are black and white.
        topics: of the recording; may be empty where there is one with images.
        every: of a recording, the first image of each window of so many nanoseconds is taken; None: all.

    Raises:
        DatasetError: there are no images, or it is not clear which; or topics or a duration for what is no recording.
    """
    path, kinds = Path(source), "a folder of images, an image or a recording (rosbag2)"
    if not path.exists():
        raise no_source(source, kinds)
    if is_recording(path):
        return RecordedImages(path, value_range, topics, every)
    if topics or every is not None:
        option, what = ("--topics", "topics are") if topics else ("--every", "a duration between images is")
        raise DatasetError(f"{what} for a recording (rosbag2), but '{source}' is none; leave out {option}")
    if path.is_dir():
        masks = mask_files(path)
        found = [image for image in images_below(path) if image.resolve() not in masks]
        return ImageFiles(found, path, value_range)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFiles([path], path.parent, value_range)
    raise no_source(source, kinds)


class ImageFiles:
    """Image files below a folder; see `UnlabelledImages`. Their names are their paths in it.

    Args:
        paths: the files.
        root: the folder.
        value_range: which values of 16-bit images are black and white.
    """

    def __init__(self, paths: Sequence[Path], root: Path, value_range: ValueRange = "auto") -> None:
        self._files = {path.relative_to(root).as_posix(): path for path in paths}
        self._value_range: ValueRange = value_range
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._files)

    def check_label_names(self) -> None:
        """See `UnlabelledImages.check_label_names`."""
        image_of: dict[PurePosixPath, str] = {}
        for name in self._files:
            first = image_of.setdefault(PurePosixPath(name).with_suffix(""), name)
            if first != name:
                raise DatasetError(f"{first} and {name} would have the same labels; rename one of them")

    def take(self, names: Collection[str] | None = None) -> Iterator[UnlabelledImage]:
        """See `UnlabelledImages.take`."""
        for name, path in self._files.items():
            if names is None or name in names:
                try:
                    yield UnlabelledImage(name, read_image(path, self._scale), path)
                except DatasetError as error:
                    self.unreadable[name] = str(error)

    @cached_property
    def _scale(self) -> ValueScale:
        return scale_of_all(self._files.values(), self._value_range)


class Span(NamedTuple):
    """A part of a topic in time.

    Attributes:
        topic: full name.
        start, stop: the first recording time, and the first one after the last, nanoseconds; None: no limit.
    """

    topic: str
    start: int | None
    stop: int | None


class RecordedImages:
    """Images of a recording, named by topic and stamp as `dinov3_seg_ros.bag.extraction.extract` names its files.

    Args:
        source: the rosbag2.
        value_range, topics, every: see `open_images`.
        span: the part that is taken; None: all of the topics.

    Raises:
        DatasetError: see `open_images`.
        RuntimeUnavailableError: rosbags is not installed.
    """

    def __init__(
        self,
        source: Path,
        value_range: ValueRange,
        topics: Sequence[str],
        every: int | None = None,
        span: Span | None = None,
    ) -> None:
        self._source, self._value_range, self._every, self._span = source, value_range, every, span
        try:
            self._types = known_types()
            with open_recording(source) as reader:
                self._topics = choose_topics(reader.connections, topics if span is None else [span.topic])
                chosen = [one for one in reader.connections if one.topic in self._topics]
                check_metadata(reader, source, chosen)  # not after hours, and for spans too
                self._counts = {
                    topic: sum(one.msgcount for one in chosen if one.topic == topic) for topic in self._topics
                }
                self._ends = reader.start_time, reader.end_time
        except ImportError as error:
            raise RuntimeUnavailableError(f"{error.name} is not installed: {how_to_install('bag')}") from error
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def check_label_names(self) -> None:
        """All have the same suffix."""

    def spans(self, size: int) -> list[Span]:
        """The topics in spans of equal time, with about ``size`` messages each where a topic's rate is steady."""
        found = []
        for topic, count in self._counts.items():
            parts = max(-(-count // size), 1)
            start, stop = self._ends
            inner = [start + (stop - start) * part // parts for part in range(1, parts)]
            found += [Span(topic, *ends) for ends in zip([None, *inner], [*inner, None], strict=True)]
        return found

    def take(self, names: Collection[str] | None = None) -> Iterator[UnlabelledImage]:
        """See `UnlabelledImages.take`."""
        images = ImageReader(self._types, self._topics, MAX_PIXELS, self._value_range, is_whole=self._span is None)
        begun: dict[str, int] = {}
        windows: dict[str, int] = {}
        seen: set[str] = set()
        with open_recording(self._source) as reader:
            connections = [one for one in reader.connections if one.topic in self._topics]
            start, stop = (self._span.start, self._span.stop) if self._span is not None else (None, None)
            for connection, recorded, raw in messages_of(reader, self._source, connections, start, stop):
                name, topic = f"{connection.topic} at {recorded} ns", connection.topic
                try:
                    message = images.message(connection, raw)
                    frame = name_of_frame(topic, message.header, recorded)
                    name = f"{frame}.png"
                    if self._every is not None:
                        window = (frame.stamp - begun.setdefault(topic, frame.stamp)) // self._every
                        if windows.get(topic) == window:
                            images.pass_over(connection, message)
                            continue
                    # Each is decoded, since the range of 16-bit values is learned from all.
                    pixels = images.rgb(connection, message)
                    if self._every is not None:
                        windows[topic] = window
                    if name in seen:
                        raise MessageError("stamp twice", stamp_twice(frame))
                except MessageError as error:
                    self.unreadable[name] = f"{topic}: {error}"
                else:
                    seen.add(name)
                    if names is None or name in names:
                        yield UnlabelledImage(name, pixels)


def stamp_twice(frame: FrameName) -> str:
    """What is said of the second image of one topic and stamp, which cannot have a name of its own."""
    return f"two images have the stamp {frame.stamp} ns"


def is_recording(path: Path) -> bool:
    """Whether a path is a rosbag2, or a ROS 1 bag, whose reader says what to do with it."""
    if path.is_dir():
        return (path / "metadata.yaml").exists() or any(map(_is_of_recording, path.iterdir()))
    return path.is_file() and _is_of_recording(path)


def _is_of_recording(path: Path) -> bool:
    return path.name.removesuffix(".zstd").endswith(_RECORDING_SUFFIXES)
