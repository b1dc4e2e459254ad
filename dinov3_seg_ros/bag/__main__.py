"""Add masks and overlays to a recording.

``python -m dinov3_seg_ros.bag IN OUT --bundle BUNDLE``

IN is a rosbag2 (sqlite3 or MCAP). OUT is a new one with everything in IN and, for each image, the outputs of the node
with the header and the recording time of the image. ROS need not be installed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from dinov3_seg_ros.bag.outputs import OUTPUTS, BagSegmenter
from dinov3_seg_ros.bag.recordings import STORAGES, RecordedMessage
from dinov3_seg_ros.options import ComputeOptions, PublishOptions
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.command_line import CommandParser, add_flags, read_flags, run_command
from dinov3_seg_ros.support.errors import RuntimeUnavailableError
from dinov3_seg_ros.support.resources import resource_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        compute, publish = read_flags(ComputeOptions, options), read_flags(PublishOptions, options)
        _require_rosbags()
        logging.basicConfig(format="%(message)s")
        logging.getLogger("dinov3_seg_ros.frames").setLevel(logging.INFO)
        bundles = options.bundle or [resource_path("weights/demo")]
        with contextlib.closing(Segmenter.from_bundle(bundles, **compute.model_dump())) as segmenter:
            segmenter.warm_up()
            adder = BagSegmenter(segmenter, publish, options.outputs)
            start = time.monotonic()
            counts = adder.process(options.source, options.target, options.topics, options.storage, _track)
        segmented = counts.pop("segmented", 0)
        rate = segmented / (time.monotonic() - start)
        faults = "".join(f", {number} not segmented ({fault})" for fault, number in counts.items())
        print(f"{options.target}: {segmented} frames segmented at {rate:.1f} per second{faults}")

    return run_command(parser, work, arguments, "nothing was written")


def _parser() -> CommandParser:
    parser = CommandParser("dinov3_seg_ros.bag", __doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="rosbag2 to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="rosbag2 to write; a folder that does not exist")
    parser.add_argument(
        "--bundle", type=Path, nargs="+", metavar="BUNDLE", help="trained bundles that share a backbone (default: demo)"
    )
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="TOPIC", help="topics of images to segment (default: the only one)"
    )
    parser.add_argument(
        "--outputs", nargs="+", choices=OUTPUTS, default=["mask", "overlay"], help="default: mask overlay"
    )
    parser.add_argument("--storage", choices=STORAGES, help="of OUT (default: that of IN)")
    add_flags(parser, ComputeOptions)
    # JPEG images are not among the outputs.
    add_flags(parser, PublishOptions, leave_out=("jpeg_quality",))
    return parser


def _require_rosbags() -> None:
    try:
        import rich  # noqa: F401
        import rosbags  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailableError(f"{error.name} is not installed: pip install 'dinov3_seg_ros[bag]'") from error


def _track(messages: Iterable[RecordedMessage], count: int) -> Iterable[RecordedMessage]:
    from rich.progress import track

    return track(messages, description="messages", total=count)


if __name__ == "__main__":
    sys.exit(main())
