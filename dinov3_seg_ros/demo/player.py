"""A camera: publishes the frames of a source at a fixed rate, with the true masks beside them where they are known.

``python -m dinov3_seg_ros.demo.player --help``
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException

from dinov3_seg_ros import scenes
from dinov3_seg_ros.frames.sources import Frame, open_source
from dinov3_seg_ros.ros.camera_player import CameraPlayer
from dinov3_seg_ros.ros.signals import ignore_until_exit, interruptible, leave_ending_to_rclpy
from dinov3_seg_ros.ros.transport import configure_transport, keep_freed_memory, remove_unfinished_segments
from dinov3_seg_ros.support.errors import SegmentationError


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
    player = CameraPlayer(options.rate)
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
        if options.source == "scenes":
            return scenes.walk("val", 0, tuple(options.size), options.rate)
        return open_source(options.source, options.masks)

    return itertools.chain.from_iterable(once() for _ in itertools.count()) if options.loop else once()


if __name__ == "__main__":
    sys.exit(main())
