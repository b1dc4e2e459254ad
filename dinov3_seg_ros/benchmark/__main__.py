"""Measure every step of a frame.

``python -m dinov3_seg_ros.benchmark BUNDLE [--ros] [--baseline] [--json FILE] [--picture FILE]``
``python -m dinov3_seg_ros.benchmark BUNDLE --ros --throughput [--json FILE]`` searches the highest rate of a camera.
``python -m dinov3_seg_ros.benchmark BUNDLE [BUNDLE ...] --choose`` measures which runtime is the fastest here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinov3_seg_ros.benchmark import choosing, throughput
from dinov3_seg_ros.benchmark.picture import check_can_draw, draw_stages
from dinov3_seg_ros.benchmark.report import columns_of, table
from dinov3_seg_ros.benchmark.session import Session
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.support.command_line import (
    CommandParser,
    UsageError,
    add_flags,
    read_flags,
    run_command,
    whole_number,
)
from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import is_writable, stays, write_json

_FRAMES, _SECONDS, _FRAME_SIZE = 50, 5, (480, 640)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        compute = read_flags(ComputeOptions, options)
        if compute.max_batch > 1 and (options.ros or options.baseline):
            raise UsageError(
                f"--max-batch is {compute.max_batch}, but --ros and --baseline take single frames; use --max-batch 1"
            )
        # Now, rather than after minutes of measuring.
        for name in ("json", "picture"):
            if path := getattr(options, name):
                _check_can_write(path, f"--{name}")
        if options.seconds and not options.throughput:
            raise UsageError("--seconds is the length of a trial of --throughput; for this measurement use --frames")
        if options.frames and (options.choose or options.throughput):
            raise UsageError("--frames counts the frames of the usual measurement; leave it out")
        if options.choose:
            if options.ros or options.baseline or options.picture or options.throughput:
                raise UsageError(
                    "--choose measures nothing else; leave --ros, --throughput, --baseline and --picture out"
                )
            if options.frame_size:
                raise UsageError("--choose times one size of network input, no frames; leave --frame-size out")
            choice = choosing.choose(options.bundles, compute)
            print(choosing.table(choice))
            _write(options.json, choice.model_dump(mode="json"))
            return
        frame_size = tuple(options.frame_size or _FRAME_SIZE)
        bundle, *further = options.bundles
        if further:
            raise UsageError("only --choose takes several bundles, those that one node loads; give one")
        if options.throughput:
            if not options.ros or options.baseline or options.picture:
                raise UsageError("--throughput needs --ros, and measures nothing else: no --baseline, no --picture")
            rates = throughput.measure(bundle, compute, frame_size, options.seconds or _SECONDS)
            print(throughput.table(rates))
            _write(options.json, rates)
            return
        session = Session(
            bundle=bundle,
            compute=compute,
            frame_size=frame_size,
            frames=options.frames or _FRAMES,
            ros=options.ros,
            baseline=options.baseline,
        )
        if options.picture:
            check_can_draw(options.picture)
        result = session.run()
        print(table(result))
        _write(options.json, result)
        if options.picture:
            draw_stages({name: column["stages_ms"] for name, column in columns_of(result).items()}, options.picture)

    return run_command(parser, work, arguments)


def _parser() -> CommandParser:
    parser = CommandParser("dinov3_seg_ros.benchmark", __doc__)
    parser.add_argument(
        "bundles",
        nargs="+",
        type=Path,
        metavar="BUNDLE",
        help="folder of the trained bundle, or a shipped one's name; for --choose all that the node loads",
    )
    parser.add_argument(
        "--frame-size",
        nargs=2,
        type=whole_number(1),
        metavar=("HEIGHT", "WIDTH"),
        help="of the synthetic frames, pixels (default: {} {})".format(*_FRAME_SIZE),
    )
    parser.add_argument("--frames", type=whole_number(1), metavar="N", help=f"frames to measure (default: {_FRAMES})")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="time every runtime, provider and precision that agrees with the model, and keep the fastest for later "
        "starts with the same options",
    )
    parser.add_argument("--ros", action="store_true", help="also send frames through a node process on ROS 2")
    parser.add_argument(
        "--throughput",
        action="store_true",
        help="with --ros: search the highest rate of a camera at which fewer than 5 %% of the frames are dropped",
    )
    parser.add_argument(
        "--seconds",
        type=whole_number(1),
        metavar="S",
        help=f"with --throughput: how long a rate is tried (default: {_SECONDS})",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="also run a naive PyTorch pipeline and the dinov3_ros pipeline, both on the CPU",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the stages as bars; needs matplotlib")
    add_flags(parser, ComputeOptions)
    return parser


def _check_can_write(path: Path, option: str) -> None:
    if path.is_dir() or not (stays(path) or is_writable(path.absolute().parent)):
        raise OutputError(f"{path} cannot be written; with {option}, name a file in a folder that you may write to")


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        write_json(path, result)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
