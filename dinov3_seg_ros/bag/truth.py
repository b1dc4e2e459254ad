"""Put labelled frames back into a recording, as topics of ground truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinov3_seg_ros.bag.images import (
    FrameName,
    Skipped,
    deserialised,
    image_topics,
    name_of_frame,
    output_topic,
    serialised_image,
)
from dinov3_seg_ros.bag.message_types import LABEL_INFO, VISION_CLASS, known_types
from dinov3_seg_ros.bag.recordings import (
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
from dinov3_seg_ros.frames.compression import compressed_size
from dinov3_seg_ros.frames.encodings import mask_encoding
from dinov3_seg_ros.frames.sources import decode_pixels
from dinov3_seg_ros.ros.endpoints.image_types import IMAGE
from dinov3_seg_ros.support.errors import DatasetError, MessageError, one_line
from dinov3_seg_ros.support.yaml_text import parse_yaml

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos
    from rosbags.rosbag2 import Writer
    from rosbags.typesys.store import Typestore

#: In a folder of masks: the names of the classes, in the order of their ids.
CLASSES_FILE = "classes.yaml"


@dataclass
class Insertion:
    """What was inserted.

    Attributes:
        masks: number of masks, by topic.
        classes: whether the names of the classes were found, and inserted too.
        skipped: masks that belong to no image of the recording.
    """

    masks: Counter[str] = field(default_factory=Counter)
    classes: bool = False
    skipped: Skipped = field(default_factory=Skipped)


def truth_topics(image_topic: str) -> tuple[str, str]:
    """The topics of true masks and of their class names, for the images of a topic."""
    return output_topic(image_topic, "truth"), output_topic(image_topic, "truth", "label_info")


def insert(source: Path, labels: Path, target: Path, storage: str | None = None, track: Track = untracked) -> Insertion:
    """Write a recording with everything in ``source``, and the masks of its images as ground truth.

    A mask gets the header and the recording time of its image. Its values are kept: mono8 for a mask of 8 bits, mono16
    for one of 16.

    Args:
        source: folder (or single file) of a rosbag2.
        labels: folder of masks with a class id in every pixel (255, with 16 bits 65535: no class), each of its image's
            size: PNG files with the names that `extraction.extract` gave the images. `CLASSES_FILE` may name the
            classes.
        target: folder to make; it appears when it is complete.
        storage: one of `recordings.STORAGES`; None for that of ``source``.
        track: see `recordings.Track`.

    Raises:
        DatasetError: the recording or a mask cannot be read, a mask does not fit its image or the classes, or no mask
            belongs to an image.
        OutputError: ``target`` exists, lies in ``source``, or cannot be written.
    """
    masks = {path.stem: path for path in sorted(labels.glob("*.png"))}
    if not masks:
        raise DatasetError(
            f"{labels} holds no PNG; what a labelling tool wrote becomes masks with: python -m training.export_masks "
            f"FOLDER --output {labels}"
        )
    classes = _read_classes(labels / CLASSES_FILE)
    done = Insertion(classes=classes is not None)
    named = {name.topic for name in map(FrameName.parse, masks) if name is not None}
    types, waiting = known_types(), dict(masks)
    with open_recording(source) as reader, new_recording(target, source, storage or storage_of(source)) as writer:
        copies = copy_connections(writer, reader.connections, types)
        copy_custom_data(writer, reader)
        existing = {connection.topic for connection in reader.connections}
        topics = [topic for topic in image_topics(reader.connections) if topic in named]
        truths = {topic: _TruthTopic(writer, types, topic, classes, existing) for topic in topics}
        for connection, recorded, raw in track(messages_of(reader, source), reader.message_count):
            writer.write(copies[connection.id], recorded, raw)
            if connection.topic not in truths:
                continue
            try:
                message = deserialised(types, connection.msgtype, raw)
                path = waiting.pop(str(name_of_frame(connection.topic, message.header, recorded)), None)
                if path is not None:
                    mask = _read_mask(path, _size_of(message), classes)
                    truths[connection.topic].write(mask, message.header, recorded)
                    done.masks[truth_topics(connection.topic)[0]] += 1
            except MessageError as error:
                done.skipped.add(error.fault, f"{connection.topic} at {recorded} ns: {error}")
        for stem, path in waiting.items():
            done.skipped.add(*_why_unused(FrameName.parse(stem), path, topics))
        if not done.masks:
            raise DatasetError(
                f"no mask in {labels} belongs to an image of {source}; {'; '.join(done.skipped.lines())}"
            )
    return done


class _TruthTopic:
    """The ground truth of one topic of images in a new recording; its topics appear with the first mask."""

    def __init__(
        self, writer: Writer, types: Typestore, image_topic: str, classes: Sequence[str] | None, existing: set[str]
    ) -> None:
        self._writer, self._types, self._classes, self._existing = writer, types, classes, existing
        self._names = truth_topics(image_topic)
        self._masks: Connection | None = None

    def write(self, mask: np.ndarray, header: Any, recorded: int) -> None:
        """Write a mask (H, W), uint8 or uint16, with the header and the recording time of its image."""
        if self._masks is None:
            self._masks = add_topic(self._writer, self._types, self._names[0], IMAGE, self._existing)
            if self._classes is not None:
                self._write_classes(self._classes, header, recorded)
        self._writer.write(self._masks, recorded, serialised_image(self._types, mask, mask_encoding(mask), header))

    def _write_classes(self, classes: Sequence[str], header: Any, recorded: int) -> None:
        entry, info = self._types.types[VISION_CLASS], self._types.types[LABEL_INFO]
        class_map = [entry(class_id=index, class_name=name) for index, name in enumerate(classes)]
        message = info(header=header, class_map=class_map, threshold=0.0)
        topic = add_topic(self._writer, self._types, self._names[1], LABEL_INFO, self._existing, [_latched()])
        self._writer.write(topic, recorded, self._types.serialize_cdr(message, LABEL_INFO))


def _latched() -> Qos:
    """The quality of service of class names: reliable, transient local; players keep to it."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    unset = QosTime(0, 0)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL,
        deadline=unset,
        lifespan=unset,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=unset,
        avoid_ros_namespace_conventions=False,
    )


