"""Measure the published architectures on a GPU: stages by the GPU's own events, whole frames, overlapped frames.

    python benchmarks/gpu.py --runtimes torch onnx --precisions fp16 bf16 --batches 1 8 --json gpu.json

Random weights, the default head, 134 classes of which about 12 are in view, frames of 640x480. Each row is one run of
``python -m dinov3_seg_ros.benchmark`` in its own process. Times are those of a whole batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from random_models import MODELS, random_bundle

from dinov3_seg_ros.benchmark.measurement import synthetic_frames
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.support.timing import GPU_STAGES

FRAME_SIZE, CLASSES, IN_VIEW = (480, 640), 134, 12
STAGES = [stage for stage in GPU_STAGES if not stage.startswith("message")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--network-size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), default=(640, 640))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runtimes", nargs="+", default=["torch"])
    parser.add_argument("--precisions", nargs="+", default=["bf16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, frames, size = [], synthetic_frames(FRAME_SIZE, 8), tuple(options.network_size)
    with tempfile.TemporaryDirectory() as work:
        print("  ".join(["model, runtime, precision, batch".ljust(40), *STAGES, "total", "frames/s", "share"]))
        for model in options.models:
            bundle = Path(work) / model
            random_bundle(bundle, model, size, frames, CLASSES, "aspp", IN_VIEW)
            for runtime in options.runtimes:
                for precision in options.precisions:
                    if runtime != "torch":
                        export([bundle], ExportOptions(size=size, precision=precision, least_labels=0.0))
                    for batch in options.batches:
                        rows.append(measure(bundle, runtime, precision, batch, options))
                        print(row(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(bundle: Path, runtime: str, precision: str, batch: int, options: argparse.Namespace) -> dict:
    """Run the benchmark command for one combination; return its result, or its error."""
    what = {"model": bundle.name, "runtime": runtime, "precision": precision, "batch": batch}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        chosen = {"device": options.device, "frames": options.frames, "json": file, **what}
        del chosen["model"]
        arguments = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "dinov3_seg_ros.benchmark", str(bundle), *arguments]
        run = subprocess.run(
            [*command, "--network-size", *map(str, options.network_size)], capture_output=True, text=True
        )
        if run.returncode:
            return {**what, "error": run.stderr.strip()}
        return {**json.loads(file.read_text()), **what}


def row(found: dict) -> str:
    """Format one line: medians in ms, the rate with overlapped frames, and the backbone's share of the GEMM rate."""
    name = f"{found['model']}, {found['runtime']}, {found['precision']}, {found['batch']}".ljust(40)
    if "error" in found:
        return f"{name}  {found['error']}"
    times = [found["stages_ms"].get(stage) for stage in STAGES] + [found["total_ms"]]
    cells = [f"{time['median']:.2f}" if time else "" for time in times]
    rate = found["overlapped_frames_per_second"] or found["frames_per_second"]
    share = found["backbone"]["share_of_gemm"]
    widths = [len(title) for title in (*STAGES, "total", "frames/s")]
    lined_up = [cell.rjust(width) for cell, width in zip([*cells, f"{rate:.1f}"], widths, strict=True)]
    return "  ".join([name, *lined_up, "" if share is None else f"{share:.0%}"])


if __name__ == "__main__":
    main()
