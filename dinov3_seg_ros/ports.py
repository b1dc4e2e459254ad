"""What the node subscribes to and publishes for one camera: topics, quality of service, messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from dinov3_seg_ros.bundle import ClassesSection
from dinov3_seg_ros.errors import ParameterError
from dinov3_seg_ros.messages import compressed_to_rgb, fill_image, image_to_rgb, mask_encoding
from dinov3_seg_ros.overlay import blend_overlay, to_bgr
from dinov3_seg_ros.pipeline import HeadSegmentation

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not among the wheels, and not on every robot: the names are a parameter of the node as well
    LabelInfo = VisionClass = None

#: Only the newest frame counts, and a driver may publish best effort or reliable: both match.
INPUT_QOS = QoSProfile(
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
)
#: Reliable, so that both kinds of subscriber match.
OUTPUT_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
    history=HistoryPolicy.KEEP_LAST,
    depth=5,
)
LATCHED_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
)

# Parameter image_transport -> topic suffix, message type, and how its pixels are read.
TRANSPORTS = {
    "raw": ("image", Image, image_to_rgb),
    "compressed": ("image/compressed", CompressedImage, compressed_to_rgb),
}


class CameraInput:
    """The subscription to one camera.

    Args:
        node: the node that subscribes.
        camera: the camera's name, a prefix of its topics; empty for the only camera.
        transport: ``raw`` or ``compressed``.
        receive: called with the camera's name and the message, in the executor's thread.
    """

    def __init__(self, node: LifecycleNode, camera: str, transport: str, receive: Callable[[str, Any], None]) -> None:
        if transport not in TRANSPORTS:
            raise ParameterError(f"unknown image_transport '{transport}'; use one of: {', '.join(TRANSPORTS)}")
        suffix, message_type, self.to_rgb = TRANSPORTS[transport]
        self._node = node
        self._subscription = node.create_subscription(
            message_type, topic(camera, suffix), lambda message: receive(camera, message), INPUT_QOS
        )

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)


class HeadOutput:
    """The topics of one head for one camera.

    Args:
        node: the node that publishes.
        camera: prefix of the topics; empty for the only camera.
        head: the bundle's name as a further part of the topics; empty for the first head.
        classes: names and palette.
    """

    def __init__(self, node: LifecycleNode, camera: str, head: str, classes: ClassesSection) -> None:
        self._node, self._classes = node, classes

        def publisher(message_type: type, name: str, qos: QoSProfile) -> Any:
            return node.create_lifecycle_publisher(message_type, topic(camera, "segmentation", head, name), qos)

        self._mask = publisher(Image, "mask", OUTPUT_QOS)
        self._confidence = publisher(Image, "confidence", OUTPUT_QOS)
        self._overlay = publisher(Image, "overlay", OUTPUT_QOS)
        self._label_info = publisher(LabelInfo, "label_info", LATCHED_QOS) if LabelInfo else None

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes to anything that a frame is needed for."""
        return any(p.get_subscription_count() for p in (self._mask, self._confidence, self._overlay))

    @property
    def confidence_wanted(self) -> bool:
        """Whether anybody subscribes to the confidence."""
        return self._confidence.get_subscription_count() > 0

    @property
    def overlay_wanted(self) -> bool:
        """Whether anybody subscribes to the overlay."""
        return self._overlay.get_subscription_count() > 0

    def publish_labels(self, result: HeadSegmentation, header: Any) -> None:
        """Publish the mask and, when wanted, the confidence, each with the frame's header as it came."""
        if self._mask.get_subscription_count():
            self._mask.publish(fill_image(Image(), result.labels, mask_encoding(result.labels), header))
        if self.confidence_wanted:
            self._confidence.publish(fill_image(Image(), result.confidence, "mono8", header))

    def make_overlay(self, result: HeadSegmentation, rgb: Any, alpha: float, with_names: bool) -> Any:
        """The picture for the overlay topic, (H, W, 3) uint8 BGR."""
        names = self._classes.names if with_names else None
        return to_bgr(blend_overlay(rgb, result.labels, self._classes.palette, alpha, names))

    def publish_overlay(self, picture: Any, header: Any) -> None:
        """Publish a picture from `make_overlay`."""
        self._overlay.publish(fill_image(Image(), picture, "bgr8", header))

    def publish_label_info(self) -> None:
        """Publish the latched class names, where vision_msgs is installed."""
        if self._label_info is None:
            return
        message = LabelInfo()
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.class_map = [
            VisionClass(class_id=index, class_name=name) for index, name in enumerate(self._classes.names)
        ]
        self._label_info.publish(message)

    def close(self) -> None:
        """Remove the publishers."""
        for publisher in (self._mask, self._confidence, self._overlay, self._label_info):
            if publisher is not None:
                self._node.destroy_lifecycle_publisher(publisher)


def topic(*parts: str) -> str:
    """Join the non-empty parts of a relative topic name."""
    return "/".join(part for part in parts if part)


def camera_names(names: Sequence[str]) -> list[str]:
    """The parameter ``cameras`` without blanks; one nameless camera when nothing remains."""
    return [name for name in names if name] or [""]
