"""What the commands that take images without labels have in common on their command lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.command_line import CommandParser, duration
from dinov3_seg_ros.support.errors import DatasetError
from training.support.writing import add_output
from training.unlabelled.images import UnlabelledImages, is_recording, open_images


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


def add_labelling_arguments(parser: CommandParser, bundle: str, output: str) -> None:
    """Add the bundles that label the images, each called ``bundle`` in the help, and the folder for what is written."""
    parser.add_argument(
        "--bundle",
        type=Path,
        nargs="+",
        required=True,
        metavar=bundle,
        help="folder of a bundle, or a shipped one's name; the probabilities of several are averaged",
    )
    add_output(parser, output)


def open_from(options: argparse.Namespace, value_range: ValueRange) -> UnlabelledImages:
    """The images that a command line names; see `open_images`."""
    return open_images(options.images, value_range, options.topics, options.every)


def open_target(options: argparse.Namespace, value_range: ValueRange) -> UnlabelledImages:
    """The target images that a command line names; of a recording, the same topics and times as of the images'.

    Raises:
        DatasetError: see `open_images`.
    """
    chosen = (options.topics, options.every) if is_recording(Path(options.target)) else ()
    try:
        return open_images(options.target, value_range, *chosen)
    except DatasetError as error:
        raise DatasetError(f"--target: {error}") from error
