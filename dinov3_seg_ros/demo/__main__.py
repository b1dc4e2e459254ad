"""Run a camera, the segmentation node and a consumer as three processes on ROS 2, and measure what arrives.

``python -m dinov3_seg_ros.demo --help``
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor

from dinov3_seg_ros import decode, scenes
from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.demo.colour_baseline import ColourClassifier
from dinov3_seg_ros.demo.player import SCENES, add_source_arguments
from dinov3_seg_ros.demo.recorder import Recorder, are_of_rooms, remove_pictures
from dinov3_seg_ros.frames.sources import open_source
from dinov3_seg_ros.frames.value_range import chosen_range
from dinov3_seg_ros.frames.video import new_video
from dinov3_seg_ros.options import ComputeOptions, PublishOptions, ValueRange
from dinov3_seg_ros.ros.local_graph import last_words, node_command, prepare, ros_arguments, running
from dinov3_seg_ros.ros.parameters import changed_parameters
from dinov3_seg_ros.support.command_line import CommandParser, add_flags, read_flags, run_command
from dinov3_seg_ros.support.errors import OutputError, TransportError
from dinov3_seg_ros.support.files import lies_in, write_json
from dinov3_seg_ros.support.resources import resource_path

_VIDEO_FILE = "overlay.mp4"
# Nothing else on this machine shares it, another demo included.
_NAMESPACE = f"demo_{os.getpid()}"
# How long the node may take to be heard of, and the first mask once the node subscribes, which it does when its models
# are loaded.
_START_TIMEOUT_S = 90.0
# How long to wait for masks after the last frame was sent.
_DRAIN_S = 2.0
_COLOUR_TRAINING_SCENES = 300


#: Scores compare the masks with the bundle's classes, at the frames' size.
_FIXED = ("class_list", "mask_size")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = CommandParser("dinov3_seg_ros.demo", __doc__)
    add_source_arguments(parser)
    parser.add_argument("--bundle", type=Path, metavar="BUNDLE", help="trained bundle (default: demo)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        metavar="FOLDER",
        help="for pictures, video and summary.json (default: %(default)s)",
    )
    add_flags(parser, ComputeOptions)
    add_flags(parser, PublishOptions, leave_out=_FIXED)

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        parameters = changed_parameters(read_flags(ComputeOptions, options))
        # A viewer who does not know the classes needs their names.
        names = True if options.overlay_names is None else options.overlay_names
        parameters |= changed_parameters(read_flags(PublishOptions, options, overlay_names=names))
        _print_summary(_run(options, parameters), options.output)

    return run_command(parser, work, arguments)


def _run(options: argparse.Namespace, parameters: dict[str, Any]) -> dict[str, Any]:
    """Play the camera to its end, and return what the recorder measured."""
    for shown in (Path(options.source), options.masks):
        if shown is not None and shown.exists() and lies_in(shown, options.output):
            raise OutputError(
                f"{shown} lies in {options.output}, whose pictures and video are replaced; choose another folder with "
                "--output"
            )
    bundle = load_bundle(options.bundle or resource_path("weights/demo"))
    _check_source(options, bundle)  # before the pictures of an earlier demo are gone
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        remove_pictures(options.output)
    except OSError as error:
        raise OutputError(f"{options.output} cannot be written ({error}); choose another with --output") from error
    prepare()
    decode.backend(wait=True)  # compiled here once, so that the figures are not those of a node whose decode compiles
    names = bundle.manifest.classes.names
    colours = _fit_colour_classifier() if options.source == SCENES and are_of_rooms(names) else None
    with new_video(options.output / _VIDEO_FILE, options.rate) as video:
        rclpy.init(args=[])
        recorder = Recorder(_NAMESPACE, names, colours, options.output, video, options.masks)
        try:
            _record(recorder, options, bundle, parameters)
        finally:
            recorder.destroy_node()
            rclpy.try_shutdown()
        summary = {
            "bundle": bundle.manifest.name,
            "source": options.source,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            **recorder.summary(),
        }
        write_json(options.output / "summary.json", summary)
    if recorder.doubt:
        print(f"warning: {recorder.doubt}", file=sys.stderr)
    return summary


def _check_source(options: argparse.Namespace, bundle: Bundle) -> None:
    """Raise DatasetError for a folder or file that gives no frame; a webcam is left to the camera's process."""
    if options.source != SCENES and not options.source.isdecimal():
        next(open_source(options.source, options.masks, _value_range(options, bundle)), None)


def _value_range(options: argparse.Namespace, bundle: Bundle) -> ValueRange:
    return chosen_range(read_flags(PublishOptions, options).value_range, bundle.manifest.input.value_range)


