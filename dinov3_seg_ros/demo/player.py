"""Publish the frames of a source as a camera does, with their true masks where these are known.

``python -m dinov3_seg_ros.demo.player --help``
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.utilities import remove_ros_args

from dinov3_seg_ros import scenes
from dinov3_seg_ros.frames.sources import Frame, open_source
from dinov3_seg_ros.options import PublishOptions, ValueRange
from dinov3_seg_ros.ros.camera_player import CameraPlayer
from dinov3_seg_ros.ros.compatibility import RclError
from dinov3_seg_ros.ros.signals import end_on_hangup, ignore_until_exit, interruptible, leave_ending_to_rclpy
from dinov3_seg_ros.ros.transport import prepare_process
from dinov3_seg_ros.support.command_line import (
    CommandParser,
    UsageError,
    add_flags,
    read_flags,
    run_command,
    whole_number,
)

#: The source that shows the synthetic rooms of `scenes`.
SCENES = "scenes"
# The node subscribes once its models are loaded, for which an engine may have to be built.
_PATIENCE_S = 3600.0


def add_source_arguments(parser: CommandParser) -> None:
    """Add the arguments that say what the camera shows."""
    parser.add_argument(
        "--source",
        default=SCENES,
        help=f"folder of images, video file, number of a webcam, or {SCENES} for synthetic rooms (default: {SCENES})",
    )
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="index masks (PNG) of a folder of images")
    parser.add_argument(
        "--rate", type=_positive, default=10.0, metavar="HZ", help="frames per second (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=whole_number(1),
        nargs=2,
        default=(480, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="of the synthetic rooms, pixels (default: 480 640)",
    )
    parser.add_argument(
        "--seconds", type=_positive, default=30.0, metavar="S", help="how long to play (default: %(default)s)"
    )
    parser.add_argument("--loop", action="store_true", help="start again when a folder or video ends")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. ROS arguments may follow its own."""
    parser = CommandParser("dinov3_seg_ros.demo.player", __doc__)
    add_source_arguments(parser)
    parser.add_argument(
        "--subscribers",
        type=whole_number(0),
        default=1,
        metavar="N",
        help="wait for N subscribers before the first frame (default: %(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=_positive,
        default=_PATIENCE_S,
        metavar="S",
        help="how long to wait for them (default: %(default)s)",
    )
    add_flags(parser, PublishOptions, leave_out=PublishOptions.model_fields.keys() - {"value_range"})

    def work(words: list[str]) -> None:
        try:
            own_words = remove_ros_args(words)
        except RclError as error:
            raise UsageError(str(error)) from error
        options = parser.parse_command(own_words)
        # Before ROS starts, whose end may crash the process and lose what is said of a source that cannot be read.
        frames = _begun(_frames(options, read_flags(PublishOptions, options).value_range))
        prepare_process()
        leave_ending_to_rclpy()
        rclpy.init(args=words)
        player = CameraPlayer(options.rate)
        end_on_hangup()
        try:
            with interruptible():
                player.wait_for_subscribers(options.subscribers, timeout_s=options.patience)
                print(f"sent {player.play(frames, options.seconds)} frames", flush=True)
        except (KeyboardInterrupt, ExternalShutdownException):
            pass  # the usual end of a camera
        finally:
            player.destroy_node()
            rclpy.try_shutdown()
            ignore_until_exit()

    return run_command(parser, work, arguments)


def _frames(options: argparse.Namespace, value_range: ValueRange) -> Iterable[Frame]:
    def once() -> Iterable[Frame]:
        if options.source == SCENES:
            height, width = options.size
            return scenes.walk("val", 0, (height, width), options.rate)
        return open_source(options.source, options.masks, value_range)

    return itertools.chain.from_iterable(once() for _ in itertools.count()) if options.loop else once()


def _begun(frames: Iterable[Frame]) -> Iterable[Frame]:
    """The same frames, the first of them read: a source that cannot be read is named before anybody waits."""
    rest = iter(frames)
    return itertools.chain([frame for frame in (next(rest, None),) if frame is not None], rest)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
