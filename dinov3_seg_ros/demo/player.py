"""A camera: publishes the frames of a source at a fixed rate, with the true masks beside them where they are known.

``python -m dinov3_seg_ros.demo.player --help``
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from dinov3_seg_ros.demo.sources import Frame, open_source
from dinov3_seg_ros.errors import SegmentationError, TransportError
from dinov3_seg_ros.messages import fill_image
from dinov3_seg_ros.qos import OUTPUT_QOS
from dinov3_seg_ros.signals import ignore_until_exit, interruptible, leave_ending_to_rclpy
from dinov3_seg_ros.transport import configure_transport, keep_freed_memory, remove_unfinished_segments

_MATCHING_S = 1.0


class Player(Node):
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
        while self._image.get_subscription_count() < count:
            if time.monotonic() > deadline:
                raise TransportError(
                    f"{self._image.get_subscription_count()} of {count} subscribers to {self._image.topic_name} "
                    f"appeared within {timeout_s:.0f} s; is the node active?"
                )
            time.sleep(0.05)
        # A publisher knows of a subscriber a moment before the subscriber knows of it; what is sent between is lost.
        time.sleep(_MATCHING_S)

    def play(self, frames: Iterable[Frame], seconds: float) -> int:
        """Publish frames at the rate until they or the time run out; return how many were sent."""
        frames = iter(frames)
        first = next(frames, None)  # drawing or decoding it may take seconds; the clock starts when it is there
        start = time.monotonic()
        sent = 0
        for rgb, mask in itertools.chain([] if first is None else [first], frames):
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


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what the camera shows."""
    parser.add_argument(
        "--source", default="scenes", help="'scenes', a folder of images, a video file, a webcam's number"
    )
    parser.add_argument("--masks", type=Path, help="folder of index masks (PNG) for a folder of images")
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of the scenes"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to play (default: %(default)s)")
    parser.add_argument("--loop", action="store_true", help="start again when a folder or video ends")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the player; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m dinov3_seg_ros.demo.player", description=__doc__.splitlines()[0])
    add_source_arguments(parser)
    parser.add_argument(
        "--subscribers", type=int, default=1, help="wait for so many subscribers before the first frame"
    )
    options, ros_arguments = parser.parse_known_args(arguments)

    configure_transport()
    remove_unfinished_segments()
    keep_freed_memory()
    leave_ending_to_rclpy()
    rclpy.init(args=ros_arguments)
    player = Player(options.rate)
    try:
        with interruptible():
            player.wait_for_subscribers(options.subscribers, timeout_s=60.0)
            print(f"sent {player.play(_frames(options), options.seconds)} frames", flush=True)
    except SegmentationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        player.destroy_node()
        rclpy.try_shutdown()
        ignore_until_exit()
    return 0


def _frames(options: Any) -> Iterable[Frame]:
    def once() -> Iterable[Frame]:
        return open_source(options.source, tuple(options.size), options.rate, options.masks)

    return itertools.chain.from_iterable(once() for _ in itertools.count()) if options.loop else once()


if __name__ == "__main__":
    sys.exit(main())
