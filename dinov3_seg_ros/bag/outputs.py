"""Add the outputs of a segmenter to recordings."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from dinov3_seg_ros.bag.message_types import type_hash
from dinov3_seg_ros.bag.recordings import RecordedMessage, messages_of, new_recording, open_recording, storage_of
from dinov3_seg_ros.frames.encodings import mask_encoding
from dinov3_seg_ros.frames.output_classes import (
    ClassList,
    Labelled,
    OutputClasses,
    check_class_list,
    confidence_threshold,
    load_class_list,
)
from dinov3_seg_ros.frames.overlay import blend_overlay, to_bgr
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.frames.value_range import ValueScale, chosen_range
from dinov3_seg_ros.options import PublishOptions, parse_mask_size
from dinov3_seg_ros.ros.endpoints.image_types import (
    COMPRESSED_IMAGE,
    IMAGE,
    VIDEO_TRANSPORTS,
    decoded_topic,
    republish_command,
)
from dinov3_seg_ros.ros.messages import read_compressed_image, read_image
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import DatasetError, MessageError

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, ConnectionExtRosbag2
    from rosbags.rosbag2 import Writer

OUTPUTS = ("mask", "confidence", "color_mask", "overlay")

_READERS: dict[str, Callable[[Any, int, ValueScale], np.ndarray]] = {
    IMAGE: read_image,
    COMPRESSED_IMAGE: read_compressed_image,
}
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
    """The published labels (H, W) of one head for one frame, and the confidence (H, W) uint8; None if not wanted."""

    labels: np.ndarray
    confidence: np.ndarray | None


class BagSegmenter:
    """Adds the outputs of a segmenter to recordings.

    Args:
        segmenter: up to ``max_batch`` frames go through its backbone at once.
        options: what to publish; images larger than ``max_pixels`` are only copied.
        outputs: which of `OUTPUTS` to add; once each.

    Raises:
        ParameterError: the class list cannot be used.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        options: PublishOptions | None = None,
        outputs: Sequence[str] = ("mask", "overlay"),
    ) -> None:
        from rosbags.typesys import Stores, get_typestore

        options = options or PublishOptions()
        class_list = load_class_list(options.class_list) if options.class_list else ClassList()
        of_bundles = {name: manifest.classes for name, manifest in segmenter.manifests.items()}
        check_class_list(class_list, list(of_bundles.values()))
        self._classes = {name: OutputClasses.of(classes, class_list) for name, classes in of_bundles.items()}
        self._segmenter, self._outputs, self._options = segmenter, tuple(dict.fromkeys(outputs)), options
        self._mask_size = parse_mask_size(options.mask_size)
        self._threshold = confidence_threshold(options.confidence_threshold)
        # Images and headers are the same in all distributions.
        self._types = get_typestore(Stores.ROS2_JAZZY)

    def process(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        topics: Sequence[str] = (),
        storage: str | None = None,
        track: Callable[[Iterable[RecordedMessage], int], Iterable[RecordedMessage]] = lambda messages, count: messages,
    ) -> dict[str, int]:
        """Write a recording with everything in ``source`` and the outputs.

        Args:
            source: folder (or single file) of a rosbag2.
            target: folder to make; it appears when it is complete.
            topics: of the images to segment; may be empty where there is one.
            storage: one of `STORAGES`; None for that of ``source``.
            track: wraps the messages to show progress; called with the messages and their number.

        Returns:
            The number of frames ``segmented``, and by fault the number of images that were only copied.

        Raises:
            DatasetError: the recording cannot be read, or it is not clear which images to segment.
            OutputError: ``target`` exists or cannot be written.
        """
        source, target = Path(source), Path(target)
        with open_recording(source) as reader, new_recording(target, storage or storage_of(source)) as writer:
            images = choose_topics(reader.connections, topics)
            copies = self._copies(writer, reader.connections)
            added = self._added_connections(writer, images, {c.topic for c in reader.connections})
            counts: Counter[str] = Counter()
            messages = track(messages_of(reader, source), reader.message_count)
            weight = self._options.temporal_smoothing
            smoothers = {topic: TemporalSmoother(weight) for topic in images} if weight else {}
            for record, result in self._segmented(self._read(messages, images, counts), smoothers):
                writer.write(copies[record.connection.id], record.timestamp, record.raw)
                for head, published in (result or {}).items():
                    for output, message in self._messages(head, published, record):
                        connection = added[record.connection.topic, head, output]
                        writer.write(connection, record.timestamp, message)
                counts["segmented"] += result is not None
            return dict(counts)

    def _read(
        self, messages: Iterable[RecordedMessage], images: Sequence[str], counts: Counter[str]
    ) -> Iterator[_Record]:
        choice = chosen_range(self._options.value_range, self._segmenter.value_range)
        scales = {topic: ValueScale(choice, topic) for topic in images}
        for connection, timestamp, raw in messages:
            record = _Record(connection, timestamp, raw)
            if connection.topic in images:
                try:
                    message = self._message(connection.msgtype, raw)
                    rgb = _READERS[connection.msgtype](message, self._options.max_pixels, scales[connection.topic])
                    record = record._replace(header=message.header, rgb=rgb)
                except MessageError as error:
                    counts[error.fault] += 1
            yield record

    def _message(self, kind: str, raw: bytes) -> Any:
        try:
            return self._types.deserialize_cdr(raw, kind)
        except Exception as error:  # the types differ among releases of rosbags
            raise MessageError("damaged message", f"a message is not a {kind}: {error}") from error

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
                stamp = record.header.stamp
                result = result.smoothed(smoother, rgb, stamp.sec + 1e-9 * stamp.nanosec)
            published.append({name: self._publish(name, head) for name, head in result.heads.items()})
        return published

    def _publish(self, name: str, head: Labelled) -> _Published:
        classes = self._classes[name]
        if "confidence" in self._outputs:
            return _Published(*classes.labels_and_confidence(head, self._threshold))
        return _Published(classes.labels(head, self._threshold), None)

    def _messages(self, head: str, published: _Published, record: _Record) -> Iterator[tuple[str, memoryview]]:
        """Yield the serialised outputs of one head for one frame, by name."""
        for output in self._outputs:
            yield output, self._serialised(*self._drawn(output, head, published, record), record.header)

    def _drawn(self, output: str, head: str, published: _Published, record: _Record) -> tuple[np.ndarray, str]:
        """One output as an array, and its encoding."""
        if output == "confidence" and published.confidence is not None:
            return published.confidence, "mono8"
        if output == "color_mask":
            return to_bgr(self._classes[head].coloured(published.labels)), "bgr8"
        if output == "overlay" and record.rgb is not None:
            classes, options = self._classes[head], self._options
            names = classes.names if options.overlay_names else None
            overlay = blend_overlay(record.rgb, published.labels, classes.palette, options.overlay_alpha, names)
            return to_bgr(overlay), "bgr8"
        return published.labels, mask_encoding(published.labels)

    def _serialised(self, array: np.ndarray, encoding: str, header: Any) -> memoryview:
        image = self._types.types[IMAGE](
            header=header,
            height=array.shape[0],
            width=array.shape[1],
            encoding=encoding,
            is_bigendian=sys.byteorder == "big",
            step=array[0].nbytes,
            data=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
        )
        return self._types.serialize_cdr(image, IMAGE)

    def _copies(self, writer: Writer, connections: Sequence[Connection]) -> dict[int, Connection]:
        """Add the recording's connections to the writer, by their id there; the publishers of one topic share one."""
        copies: dict[int, Connection] = {}
        for connection in connections:
            alike = next(c for c in connections if _kind(c) == _kind(connection))
            copies[connection.id] = copies.get(alike.id) or self._copied(writer, connection)
        return copies

    def _copied(self, writer: Writer, connection: Connection) -> Connection:
        definition, digest = connection.msgdef.data or None, connection.digest or None
        if definition is not None and digest is None:
            digest = type_hash(connection)
        ext = cast("ConnectionExtRosbag2", connection.ext)  # the other form is that of ROS 1
        if definition is None and connection.msgtype not in self._types.fielddefs:
            raise DatasetError(
                f"the recording does not say what {connection.msgtype} ({connection.topic}) is; convert it with "
                "'ros2 bag convert' on a machine that has this type"
            )
        return writer.add_connection(
            connection.topic,
            connection.msgtype,
            typestore=self._types,
            msgdef=definition,
            rihs01=digest,
            serialization_format=ext.serialization_format,
            offered_qos_profiles=ext.offered_qos_profiles,
        )

    def _added_connections(
        self, writer: Writer, images: Sequence[str], existing: set[str]
    ) -> dict[tuple[str, str, str], Connection]:
        added = {}
        for image in images:
            for index, head in enumerate(self._classes):
                for output in self._outputs:
                    name = "/".join(filter(None, (_namespace(image), "segmentation", head if index else "", output)))
                    if f"/{name}" in existing:
                        raise DatasetError(
                            f"the recording would get a second topic /{name}; segment one camera of each namespace, "
                            "in a recording that has no masks yet"
                        )
                    existing.add(f"/{name}")
                    added[image, head, output] = writer.add_connection(f"/{name}", IMAGE, typestore=self._types)
        return added


