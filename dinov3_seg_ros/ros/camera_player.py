"""A camera node: publishes frames at a fixed rate, with the true masks beside them where they are known."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from dinov3_seg_ros.frames.sources import Frame
from dinov3_seg_ros.ros.cameras.messages import fill_image
from dinov3_seg_ros.ros.endpoints.qos import OUTPUT_QOS
from dinov3_seg_ros.support.errors import TransportError

_MATCHING_S = 1.0


class CameraPlayer(Node):
    """Publishes ``image`` (rgb8, best effort, as camera drivers do) and ``ground_truth`` (mono8) with equal headers."""

    def __init__(self, rate_hz: float) -> None:
        super().__init__("camera")
        self._period_s = 1.0 / rate_hz
        self._image = self.create_publisher(Image, "image", qos_profile_sensor_data)
        self._truth = self.create_publisher(Image, "ground_truth", OUTPUT_QOS)

    def wait_for_subscribers(self, count: int, timeout_s: float) -> None:
        """Return once ``count`` nodes subscribe to the image.

        Raises:
            TransportError: they did not appear in time.
        """
        deadline = time.monotonic() + timeout_s
        if self._image.get_subscription_count() < count:
            nodes = "1 node subscribes" if count == 1 else f"{count} nodes subscribe"
            print(f"waiting until {nodes} to {self._image.topic_name}", flush=True)
        while self._image.get_subscription_count() < count:
            if time.monotonic() > deadline:
                raise TransportError(
                    f"{self._image.get_subscription_count()} of {count} subscribers to {self._image.topic_name} "
                    f"appeared within {timeout_s:.0f} s; is the node active?"
                )
            time.sleep(0.05)
        # A publisher discovers a subscriber a moment before the subscriber discovers it; until then images are lost.
        time.sleep(_MATCHING_S)

    def play(self, frames: Iterable[Frame], seconds: float) -> int:
        """Publish frames at the rate until they or the time run out; return how many were sent.

        The clock starts at once: the first frame, which may take seconds to render or decode, should be ready.
        """
        start = time.monotonic()
        sent = 0
        for rgb, mask in frames:
            wait = start + sent * self._period_s - time.monotonic()
            time.sleep(max(wait, 0.0))
            if time.monotonic() - start > seconds:
                break
            self.send(rgb, mask)
            sent += 1
        return sent

    def send(self, rgb: np.ndarray, mask: np.ndarray | None = None) -> Header:
        """Publish a frame (H, W, 3) uint8, and its true mask (H, W) uint8 if known, stamped now; return the header."""
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id="camera_optical_frame")
        if mask is not None:
            self._truth.publish(fill_image(Image(), mask, "mono8", header))
        self._image.publish(fill_image(Image(), rgb, "rgb8", header))
        return header
