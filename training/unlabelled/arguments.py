"""What the commands that take images without labels have in common on their command lines."""

from __future__ import annotations

import argparse

from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.command_line import CommandParser, duration
from training.unlabelled.images import UnlabelledImages, open_images


def add_image_arguments(parser: CommandParser) -> None:
    """Add the images, and which of a recording's are meant."""
    parser.add_argument("images", metavar="IMAGES", help="folder of images, image, or recording (rosbag2)")
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="TOPIC", help="of images in a recording (default: the only one)"
    )
    parser.add_argument(
        "--every",
        type=duration,
        metavar="DURATION",
        help="of a recording, take one image of each: 0.5s, 200ms, 2min (default: all)",
    )


def open_from(options: argparse.Namespace, value_range: ValueRange) -> UnlabelledImages:
    """The images that a command line names; see `open_images`."""
    return open_images(options.images, value_range, options.topics, options.every)
