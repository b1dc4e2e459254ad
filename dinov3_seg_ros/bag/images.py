"""The images of a recording: which topics have them, how they are read, named and written."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from dinov3_seg_ros.frames.compression import has_16_bits
from dinov3_seg_ros.frames.encodings import ENCODINGS_OF_16_BITS
from dinov3_seg_ros.frames.value_range import ValueScale
from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.ros.cameras.messages import read_compressed_image, read_image
from dinov3_seg_ros.ros.endpoints.image_types import (
    COMPRESSED_IMAGE,
    IMAGE,
    VIDEO_TRANSPORTS,
    decoded_topic,
    republish_command,
)
from dinov3_seg_ros.support.errors import DatasetError, MessageError, first_of

if TYPE_CHECKING:
    from rosbags.interfaces import Connection
    from rosbags.typesys.store import Typestore

_READERS: dict[str, Callable[[Any, int, ValueScale], np.ndarray]] = {
    IMAGE: read_image,
    COMPRESSED_IMAGE: read_compressed_image,
}
_HAVE_16_BITS: dict[str, Callable[[Any], bool]] = {
    IMAGE: lambda message: message.encoding in ENCODINGS_OF_16_BITS,
    COMPRESSED_IMAGE: lambda message: has_16_bits(memoryview(message.data)),
}
# What may be in the name of a file, apart from "/", which becomes "-". ROS 2 allows no other signs in topics.
_OTHER_SIGNS = re.compile(r"[^A-Za-z0-9_/]")
_FRAME_NAME = re.compile(r"([A-Za-z0-9_%-]+)-(\d{19})")


class FrameName(NamedTuple):
    """What tells an image of a recording from all others; as text it is the name of a file, which `parse` reads.

    ``/front/image_raw`` at 1700000000.5 s is ``front-image_raw-1700000000500000000``. Sorted by name, the images of a
    topic are sorted by time.

    Attributes:
        topic: full name.
        stamp: nanoseconds, of at most 19 digits.
    """

    topic: str
    stamp: int

    def __str__(self) -> str:
        escaped = _OTHER_SIGNS.sub(lambda sign: "".join(f"%{byte:02X}" for byte in sign[0].encode()), self.topic)
        return f"{escaped.removeprefix('/').replace('/', '-')}-{self.stamp:019d}"

    @classmethod
    def parse(cls, text: str) -> FrameName | None:
        """The name that a text stands for; None where it stands for none."""
        found = _FRAME_NAME.fullmatch(text)
        if found is None:
            return None
        name = cls(f"/{unquote(found[1].replace('-', '/'))}", int(found[2]))
        return name if str(name) == text else None


class ImageReader:
    """Reads images from serialised messages.

    Args:
        types: that know them.
        topics: of the images. The 16-bit values of each are scaled by a range of their own.
        max_pixels: larger images are refused.
        value_range: which 16-bit values are black and white.
        is_whole: whether it reads or passes over all images of the topics; see `ValueScale`.
    """

    def __init__(
        self,
        types: Typestore,
        topics: Sequence[str],
        max_pixels: int,
        value_range: ValueRange,
        is_whole: bool = True,
    ) -> None:
        self._types, self._max_pixels = types, max_pixels
        self._learns = value_range == "auto" and is_whole
        self._scales = {topic: ValueScale(value_range, topic, is_whole) for topic in topics}

    def message(self, connection: Connection, raw: bytes) -> Any:
        """A message, not yet decoded.

        Raises:
            MessageError: it is damaged.
        """
        return deserialised(self._types, connection.msgtype, raw)

    def rgb(self, connection: Connection, message: Any) -> np.ndarray:
        """The pixels of a message as (H, W, 3) uint8 RGB.

        Raises:
            MessageError: the message cannot be read.
        """
        return _READERS[connection.msgtype](message, self._max_pixels, self._scales[connection.topic])

    def pass_over(self, connection: Connection, message: Any) -> None:
        """Learn the range of 16-bit values from an image that is not wanted, as from all others of its topic."""
        if self._learns and _HAVE_16_BITS[connection.msgtype](message):
            with contextlib.suppress(MessageError):
                self.rgb(connection, message)


class Skipped:
    """What was left out, by reason.

    Attributes:
        counts: how often, by reason.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, details: str) -> None:
        """Count one; ``details`` say what it was."""
        self.counts[reason] += 1
        self._first.setdefault(reason, details)

    def lines(self) -> list[str]:
        """The same for people, with the first of each reason."""
        return [f"skipped: {number} ({reason}), first {self._first[reason]}" for reason, number in self.counts.items()]