def _record(recorder: Recorder, options: argparse.Namespace, bundle: Bundle, parameters: dict[str, Any]) -> None:
    """Run node and camera until the camera has played to its end, and the last masks have arrived."""
    node_log, camera_log = options.output / "segmentation.log", options.output / "camera.log"
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    try:
        with (
            running(_node_command(bundle, parameters), node_log) as node,
            running(_player_command(options, bundle), camera_log) as player,
        ):
            patience = _Patience(recorder, options.output)
            while player.poll() is None:
                executor.spin_once(timeout_sec=0.1)
                if recorder.fault:
                    raise TransportError(f"the node says: {recorder.fault}; see {node_log}")
                if node.poll() is not None:
                    raise TransportError(f"the segmentation node ended: {last_words(node_log)}; see {node_log}")
                patience.check()
            if player.returncode:
                raise TransportError(f"the camera ended: {last_words(camera_log)}; see {camera_log}")
            _spin_for(executor, _DRAIN_S)
            if not recorder.received:
                raise TransportError(f"the camera ended before a mask arrived; see the logs in {options.output}")
    finally:
        executor.shutdown()


class _Patience:
    """Waits for a sign of life of the node, then for its models, then for its first mask.

    Args:
        recorder: hears the node.
        output: folder of the logs.
    """

    def __init__(self, recorder: Recorder, output: Path) -> None:
        self._recorder, self._output = recorder, output
        self._since = time.monotonic()
        self._is_loading = self._subscribes = False

    def check(self) -> None:
        """Look how far the node is.

        Raises:
            TransportError: it is not heard of, or sends no mask, for too long.
        """
        recorder, now = self._recorder, time.monotonic()
        if not self._subscribes and recorder.node_subscribes:
            self._subscribes, self._since = True, now
        elif not self._subscribes and not self._is_loading and recorder.heard_node:
            self._is_loading = True
            print("waiting for the models", flush=True)
        if recorder.received or now - self._since <= _START_TIMEOUT_S or (self._is_loading and not self._subscribes):
            return
        within = f"within {_START_TIMEOUT_S:.0f} s"
        fault = f"nothing was heard of the segmentation node {within}"
        if self._subscribes:
            fault = f"no mask arrived {within} after the node had loaded its models"
        raise TransportError(f"{fault}; see the logs in {self._output}")


def _fit_colour_classifier() -> ColourClassifier:
    colours = ColourClassifier(len(scenes.CLASS_NAMES))
    for index in range(_COLOUR_TRAINING_SCENES):
        colours.fit(*scenes.sample("train", index * scenes.VIEWS_PER_SCENE, (120, 160)))
    return colours


def _node_command(bundle: Bundle, parameters: dict[str, Any]) -> list[str]:
    return node_command(_NAMESPACE, {"bundle": bundle.path.resolve(), **parameters})


def _player_command(options: argparse.Namespace, bundle: Bundle) -> list[str]:
    command = [sys.executable, "-m", "dinov3_seg_ros.demo.player", "--subscribers", "2"]
    value_range = _value_range(options, bundle)
    command += ["--value-range", value_range if isinstance(value_range, str) else ",".join(map(str, value_range))]
    command += ["--source", options.source, "--rate", str(options.rate), "--seconds", str(options.seconds)]
    command += ["--size", *map(str, options.size)]
    command += ["--masks", str(options.masks)] if options.masks else []
    command += ["--loop"] if options.loop else []
    return command + ros_arguments(_NAMESPACE)


def _spin_for(executor: SingleThreadedExecutor, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)


def _print_summary(summary: dict[str, Any], output: Path) -> None:
    latency = summary["latency_ms"]
    rows = {
        "frames sent / segmented / dropped": f"{summary['images']} / {summary['masks']} / {summary['dropped']}",
        "frames per second": summary["fps"],
        "end-to-end latency": f"median {latency['median']:.1f} ms, 95th percentile {latency['p95']:.1f} ms",
        "headers altered / outputs without a frame": f"{summary['headers_altered']} / {summary['unmatched']}",
    }
    if summary["miou"] is not None:
        rows["mIoU of the received masks"] = f"{summary['miou']:.3f} ({summary['scored']} frames)"
    if summary["colour_classifier_miou"] is not None:
        rows["mIoU of a colour classifier"] = f"{summary['colour_classifier_miou']:.3f}"
    rows["pictures, video, figures"] = f"{output}/overlay_*.png, {output}/{_VIDEO_FILE}, {output}/summary.json"
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


if __name__ == "__main__":
    sys.exit(main())
