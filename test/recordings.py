"""Small recordings for the tests, written and read by rosbags."""

from __future__ import annotations

import cv2
import numpy as np
import yaml
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

from dinov3_seg_ros.bag.message_types import known_types

TYPES = known_types()
IMAGE, COMPRESSED, TEXT = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "std_msgs/msg/String"
SIZE = (24, 32)


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)


def header(number):
    stamp = TYPES.types["builtin_interfaces/msg/Time"](sec=1000 + number, nanosec=7)
    return TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id=f"camera {number}")


def image(number, encoding="rgb8", padding=0):
    rows = np.hstack((picture(number).reshape(SIZE[0], -1), np.full((SIZE[0], padding), 9, np.uint8)))
    return TYPES.types[IMAGE](
        header=header(number), height=SIZE[0], width=SIZE[1], encoding=encoding, is_bigendian=0, step=rows.shape[1],
        data=rows.reshape(-1),
    )  # fmt: skip


def image_of(rgb, stamp):
    """An image of a stamp in nanoseconds."""
    time = TYPES.types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
    return TYPES.types[IMAGE](
        header=TYPES.types["std_msgs/msg/Header"](stamp=time, frame_id="camera"), height=rgb.shape[0],
        width=rgb.shape[1], encoding="rgb8", is_bigendian=0, step=rgb[0].nbytes, data=rgb.reshape(-1),
    )  # fmt: skip


def compressed(number):
    data = cv2.imencode(".png", picture(number)[:, :, ::-1])[1]
    return TYPES.types[COMPRESSED](header=header(number), format="png", data=data)


def dark_and_bright(kind, number, most):
    """An image of 16 bits, black on the left and of one value on the right."""
    values = np.zeros(SIZE, np.uint16)
    values[:, SIZE[1] // 2 :] = most
    if kind == COMPRESSED:
        data = cv2.imencode(".png", values)[1]
        return TYPES.types[COMPRESSED](header=header(number), format="mono16; png compressed ", data=data)
    return TYPES.types[IMAGE](
        header=header(number), height=SIZE[0], width=SIZE[1], encoding="mono16", is_bigendian=0, step=2 * SIZE[1],
        data=values.view(np.uint8).reshape(-1),
    )  # fmt: skip


#: The quality of service of camera drivers.
SENSOR_DATA = Qos(
    QosHistory.KEEP_LAST, 5, QosReliability.BEST_EFFORT, QosDurability.VOLATILE, QosTime(0, 0), QosTime(0, 0),
    QosLiveliness.AUTOMATIC, QosTime(0, 0), False,
)  # fmt: skip


def write_bag(path, messages, storage="sqlite3", types=TYPES, compression=CompressionMode.NONE):
    """A recording of (topic, type, message), one every millisecond; bytes stand for themselves."""
    plugin = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}[storage]
    writer = Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        kinds = dict.fromkeys((topic, kind) for topic, kind, _ in messages)
        connections = {
            topic: writer.add_connection(topic, kind, typestore=types, offered_qos_profiles=[SENSOR_DATA])
            for topic, kind in kinds
        }
        for number, (topic, kind, message) in enumerate(messages):
            raw = message if isinstance(message, bytes) else TYPES.serialize_cdr(message, kind)
            writer.write(connections[topic], 10**6 * (1 + number), raw)
    return path


def metadata_of(path):
    """What the metadata.yaml of a recording says."""
    return yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]


def write_metadata(path, metadata):
    (path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": metadata}))


def hide_first_topic(path):
    """Describe the first topic in the metadata.yaml of a recording in another way than its storage does."""
    metadata = metadata_of(path)
    metadata["topics_with_message_count"][0]["topic_metadata"]["offered_qos_profiles"] = []
    write_metadata(path, metadata)


def raw_contents(path):
    """[(topic, recording time, bytes)], in order."""
    with Reader(path) as reader:
        return [(connection.topic, timestamp, bytes(raw)) for connection, timestamp, raw in reader.messages()]


def contents(path):
    """Topic -> [(recording time, message)]."""
    found = {}
    with Reader(path) as reader:
        for connection, timestamp, raw in reader.messages():
            found.setdefault(connection.topic, []).append((timestamp, TYPES.deserialize_cdr(raw, connection.msgtype)))
    return found


def pixels(message):
    return message.data.reshape(message.height, message.width, -1).squeeze()