def choose_topics(connections: Sequence[Connection], wanted: Sequence[str]) -> list[str]:
    """The topics of the images to segment: those wanted, or the only one there is.

    Raises:
        DatasetError: a topic is absent or has no images; or none is named and there is not exactly one.
    """
    found = sorted({connection.topic for connection in connections if connection.msgtype in _READERS})
    videos = {c.topic: c.msgtype for c in connections if c.msgtype in VIDEO_TRANSPORTS}
    for topic in wanted:
        if topic not in found:
            what = f"video ({videos[topic]})" if topic in videos else "no images"
            raise DatasetError(f"the recording has {what} on {topic}; {_choice(found, videos)}")
    if not wanted and len(found) != 1:
        raise DatasetError(f"name the topics of the images to segment; {_choice(found, videos)}")
    return list(dict.fromkeys(wanted)) or found


def _choice(found: Sequence[str], videos: Mapping[str, str]) -> str:
    """What there is to segment, and what to do with video."""
    choice = f"it has images on: {', '.join(found) or 'none'}"
    for topic, message_type in videos.items():
        decoded = decoded_topic(topic, message_type)
        command = republish_command(topic, VIDEO_TRANSPORTS[message_type], decoded)
        choice += (
            f"; video on {topic} ({message_type}) must be decoded first: run '{command}', play the recording with "
            f"'ros2 bag play', and record {decoded} with 'ros2 bag record'"
        )
    return choice


def _with_results(
    group: list[_Record], results: Future[list[dict[str, _Published]]]
) -> Iterator[tuple[_Record, dict[str, _Published] | None]]:
    of_frames = iter(results.result())
    for record in group:
        yield record, None if record.rgb is None else next(of_frames)


def _namespace(image_topic: str) -> str:
    """``/front/image`` and ``/front/image/compressed`` -> ``front``, as the node names the outputs of its cameras."""
    return image_topic.removesuffix("/compressed").strip("/").rpartition("/")[0]


def _kind(connection: Connection) -> tuple[Any, ...]:
    """The properties by which a rosbag2 tells connections apart."""
    return connection.topic, connection.msgtype, connection.ext