def _read_classes(path: Path) -> list[str] | None:
    """The names of the classes; None where there is no such file.

    Raises:
        DatasetError: it holds something else.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content) or not content:
        raise DatasetError(
            f"{path} must hold a list of class names, in the order of their ids; write it so, or remove it"
        )
    return content


def _read_mask(path: Path, size: tuple[int, int], classes: Sequence[str] | None) -> np.ndarray:
    """A mask (H, W), uint8 or uint16, of its image's size (height, width).

    Raises:
        DatasetError: it cannot be read, is no mask of class ids, or does not fit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    depth, colour_type = content[24:25], content[25:26]  # of the first chunk, which lies at a fixed place
    if not content.startswith(b"\x89PNG") or depth not in (b"\x08", b"\x10") or colour_type != b"\0":
        raise DatasetError(
            f"{path} is no mask of class ids: it must be a grey PNG of 8 or 16 bits, without palette; other masks "
            "become such ones with: python -m training.export_masks"
        )
    mask = decode_pixels(content, path)
    if mask.shape != size:
        raise DatasetError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} pixels and its image in the recording {size[1]}x{size[0]}; a "
            "mask must have the size of its image"
        )
    if classes is not None:
        unknown = np.setdiff1d(mask, [*range(len(classes)), np.iinfo(mask.dtype).max])
        if unknown.size:
            raise DatasetError(
                f"{path} has the value {unknown[0]}, but {CLASSES_FILE} names {len(classes)} classes, 0 to "
                f"{len(classes) - 1}; correct one of them"
            )
    return mask


def _size_of(message: Any) -> tuple[int, int]:
    """Height and width of an image, pixels.

    Raises:
        MessageError: the data have no readable header.
    """
    if hasattr(message, "format"):
        return compressed_size(memoryview(message.data), f"compressed image ({len(message.data)} bytes)")
    return message.height, message.width


def _why_unused(name: FrameName | None, path: Path, topics: Collection[str]) -> tuple[str, str]:
    """The reason, and which mask it is."""
    if name is None:
        return "not named by topic and stamp", f"{path}; keep the names of the extracted images"
    if name.topic not in topics:
        return "no images on this topic", f"{path} of {name.topic}"
    return "no image of this stamp", f"{path} of {name.topic}"
