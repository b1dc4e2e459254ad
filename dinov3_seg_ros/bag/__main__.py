"""Add masks and overlays to a recording; other commands of a recording: extract, insert, score.

``python -m dinov3_seg_ros.bag IN OUT --bundle BUNDLE``: OUT is a new recording with everything in IN and, for each
image, the outputs of the node with the header and the recording time of the image.
``python -m dinov3_seg_ros.bag extract IN FOLDER``: images as PNG files, for a labelling tool.
``python -m dinov3_seg_ros.bag insert IN MASKS OUT``: OUT is IN with the labelled images' masks as ground truth.
``python -m dinov3_seg_ros.bag score IN --bundle BUNDLE``: a bundle against the ground truth in IN.

IN is a rosbag2 (sqlite3 or MCAP). ROS need not be installed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dinov3_seg_ros.bag.extraction import extract
from dinov3_seg_ros.bag.outputs import OUTPUTS, BagSegmenter
from dinov3_seg_ros.bag.recordings import STORAGES, RecordedMessage
from dinov3_seg_ros.bag.scoring import score
from dinov3_seg_ros.bag.truth import CLASSES_FILE, insert
from dinov3_seg_ros.options import ComputeOptions, PublishOptions
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.command_line import CommandParser, UsageError, add_flags, duration, read_flags, run_command
from dinov3_seg_ros.support.errors import OutputError, RuntimeUnavailableError, nearest
from dinov3_seg_ros.support.files import write_json
from dinov3_seg_ros.support.installation import how_to_install
from dinov3_seg_ros.support.resources import resource_path

# How images are read, among the options of what to publish.
_READING = {"max_pixels", "value_range"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; return its exit code. A recording of a command's name is written ``./extract``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = _COMMANDS.get(words[0]) if words else None
    return _segment(words) if command is None else command(words[1:])


def _segment(words: list[str]) -> int:
    parser = CommandParser("dinov3_seg_ros.bag", __doc__)
    parser.epilog = "Other commands, each with a --help of its own: extract, insert, score."
    _add_recordings(parser, "rosbag2 to write; a folder that does not exist")
    parser.add_argument(
        "--bundle", type=Path, nargs="+", metavar="BUNDLE", help="trained bundles that share a backbone (default: demo)"
    )
    _add_topics(parser, "the only one")
    parser.add_argument(
        "--outputs", nargs="+", choices=OUTPUTS, default=["mask", "overlay"], help="default: mask overlay"
    )
    _add_storage(parser)
    add_flags(parser, ComputeOptions)
    add_flags(parser, PublishOptions)

    def work(words: list[str]) -> None:
        if (hint := nearest(words[0], _COMMANDS)) and not Path(words[0]).exists():
            raise UsageError(f"'{words[0]}' is neither a command nor a recording{hint}")
        options = parser.parse_command(words)
        compute, publish = read_flags(ComputeOptions, options), read_flags(PublishOptions, options)
        _start()
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

    return run_command(parser, work, words, "nothing was written")


def _extract(words: list[str]) -> int:
    parser = CommandParser(
        "dinov3_seg_ros.bag extract", "Write images of a recording as PNG files, named by topic and stamp."
    )
    _add_recordings(parser, "folder of the images; files that are in it stay as they are")
    _add_topics(parser, "the only one")
    parser.add_argument(
        "--every", type=duration, metavar="DURATION", help="one image of each: 0.5s, 200ms, 2min (default: all images)"
    )
    parser.add_argument("--sharpest", action="store_true", help="the sharpest of each --every, not the first")
    add_flags(parser, PublishOptions, leave_out=PublishOptions.model_fields.keys() - _READING)

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        if options.sharpest and options.every is None:
            raise UsageError("--sharpest chooses among the images of a window; add its length, such as --every 0.5s")
        publish = read_flags(PublishOptions, options)
        _start()
        done = extract(options.source, options.target, options.topics, options.every, options.sharpest, publish, _track)
        _tell(done.skipped.lines())
        topics = ", ".join(f"{topic} {number}" for topic, number in sorted(done.written.items()))
        passed_over = f"; {done.passed_over} others passed over, one is taken of each window" if options.every else ""
        print(f"{options.target}: {done.written.total()} images written{f' ({topics})' * bool(topics)}{passed_over}")

    return run_command(parser, work, words, "the images written so far are whole")


def _insert(words: list[str]) -> int:
    parser = CommandParser(
        "dinov3_seg_ros.bag insert", "Put masks of a recording's images back into it, as topics of ground truth."
    )
    parser.add_argument("source", type=Path, metavar="IN", help="rosbag2 to read")
    parser.add_argument(
        "masks",
        type=Path,
        metavar="MASKS",
        help=f"folder of PNG masks of class ids, named as extract names images; {CLASSES_FILE} in it names the classes",
    )
    parser.add_argument("target", type=Path, metavar="OUT", help="rosbag2 to write; a folder that does not exist")
    _add_storage(parser)

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        _start()
        done = insert(options.source, options.masks, options.target, options.storage, _track)
        _tell(done.skipped.lines())
        topics = ", ".join(f"{number} masks on {topic}" for topic, number in sorted(done.masks.items()))
        lacking = "" if done.classes else f"; without class names, for which {options.masks} has no {CLASSES_FILE}"
        print(f"{options.target}: {topics}{lacking}")

    return run_command(parser, work, words, "nothing was written")


def _score(words: list[str]) -> int:
    parser = CommandParser("dinov3_seg_ros.bag score", "Compare a bundle with the ground truth in a recording.")
    parser.add_argument("source", type=Path, metavar="IN", help="rosbag2 with topics segmentation/truth, see insert")
    parser.add_argument("--bundle", type=Path, required=True, metavar="BUNDLE", help="trained bundle")
    _add_topics(parser, "all with ground truth")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the scores")
    add_flags(parser, ComputeOptions)
    scored = _READING | {"temporal_smoothing"}
    add_flags(parser, PublishOptions, leave_out=PublishOptions.model_fields.keys() - scored)

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        compute, publish = read_flags(ComputeOptions, options), read_flags(PublishOptions, options)
        _start()
        with contextlib.closing(Segmenter.from_bundle(options.bundle, **compute.model_dump())) as segmenter:
            segmenter.warm_up()
            done = score(segmenter, options.source, options.topics, publish, _track)
            (manifest,) = segmenter.manifests.values()
        scores = done.matrix.summary(manifest.classes.names)
        _tell(done.skipped.lines())
        for name, value in {**scores["per_class_iou"], "mean": scores["miou"]}.items():
            print(f"{name:<20} {'undefined' if value is None else f'{value:9.1%}'}")
        print(f"IoU of {done.frames} frames of {options.source}")
        if options.json is not None:
            about = {"frames": done.frames, "skipped": dict(done.skipped.counts), "bundle": str(options.bundle)}
            _write_json(options.json, {**scores, **about, "recording": str(options.source)})

    return run_command(parser, work, words, "no score was written")


_COMMANDS = {"extract": _extract, "insert": _insert, "score": _score}


def _add_recordings(parser: CommandParser, target: str) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="rosbag2 to read")
    parser.add_argument("target", type=Path, metavar="OUT", help=target)


def _add_topics(parser: CommandParser, default: str) -> None:
    parser.add_argument(
        "--topics", nargs="+", default=[], metavar="TOPIC", help=f"topics of images (default: {default})"
    )


def _add_storage(parser: CommandParser) -> None:
    parser.add_argument("--storage", choices=STORAGES, help="of OUT (default: that of IN)")


def _start() -> None:
    """Check that recordings can be read, and show what is learned of the images."""
    try:
        import rich  # noqa: F401
        import rosbags  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailableError(f"{error.name} is not installed: {how_to_install('bag')}") from error
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dinov3_seg_ros.frames").setLevel(logging.INFO)


def _track(messages: Iterable[RecordedMessage], count: int) -> Iterable[RecordedMessage]:
    from rich.progress import track

    return track(messages, description="messages", total=count)


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        write_json(path, content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