def deserialised(types: Typestore, kind: str, raw: bytes) -> Any:
    """A message from its bytes.

    Raises:
        MessageError: they are damaged.
    """
    try:
        return types.deserialize_cdr(raw, kind)
    except Exception as error:  # the types differ among releases of rosbags
        raise MessageError("damaged message", f"a message is not a {kind}: {error}") from error


def name_of_frame(topic: str, header: Any, recorded: int) -> FrameName:
    """The name of an image: by the stamp of its header; where a driver leaves that 0, by the recording time.

    Args:
        topic: full name.
        header: std_msgs/Header.
        recorded: recording time, nanoseconds.

    Raises:
        MessageError: the stamp is before 1970.
    """
    stamp = 10**9 * header.stamp.sec + header.stamp.nanosec or recorded
    if stamp < 0:
        raise MessageError("negative stamp", f"the stamp is {header.stamp.sec} s; the camera's clock must be set")
    return FrameName(topic, stamp)


def serialised_image(types: Typestore, array: np.ndarray, encoding: str, header: Any) -> memoryview:
    """A sensor_msgs/Image as bytes.

    Args:
        types: that know it.
        array: (H, W) or (H, W, C), uint8 or uint16.
        encoding: the name of its layout.
        header: std_msgs/Header, used as it is.
    """
    image = types.types[IMAGE](
        header=header,
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=sys.byteorder == "big",
        step=array[0].nbytes,
        data=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
    )
    return types.serialize_cdr(image, IMAGE)


def image_topics(connections: Sequence[Connection]) -> list[str]:
    """The topics of images that can be read, in the order of their names."""
    return sorted({connection.topic for connection in connections if connection.msgtype in _READERS})


def choose_topics(connections: Sequence[Connection], wanted: Sequence[str]) -> list[str]:
    """The topics of the images to read: those wanted, or the only one there is.

    Raises:
        DatasetError: a topic is absent or has no images; or none is named and there is not exactly one.
    """
    found = image_topics(connections)
    videos = {c.topic: c.msgtype for c in connections if c.msgtype in VIDEO_TRANSPORTS}
    for topic in wanted:
        if topic not in found:
            what = f"video ({videos[topic]})" if topic in videos else "no images"
            raise DatasetError(f"the recording has {what} on {topic}; {_choice(found, videos)}")
    if not wanted and len(found) != 1:
        topics = first_of(sorted({connection.topic for connection in connections}), most=10)
        what = "name the topics of the images with --topics" if found else f"the recording's topics: {topics or 'none'}"
        raise DatasetError(f"{what}; {_choice(found, videos)}")
    return list(dict.fromkeys(wanted)) or found


def output_topic(image_topic: str, *parts: str) -> str:
    """A topic of outputs in the namespace of an image, as the node names them.

    ``/front/image`` and ``/front/image/compressed`` with ``mask`` -> ``/front/segmentation/mask``.
    """
    namespace = image_topic.removesuffix("/compressed").strip("/").rpartition("/")[0]
    return "/" + "/".join(filter(None, (namespace, "segmentation", *parts)))


def _choice(found: Sequence[str], videos: Mapping[str, str]) -> str:
    """What there is to read, and what to do with video."""
    choice = f"it has images on: {', '.join(found) or 'none'}"
    for topic, message_type in videos.items():
        decoded = decoded_topic(topic, message_type)
        command = republish_command(topic, VIDEO_TRANSPORTS[message_type], decoded)
        choice += (
            f"; video on {topic} ({message_type}) must be decoded first: run '{command}', play the recording with "
            f"'ros2 bag play', and record {decoded} with 'ros2 bag record'"
        )
    return choice
