"""Add the outputs of a segmenter to recordings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinov3_seg_ros.bag.images import ImageReader, choose_topics, output_topic, serialised_image
from dinov3_seg_ros.bag.message_types import known_types
from dinov3_seg_ros.bag.recordings import (
    RecordedMessage,
    Track,
    add_topic,
    copy_connections,
    copy_custom_data,
    messages_of,
    new_recording,
    open_recording,
    storage_of,
    untracked,
)
from dinov3_seg_ros.frames.encodings import mask_encoding
from dinov3_seg_ros.frames.output_classes import Labelled, OutputClasses, classes_to_publish, confidence_threshold
from dinov3_seg_ros.frames.overlay import to_bgr
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.frames.value_range import chosen_range
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.ros.cameras.messages import seconds_of
from dinov3_seg_ros.ros.endpoints.image_types import IMAGE
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import MessageError, ParameterError, nearest
from dinov3_seg_ros.support.option_checks import parse_mask_size

if TYPE_CHECKING:
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Writer

# Messages that are only copied wait for the frames beside them, until they hold this many bytes.
_MOST_COPIED = 64 << 20


class _Record(NamedTuple):
    """One message of the recording.

    Attributes:
        connection, timestamp, raw: see `recordings.RecordedMessage`.
        header: of an image to segment.
        rgb: (H, W, 3) uint8 RGB of an image to segment; None for messages that are only copied.
    """

    connection: Connection
    timestamp: int
    raw: bytes
    header: Any = None
    rgb: np.ndarray | None = None


class _Published(NamedTuple):
    """What one head publishes for one frame.

    Attributes:
        rgb: the frame, (H, W, 3) uint8 RGB.
        labels: published labels, (H, W).
        confidence: (H, W) uint8; None if not wanted.
    """

    rgb: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray | None = None


# Each output as an array, and its encoding.
_DRAWN: dict[str, Callable[[_Published, OutputClasses, PublishOptions], tuple[Any, str]]] = {
    "mask": lambda of, classes, options: (of.labels, mask_encoding(of.labels)),
    "confidence": lambda of, classes, options: (of.confidence, "mono8"),
    "color_mask": lambda of, classes, options: (to_bgr(classes.coloured(of.labels)), "bgr8"),
    "overlay": lambda of, classes, options: (to_bgr(classes.overlay(of.rgb, of.labels, options)), "bgr8"),
}
OUTPUTS = tuple(_DRAWN)


class BagSegmenter:
    """Adds the outputs of a segmenter to recordings.

    Args:
        segmenter: up to ``max_batch`` frames go through its backbone at once.
        options: what to publish; images larger than ``max_pixels`` are only copied.
        outputs: which of `OUTPUTS` to add; once each.

    Raises:
        ParameterError: the class list cannot be used, or there is no such output.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        options: PublishOptions | None = None,
        outputs: Sequence[str] = ("mask", "overlay"),
    ) -> None:
        for output in outputs:
            if output not in OUTPUTS:
                raise ParameterError(
                    f"recordings get no output '{output}'{nearest(output, OUTPUTS)}; the outputs are: "
                    f"{', '.join(OUTPUTS)}"
                )
        options = options or PublishOptions()
        of_bundles = {name: manifest.classes for name, manifest in segmenter.manifests.items()}
        self._classes = classes_to_publish(options.class_list, of_bundles)
        self._segmenter, self._outputs, self._options = segmenter, tuple(dict.fromkeys(outputs)), options
        self._mask_size = parse_mask_size(options.mask_size)
        self._threshold = confidence_threshold(options.confidence_threshold)
        self._types = known_types()

    def process(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        topics: Sequence[str] = (),
        storage: str | None = None,
        track: Track = untracked,
    ) -> dict[str, int]:
        """Write a recording with everything in ``source`` and the outputs.

        Args:
            source: folder (or single file) of a rosbag2.
            target: folder to make; it appears when it is complete.
            topics: of the images to segment; may be empty where there is one.
            storage: one of `STORAGES`; None for that of ``source``.
            track: see `recordings.Track`.

        Returns:
            The number of frames ``segmented``, and by fault the number of images that were only copied.

        Raises:
            DatasetError: the recording cannot be read, or it is not clear which images to segment.
            OutputError: ``target`` exists, lies in ``source``, or cannot be written.
        """
        source, target = Path(source), Path(target)
        with open_recording(source) as reader, new_recording(target, source, storage or storage_of(source)) as writer:
            images = choose_topics(reader.connections, topics)
            copies = copy_connections(writer, reader.connections, self._types)
            copy_custom_data(writer, reader)
            added = self._added_connections(writer, images, {c.topic for c in reader.connections})
            counts: Counter[str] = Counter()
            messages = track(messages_of(reader, source), reader.message_count)
            weight = self._options.temporal_smoothing
            smoothers = {topic: TemporalSmoother(weight) for topic in images} if weight else {}
            for record, result in self._segmented(self._read(messages, images, counts), smoothers):
                writer.write(copies[record.connection.id], record.timestamp, record.raw)
                for head, published in (result or {}).items():
                    for output in self._outputs:
                        array, encoding = _DRAWN[output](published, self._classes[head], self._options)
                        message = serialised_image(self._types, array, encoding, record.header)
                        connection = added[record.connection.topic, head, output]
                        writer.write(connection, record.timestamp, message)
                counts["segmented"] += result is not None
            return dict(counts)

    def _read(
        self, messages: Iterable[RecordedMessage], images: Sequence[str], counts: Counter[str]
    ) -> Iterator[_Record]:
        choice = chosen_range(self._options.value_range, self._segmenter.value_range)
        reader = ImageReader(self._types, images, self._options.max_pixels, choice)
        for connection, timestamp, raw in messages:
            record = _Record(connection, timestamp, raw)
            if connection.topic in images:
                try:
                    message = reader.message(connection, raw)
                    record = record._replace(header=message.header, rgb=reader.rgb(connection, message))
                except MessageError as error:
                    counts[error.fault] += 1
            yield record

    def _segmented(
        self, records: Iterable[_Record], smoothers: Mapping[str, TemporalSmoother]
    ) -> Iterator[tuple[_Record, dict[str, _Published] | None]]:
        """Yield records in order, each with its results. Reading and writing continue while the network computes."""
        with ThreadPoolExecutor(1) as network:
            waiting: tuple[list[_Record], Future[list[dict[str, _Published]]]] | None = None
            for group in self._groups(records):
                following = group, network.submit(self._segment, group, smoothers)
                if waiting:
                    yield from _with_results(*waiting)
                waiting = following
            if waiting:
                yield from _with_results(*waiting)

    def _groups(self, records: Iterable[_Record]) -> Iterator[list[_Record]]:
        """Group consecutive records: ``max_batch`` frames, or fewer where many other messages lie between them."""
        group: list[_Record] = []
        frames = copied = 0
        for record in records:
            group.append(record)
            if record.rgb is None:
                copied += len(record.raw)
            else:
                frames += 1
            if frames == self._segmenter.max_batch or copied >= _MOST_COPIED:
                yield group
                group, frames, copied = [], 0, 0
        yield group

    def _segment(
        self, group: Sequence[_Record], smoothers: Mapping[str, TemporalSmoother]
    ) -> list[dict[str, _Published]]:
        """The results of those records of a group that are frames, in order."""
        frames = [(record, record.rgb) for record in group if record.rgb is not None]
        results = self._segmenter.segment([rgb for _, rgb in frames], size=self._mask_size)
        published = []
        for (record, rgb), result in zip(frames, results, strict=True):
            if (smoother := smoothers.get(record.connection.topic)) is not None:
                seconds = seconds_of(record.header.stamp) or 1e-9 * record.timestamp  # drivers may leave stamps empty
                result = result.smoothed(smoother, rgb, seconds)
            published.append({name: self._publish(name, head, rgb) for name, head in result.heads.items()})
        return published

    def _publish(self, name: str, head: Labelled, rgb: np.ndarray) -> _Published:
        classes = self._classes[name]
        if "confidence" in self._outputs:
            return _Published(rgb, *classes.labels_and_confidence(head, self._threshold))
        return _Published(rgb, classes.labels(head, self._threshold))

    def _added_connections(
        self, writer: Writer, images: Sequence[str], existing: set[str]
    ) -> dict[tuple[str, str, str], Connection]:
        return {
            (image, head, output): add_topic(
                writer, self._types, output_topic(image, *([head] if index else []), output), IMAGE, existing
            )
            for image in images
            for index, head in enumerate(self._classes)
            for output in self._outputs
        }


def _with_results(
    group: list[_Record], results: Future[list[dict[str, _Published]]]
) -> Iterator[tuple[_Record, dict[str, _Published] | None]]:
    of_frames = iter(results.result())
    for record in group:
        yield record, None if record.rgb is None else next(of_frames)
