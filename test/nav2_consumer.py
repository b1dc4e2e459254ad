"""A consumer with the rules of a Nav2 semantic costmap layer, which trusts what arrives and indexes it blindly.

Written from the behaviour of ros-navigation/semantic_segmentation_layer: mask and confidence come best effort and are
paired by exact stamp with each other and with a point cloud of the same width and height; neither encoding nor step is
looked at; frames are refused until the class names have arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.qos import qos_profile_sensor_data
from ros_graph import Graph
from sensor_msgs.msg import Image

from dinov3_seg_ros.ros.cameras.ports import LabelInfo
from dinov3_seg_ros.ros.endpoints.qos import LATCHED_QOS

UNLABELLED = 255


class Nav2Consumer:
    """Takes mask and confidence of one head.

    Args:
        graph: where it lives.
        prefix: of the topics, such as ``segmentation``.
        cloud_size: (height, width) of the point cloud that masks are laid over.
        class_names: class id -> name, where vision_msgs is not installed and LabelInfo cannot be received.

    Attributes:
        accepted: stamp -> class id of each pixel -> number of pixels, of frames that fulfil every rule.
        refused: what was wrong with the others.
    """

    def __init__(self, graph: Graph, prefix: str, cloud_size: tuple[int, int], class_names: Mapping[int, str]) -> None:
        self._height, self._width = cloud_size
        self.class_names = None if LabelInfo else class_names
        self.accepted: dict[tuple[int, int], dict[int, int]] = {}
        self.refused: list[str] = []
        self._waiting: dict[tuple[int, int], dict[str, Any]] = {}
        subscribe = graph.peer.create_subscription
        if LabelInfo:
            subscribe(LabelInfo, f"{prefix}/label_info", self._take_names, LATCHED_QOS)
            graph.spin_until(lambda: self.class_names, "the latched class names")
        subscribe(Image, f"{prefix}/mask", lambda m: self._take("mask", m), qos_profile_sensor_data)
        subscribe(Image, f"{prefix}/confidence", lambda m: self._take("confidence", m), qos_profile_sensor_data)

    def _take_names(self, message: Any) -> None:
        self.class_names = {entry.class_id: entry.class_name for entry in message.class_map}

    def _take(self, kind: str, message: Any) -> None:
        stamp = (message.header.stamp.sec, message.header.stamp.nanosec)
        pair = self._waiting.setdefault(stamp, {})
        pair[kind] = message
        if len(pair) == 2:
            del self._waiting[stamp]
            problem = self._problem_of(pair["mask"], pair["confidence"])
            if problem:
                self.refused.append(problem)
            else:
                self.accepted[stamp] = self._count(pair["mask"].data)

    def _problem_of(self, mask: Any, confidence: Any) -> str:
        if self.class_names is None:
            return "no class names yet"
        if (mask.height, mask.width) != (self._height, self._width):
            return f"the mask is {mask.width}x{mask.height}, the cloud {self._width}x{self._height}"
        for image in (mask, confidence):
            if len(image.data) != self._width * self._height:
                return f"{len(image.data)} bytes are not one for each point"
        for v in range(self._height):
            for u in range(self._width):
                label, certainty = (image.data[v * self._width + u] for image in (mask, confidence))
                if label == UNLABELLED and certainty:
                    return "an unlabelled pixel is confident and would evict a labelled one"
                if label != UNLABELLED and label not in self.class_names:
                    return f"class {label} has no name"
        if mask.header != confidence.header:
            return "mask and confidence differ in their header"
        return ""

    @staticmethod
    def _count(data: Any) -> dict[int, int]:
        return {label: data.count(label) for label in set(data)}
