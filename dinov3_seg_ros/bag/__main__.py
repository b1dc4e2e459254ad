"""Adds masks and overlays to a recording: ``python -m dinov3_seg_ros.bag IN OUT --bundle BUNDLE``.

IN is a rosbag2 (sqlite3 or MCAP), OUT a new one that holds all of it and, for each image, the outputs of the node with
the image's own header and recording time. ROS need not be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dinov3_seg_ros.bag.recordings import STORAGES
from dinov3_seg_ros.bag.segmenting import OUTPUTS, BagSegmenter
from dinov3_seg_ros.frames.output_classes import (
    confidence_threshold,
    load_class_list,
)
from dinov3_seg_ros.options import MAX_PIXELS, parse_mask_size
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import (
    RuntimeUnavailableError,
    SegmentationError,
)
from dinov3_seg_ros.support.resources import resource_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Segment a recording; 1 when that was not possible."""
    options = _parse(arguments)
    try:
        _require_rosbags()
        with contextlib.closing(_open_segmenter(options)) as segmenter:
            adder = BagSegmenter(
                segmenter,
                load_class_list(options.class_list) if options.class_list else None,
                options.outputs,
                parse_mask_size(options.mask_size),
                confidence_threshold(options.confidence_threshold),
                options.overlay_alpha,
                options.overlay_names,
                options.max_pixels,
            )
            start = time.monotonic()
            counts = adder.process(options.source, options.target, options.topics, options.storage, _track)
    except SegmentationError as error:
        print(f"bag: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bag: interrupted; nothing was written", file=sys.stderr)
        return 1
    rate = counts.get("segmented", 0) / (time.monotonic() - start)
    faults = "".join(f", {number} left out ({what})" for what, number in counts.items() if what != "segmented")
    print(f"{options.target}: {counts.get('segmented', 0)} frames segmented at {rate:.1f} per second{faults}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dinov3_seg_ros.bag", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="IN", help="rosbag2 to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder of the rosbag2 to make")
    parser.add_argument("--bundle", type=Path, nargs="+", help="trained bundles (default: the demo's)")
    parser.add_argument("--topics", nargs="+", default=[], help="images to segment (default: the only ones there are)")
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=["mask", "overlay"])
    parser.add_argument("--storage", choices=STORAGES, help="default: that of IN")
    parser.add_argument("--runtime", default="auto", help="auto, torch, onnx or tensorrt")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch", type=int, default=1, help="frames in one backbone pass; more is faster on a GPU")
    parser.add_argument("--mask-size", default="source", help="source, network or WIDTHxHEIGHT")
    parser.add_argument("--class-list", type=Path, help="YAML file of the classes to publish")
    parser.add_argument("--confidence-threshold", type=float, default=0.0, help="0..1; below it a pixel is unlabelled")
    parser.add_argument("--overlay-alpha", type=float, default=0.5, help="weight of the colours, 0..1")
    parser.add_argument("--overlay-names", action="store_true", help="write the class names into the overlay")
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, help="larger images are only copied (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    for name in ("confidence_threshold", "overlay_alpha"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            parser.error(f"--{name.replace('_', '-')} must be between 0 and 1")
    return options


def _open_segmenter(options: argparse.Namespace) -> Segmenter:
    segmenter = Segmenter.from_bundle(
        options.bundle or [resource_path("weights/demo")],
        options.runtime,
        max_batch=options.batch,
        device=options.device,
    )
    segmenter.warm_up()
    return segmenter


def _require_rosbags() -> None:
    try:
        import rich  # noqa: F401
        import rosbags  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailableError(f"{error.name} is not installed: pip install 'dinov3_seg_ros[bag]'") from error


def _track(messages: Iterable[Any], count: int) -> Iterable[Any]:
    from rich.progress import track

    return track(messages, description="messages", total=count)


if __name__ == "__main__":
    sys.exit(main())
