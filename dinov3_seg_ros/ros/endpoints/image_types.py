"""The message types that carry pictures, and what to do with those that the node does not read. Imports no rclpy."""

from __future__ import annotations

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
#: The transport of image_transport that decodes a type of video packets.
VIDEO_TRANSPORTS = {
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket": "ffmpeg",
    "foxglove_msgs/msg/CompressedVideo": "foxglove",
    "theora_image_transport/msg/Packet": "theora",
}
# Transports whose packets have the type of compressed images; the last part of their topics' names tells them.
_PACKED_IMAGES = ("compressedDepth", "zstd")
#: All types that carry pictures.
PICTURE_TYPES = (IMAGE, COMPRESSED_IMAGE, *VIDEO_TRANSPORTS)


def how_to_read(topic: str, found: str, wanted: str, name: str) -> str:
    """How to make the node read a topic, in a sentence without a full stop.

    Args:
        topic: its full name.
        found: the type of its messages.
        wanted: the type that the node reads as it is set now, `IMAGE` or `COMPRESSED_IMAGE`.
        name: of the node's image topic before remapping, without the transport, such as ``front/image``.
    """
    base, _, last = topic.rpartition("/")
    transport = _transport_of(topic, found)
    if transport == "compressedDepth":
        return f"{topic} holds depth, which cannot be segmented; remap {name} to a topic with colour images"
    if transport:
        decoded = decoded_topic(topic, found)
        set_raw = "" if wanted == IMAGE else "set image_transport:=raw and "
        return f"decode it with '{republish_command(topic, transport, decoded)}', then {set_raw}remap {name}:={decoded}"
    if found == IMAGE:
        return f"{'' if wanted == IMAGE else 'set image_transport:=raw and '}remap {name}:={topic}"
    if found == COMPRESSED_IMAGE:
        remap = f"{name}:={base}" if last == "compressed" else f"{name}/compressed:={topic}"
        return f"{'' if wanted == COMPRESSED_IMAGE else 'set image_transport:=compressed and '}remap {remap}"
    return f"remap {name} to a topic with images"


def decoded_topic(topic: str, message_type: str) -> str:
    """The topic on which we propose to publish what a topic of packets is decoded to.

    It is beside the packets' base topic: the calibration is looked for beside the images.
    """
    return f"{topic.removesuffix(f'/{_transport_of(topic, message_type)}') or topic}_decoded"


def republish_command(topic: str, transport: str, decoded: str) -> str:
    """The command that decodes a topic of one of image_transport's transports into images on another topic."""
    # Humble takes the transports by their place and ignores the parameters; later distributions the other way round.
    return (
        f"ros2 run image_transport republish {transport} raw --ros-args -p in_transport:={transport} "
        f"-p out_transport:=raw -r in/{transport}:={topic} -r out:={decoded}"
    )


def _transport_of(topic: str, message_type: str) -> str:
    """The transport that decodes a topic of packets; empty for images as they are, and JPEG or PNG."""
    last = topic.rpartition("/")[2]
    return VIDEO_TRANSPORTS.get(message_type, last if last in _PACKED_IMAGES else "")
