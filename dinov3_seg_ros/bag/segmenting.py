"""Adds the outputs of a Segmenter to recordings."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinov3_seg_ros.bag.recordings import messages_of, new_recording, open_recording, storage_of
from dinov3_seg_ros.frames.encodings import mask_encoding
from dinov3_seg_ros.frames.output_classes import (
    ClassList,
    OutputClasses,
    check_class_list,
)
from dinov3_seg_ros.frames.overlay import blend_overlay, to_bgr
from dinov3_seg_ros.options import MAX_PIXELS
from dinov3_seg_ros.ros.messages import read_compressed_image, read_image
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import (
    DatasetError,
    MessageError,
)

if TYPE_CHECKING:
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Writer

OUTPUTS = ("mask", "confidence", "overlay")

_IMAGE = "sensor_msgs/msg/Image"
_READERS: dict[str, Callable[[Any, int], np.ndarray]] = {
    _IMAGE: read_image,
    "sensor_msgs/msg/CompressedImage": read_compressed_image,
}
# Messages that are only copied wait for the frames beside them, but no longer than until they hold so many bytes.
_MOST_COPIED = 64 << 20


class _Record(NamedTuple):
    """One message of the recording; with its picture, (H, W, 3) uint8 RGB, where it is to be segmented."""

    connection: Connection
    timestamp: int
    raw: bytes
    header: Any = None
    rgb: np.ndarray | None = None


class _Published(NamedTuple):
    """What one head says of one frame: labels (H, W) and confidence (H, W) uint8, or None where it is not wanted."""

    labels: np.ndarray
    confidence: np.ndarray | None


class BagSegmenter:
    """Adds the outputs of a Segmenter to recordings.

    Args:
        segmenter: its ``max_batch`` frames go through the backbone at once.
        class_list: what to publish; None for the bundles' own classes.
        outputs: which of `OUTPUTS` to add; once each.
        mask_size: as in `Segmenter.segment`.
        threshold: the least confidence (1/255) of a labelled pixel.
        alpha: weight of the colours in the overlay, 0..1.
        with_names: whether the overlay has class names.
        max_pixels: an image that claims more is copied only.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        class_list: ClassList | None = None,
        outputs: Sequence[str] = ("mask", "overlay"),
        mask_size: str | tuple[int, int] = "source",
        threshold: int = 0,
        alpha: float = 0.5,
        with_names: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        from rosbags.typesys import Stores, get_typestore

        of_bundles = {name: manifest.classes for name, manifest in segmenter.manifests.items()}
        check_class_list(class_list or ClassList(), list(of_bundles.values()))
        self._classes = {name: OutputClasses.of(classes, class_list) for name, classes in of_bundles.items()}
        self._segmenter, self._outputs, self._mask_size = segmenter, tuple(dict.fromkeys(outputs)), mask_size
        self._threshold, self._alpha, self._with_names, self._max_pixels = threshold, alpha, with_names, max_pixels
        # Images and headers are the same in all distributions.
        self._types = get_typestore(Stores.ROS2_JAZZY)

    def process(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        topics: Sequence[str] = (),
        storage: str | None = None,
        track: Callable[[Iterable[Any], int], Iterable[Any]] = lambda messages, count: messages,
    ) -> dict[str, int]:
        """Write a recording with everything in ``source`` and the outputs.

        Args:
            source: folder (or single file) of a rosbag2.
            target: folder to make; appears only once it is complete.
            topics: of the images to segment; may be left out where there is one.
            storage: one of `STORAGES`; None for that of ``source``.
            track: wraps the messages on their way, to show progress; called with them and their number.

        Returns:
            Number of frames ``segmented``, and of those dropped under each fault.

        Raises:
            DatasetError: the recording cannot be read, or its images are not unambiguous.
            OutputError: ``target`` exists or cannot be written.
        """
        source, target = Path(source), Path(target)
        with open_recording(source) as reader, new_recording(target, storage or storage_of(reader)) as writer:
            images = choose_topics(reader.connections, topics)
            copies = self._copies(writer, reader.connections)
            added = self._added_connections(writer, images, {c.topic for c in reader.connections})
            counts: Counter[str] = Counter()
            messages = track(messages_of(reader, source), reader.message_count)
            for record, result in self._segmented(self._read(messages, images, counts)):
                writer.write(copies[record.connection.id], record.timestamp, record.raw)
                for head, published in (result or {}).items():
                    for output, message in self._messages(head, published, record):
                        connection = added[record.connection.topic, head, output]
                        writer.write(connection, record.timestamp, message)
                counts["segmented"] += result is not None
            return dict(counts)

    def _read(
        self, messages: Iterable[tuple[Connection, int, bytes]], images: Sequence[str], counts: Counter[str]
    ) -> Iterator[_Record]:
        for connection, timestamp, raw in messages:
            record = _Record(connection, timestamp, raw)
            if connection.topic in images:
                try:
                    message = self._message(connection.msgtype, raw)
                    rgb = _READERS[connection.msgtype](message, self._max_pixels)
                    record = record._replace(header=message.header, rgb=rgb)
                except MessageError as error:
                    counts[error.fault] += 1
            yield record

    def _message(self, kind: str, raw: bytes) -> Any:
        try:
            return self._types.deserialize_cdr(raw, kind)
        except Exception as error:  # which types, differs among releases of rosbags
            raise MessageError("damaged message", f"a message is not a {kind}: {error}") from error

    def _segmented(self, records: Iterable[_Record]) -> Iterator[tuple[_Record, dict[str, _Published] | None]]:
        """Records in order, each with its results; reading and writing go on while the network works."""
        with ThreadPoolExecutor(1) as network:
            waiting: tuple[list[_Record], Future[Any]] | None = None
            for group in self._groups(records):
                following = group, network.submit(self._segment, [r.rgb for r in group if r.rgb is not None])
                if waiting:
                    yield from _with_results(*waiting)
                waiting = following
            if waiting:
                yield from _with_results(*waiting)

    def _groups(self, records: Iterable[_Record]) -> Iterator[list[_Record]]:
        """Records in a row: as many frames as go through the backbone at once, fewer where much lies between them."""
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

    def _segment(self, images: list[np.ndarray]) -> list[dict[str, _Published]]:
        return [
            {name: self._publish(name, head) for name, head in result.heads.items()}
            for result in self._segmenter.segment(images, size=self._mask_size)
        ]

    def _publish(self, name: str, head: Any) -> _Published:
        classes = self._classes[name]
        if "confidence" in self._outputs:
            return _Published(*classes.labels_and_confidence(head, self._threshold))
        return _Published(classes.labels(head, self._threshold), None)

    def _messages(self, head: str, published: _Published, record: _Record) -> Iterator[tuple[str, memoryview]]:
        """The serialised outputs of one head for one frame."""
        for output in self._outputs:
            if output == "mask":
                array, encoding = published.labels, mask_encoding(published.labels)
            elif output == "confidence":
                array, encoding = published.confidence, "mono8"
            else:
                classes = self._classes[head]
                names = classes.names if self._with_names else None
                overlay = blend_overlay(record.rgb, published.labels, classes.palette, self._alpha, names)
                array, encoding = to_bgr(overlay), "bgr8"
            yield output, self._serialised(array, encoding, record.header)

    def _serialised(self, array: np.ndarray, encoding: str, header: Any) -> memoryview:
        image = self._types.types[_IMAGE](
            header=header,
            height=array.shape[0],
            width=array.shape[1],
            encoding=encoding,
            is_bigendian=sys.byteorder == "big",
            step=array[0].nbytes,
            data=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
        )
        return self._types.serialize_cdr(image, _IMAGE)

    def _copies(self, writer: Writer, connections: Sequence[Connection]) -> dict[int, Connection]:
        """The writer's connection for each of the recording's, by its id; several publishers of a topic share one."""
        copies: dict[int, Connection] = {}
        for connection in connections:
            alike = next(c for c in connections if _kind(c) == _kind(connection))
            copies[connection.id] = copies.get(alike.id) or self._copied(writer, connection)
        return copies

    def _copied(self, writer: Writer, connection: Connection) -> Connection:
        definition, type_hash = connection.msgdef.data or None, connection.digest or None
        if definition is not None and type_hash is None:
            type_hash = type_hash(connection)
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
            rihs01=type_hash,
            serialization_format=connection.ext.serialization_format,
            offered_qos_profiles=connection.ext.offered_qos_profiles,
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
                    added[image, head, output] = writer.add_connection(f"/{name}", _IMAGE, typestore=self._types)
        return added


def choose_topics(connections: Sequence[Connection], wanted: Sequence[str]) -> list[str]:
    """Topics of the images to segment: those wanted, or the only one there is.

    Raises:
        DatasetError: one is not there, or is not of images; or none is named and there is not exactly one.
    """
    found = sorted({connection.topic for connection in connections if connection.msgtype in _READERS})
    for topic in wanted:
        if topic not in found:
            raise DatasetError(f"the recording has no images on {topic}; it has: {', '.join(found) or 'none'}")
    if not wanted and len(found) != 1:
        raise DatasetError(f"name the topics of the images to segment; the recording has: {', '.join(found) or 'none'}")
    return list(dict.fromkeys(wanted)) or found


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
    """What a rosbag2 tells connections apart by."""
    return connection.topic, connection.msgtype, connection.ext
