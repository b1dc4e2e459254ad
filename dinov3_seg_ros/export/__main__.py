"""Export bundles to ONNX graphs that run without torch, compared with the PyTorch model before they are kept.

``python -m dinov3_seg_ros.export BUNDLE [BUNDLE ...] [--size H W] [--precision fp32]``
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dinov3_seg_ros.options import PRECISIONS
from dinov3_seg_ros.support.errors import SegmentationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, print the report; 1 when that failed: graphs are kept then only where it was the engines that failed."""
    options = _parser().parse_args(arguments)
    if options.engine:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("dinov3_seg_ros.runtimes.tensorrt").setLevel(logging.INFO)
    try:
        from dinov3_seg_ros.export.exporter import ExportOptions, export
    except ImportError as error:
        print(f"exporting needs {error.name}: pip install 'dinov3_seg_ros[export]'", file=sys.stderr)
        return 1
    try:
        reports = export(
            options.bundles,
            ExportOptions(
                size=tuple(options.size) if options.size else None,
                precision=options.precision,
                fuse=options.fuse,
                images=options.images,
                masks=options.masks,
                least_labels=options.least_labels,
                engine=options.engine,
                max_batch=options.max_batch,
            ),
        )
    except SegmentationError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the export cannot be written: {error}; no bundle holds part of one", file=sys.stderr)
        return 1
    for folder, report in reports.items():
        print(f"{folder}\n\n{report}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dinov3_seg_ros.export", description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="bundles that share a backbone")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="network size, pixels (default: the bundle's)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="int8 is for CPUs, int8_qdq for TensorRT"
    )
    parser.add_argument("--fuse", action="store_true", help="also write backbone and head as one graph")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="images to compare and calibrate with (default: made ones)"
    )
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="their index masks, PNG of the same names, for the mIoU"
    )
    parser.add_argument("--least-labels", type=float, metavar="SHARE", help="share of equal labels to ask for, 0..1")
    parser.add_argument(
        "--engine", action="store_true", help="also build this machine's TensorRT engines, which takes minutes"
    )
    parser.add_argument(
        "--max-batch", type=int, default=1, metavar="N", help="the most frames at once that the engines are for"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
