"""What the commands that take images without labels have in common on their command lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from dinov3_seg_ros.options import ValueRange
from dinov3_seg_ros.support.command_line import CommandParser, UsageError, duration
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


def open_with_target(
    options: argparse.Namespace, value_range: ValueRange
) -> tuple[UnlabelledImages, UnlabelledImages | None]:
    """The images that a command line names, and the target images; None where it names none.

    Topics and times are those of whichever is a recording. The target has its own topics where they are given.

    Raises:
        DatasetError: see `open_images`.
        UsageError: topics of a target that is no recording.
    """
    target_is_recording = options.target is not None and is_recording(Path(options.target))
    if options.target_topics and not target_is_recording:
        raise UsageError("--target-topics needs a recording as --target")
    of_target_alone = target_is_recording and not is_recording(Path(options.images))
    images = open_images(options.images, value_range) if of_target_alone else open_from(options, value_range)
    if options.target is None:
        return images, None
    chosen = (options.target_topics or options.topics, options.every) if target_is_recording else ()
    try:
        return images, open_images(options.target, value_range, *chosen)
    except DatasetError as error:
        raise DatasetError(f"--target: {error}") from error
