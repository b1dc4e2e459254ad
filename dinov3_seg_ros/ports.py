"""What the node subscribes to and publishes for one camera: topics, quality of service, messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.type_support import check_for_type_support
from sensor_msgs.msg import CompressedImage, Image

from dinov3_seg_ros.bundle import ClassesSection
from dinov3_seg_ros.errors import ParameterError
from dinov3_seg_ros.messages import compressed_to_rgb, fill_image, image_to_rgb, mask_encoding
from dinov3_seg_ros.overlay import blend_overlay, to_bgr

# Not on every robot, and neither its absence nor a broken build of it (which raises errors of many types) is a reason
# to go without masks: the names are a parameter of the node as well.
try:
    from vision_msgs.msg import LabelInfo, VisionClass

    check_for_type_support(LabelInfo)
except Exception:
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
        transport: a key of `TRANSPORTS`.
        receive: called with the camera's name and the message, in the executor's thread.
    """

    def __init__(self, node: LifecycleNode, camera: str, transport: str, receive: Callable[[str, Any], None]) -> None:
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
        self._publishers: list[Any] = []

        def publisher(message_type: type, name: str, qos: QoSProfile) -> Any:
            name = topic(camera, "segmentation", head, name)
            self._publishers.append(node.create_lifecycle_publisher(message_type, name, qos))
            return self._publishers[-1]

        try:
            self._mask = publisher(Image, "mask", OUTPUT_QOS)
            self._confidence = publisher(Image, "confidence", OUTPUT_QOS)
            self._overlay = publisher(Image, "overlay", OUTPUT_QOS)
            self._label_info = publisher(LabelInfo, "label_info", LATCHED_QOS) if LabelInfo else None
        except BaseException:
            self.close()
            raise

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes to anything that a frame is needed for."""
        return self.mask_wanted or self.confidence_wanted or self.overlay_wanted

    @property
    def mask_wanted(self) -> bool:
        """Whether anybody subscribes to the mask."""
        return self._mask.get_subscription_count() > 0

    @property
    def confidence_wanted(self) -> bool:
        """Whether anybody subscribes to the confidence."""
        return self._confidence.get_subscription_count() > 0

    @property
    def overlay_wanted(self) -> bool:
        """Whether anybody subscribes to the overlay."""
        return self._overlay.get_subscription_count() > 0

    def publish_labels(self, mask: np.ndarray | None, confidence: np.ndarray | None, header: Any) -> None:
        """Publish mask (H, W) and confidence (H, W), None for what nobody wants, with the frame's header as it came."""
        if mask is not None:
            self._mask.publish(fill_image(Image(), mask, mask_encoding(mask), header))
        if confidence is not None:
            self._confidence.publish(fill_image(Image(), confidence, "mono8", header))

    def make_overlay(self, labels: np.ndarray, rgb: np.ndarray, alpha: float, with_names: bool) -> np.ndarray:
        """The picture for the overlay topic, (H, W, 3) uint8 BGR."""
        names = self._classes.names if with_names else None
        return to_bgr(blend_overlay(rgb, labels, self._classes.palette, alpha, names))

    def publish_overlay(self, picture: np.ndarray, header: Any) -> None:
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
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()


def topic(*parts: str) -> str:
    """Join the non-empty parts of a relative topic name."""
    return "/".join(part for part in parts if part)


def camera_names(names: Sequence[str]) -> list[str]:
    """The parameter ``cameras`` without blanks; one nameless camera when nothing remains.

    Raises:
        ParameterError: two have the same name, or one cannot be part of a topic.
    """
    names = [name for name in names if name]
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", name, re.ASCII) or names.count(name) > 1:
            raise ParameterError(
                f"cameras holds '{name}'; each name must occur once, start with a letter, and consist of letters, "
                "digits and underscores"
            )
    return names or [""]
