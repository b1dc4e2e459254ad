"""Export bundles to ONNX graphs that run without PyTorch; each graph is compared with the PyTorch model.

``python -m dinov3_seg_ros.export BUNDLE [BUNDLE ...] [--size HEIGHT WIDTH] [--precision fp32]``
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dinov3_seg_ros.options import PRECISIONS
from dinov3_seg_ros.support.command_line import CommandParser, UsageError, run_command, share, whole_number
from dinov3_seg_ros.support.errors import OutputError, RuntimeUnavailableError
from dinov3_seg_ros.support.installation import how_to_install


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Where only the engines failed, the graphs are kept."""
    parser = _parser()

    def work(words: list[str]) -> None:
        options = parser.parse_command(words)
        if options.max_batch is not None and not options.engine:
            raise UsageError("--max-batch is for engines, and graphs take any batch; add --engine, or leave it out")
        if options.engine:
            logging.basicConfig(format="%(message)s")
            logging.getLogger("dinov3_seg_ros.runtimes.tensorrt").setLevel(logging.INFO)
        try:
            from dinov3_seg_ros.export.exporter import ExportOptions, export
        except ImportError as error:
            raise RuntimeUnavailableError(f"exporting needs {error.name}: {how_to_install('export')}") from error
        settings = ExportOptions(
            size=tuple(options.size) if options.size else None,
            precision=options.precision,
            fuse=options.fuse,
            images=options.images,
            masks=options.masks,
            least_labels=options.least_labels,
            engine=options.engine,
            max_batch=options.max_batch or 1,
        )
        try:
            reports = export(options.bundles, settings)
        except OSError as error:
            raise OutputError(f"the export cannot be written: {error}; no bundle holds part of one") from error
        for folder, report in reports.items():
            print(f"{folder}\n\n{report}")

    return run_command(parser, work, arguments)


def _parser() -> CommandParser:
    parser = CommandParser("dinov3_seg_ros.export", __doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="bundles that share a backbone")
    parser.add_argument(
        "--size",
        nargs=2,
        type=whole_number(1),
        metavar=("HEIGHT", "WIDTH"),
        help="network size, pixels (default: the bundle's)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="int8 is for CPUs, int8_qdq for TensorRT and OpenVINO (default: %(default)s)",
    )
    parser.add_argument("--fuse", action="store_true", help="also write backbone and head as one graph")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="images for comparison and calibration (default: synthetic rooms)",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="masks of these images, of the same names and values as in training, for the mIoU",
    )
    parser.add_argument(
        "--least-labels", type=share, metavar="SHARE", help="share of equal labels to ask for, from 0 to 1"
    )
    parser.add_argument(
        "--engine", action="store_true", help="also build the TensorRT engines of this machine, which takes minutes"
    )
    parser.add_argument(
        "--max-batch",
        type=whole_number(1),
        metavar="NUMBER",
        help="with --engine: the most frames in one pass that the engines are built for (default: 1)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
