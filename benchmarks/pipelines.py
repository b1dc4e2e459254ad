"""Measure whole frames with many classes: our pipeline, a naive PyTorch pipeline and the dinov3_ros pipeline.

    python benchmarks/pipelines.py --frames 30 --json pipelines.json --picture pipelines.png

ViT-S+/16 and the default head with random weights, 134 classes of which about 12 are in view (random_models.py). The
other pipelines run eagerly in PyTorch in float32 at 640x640; the naive one has the same head. All take turns. Where
OpenVINO is installed, its bf16 and int8_qdq are measured too, and what the processor multiplies in bf16 and int8.

To measure on two cores of a larger machine, keep the exports, which all cores made, for the second command:

    python benchmarks/pipelines.py --frames 2 --work exports
    taskset -c 0,1 python benchmarks/pipelines.py --frames 30 --work exports --threads 2
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from random_models import MODELS, random_bundle

from dinov3_seg_ros.benchmark.baselines import Dinov3RosPipeline, NaivePipeline
from dinov3_seg_ros.benchmark.measurement import Measured, run_in_turn, synthetic_frames
from dinov3_seg_ros.benchmark.operations import backbone_gflop
from dinov3_seg_ros.benchmark.picture import check_can_draw, draw_stages
from dinov3_seg_ros.benchmark.processor import gemm_gflops, torch_gemm_gflops
from dinov3_seg_ros.benchmark.timed_pipeline import OurPipeline
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.onnx_folder import export_folder
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.runtimes.onnx.providers import CPU, OPENVINO
from dinov3_seg_ros.runtimes.onnx.targets import runs_here
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.cpu import this_cpu, usable_cores
from dinov3_seg_ros.support.errors import DisagreementError
from dinov3_seg_ros.support.files import write_json

FRAME_SIZE, NETWORK_SIZE = (480, 640), (640, 640)


class Variant(NamedTuple):
    """One of our pipelines: its precision, the size of its network input, and the provider that runs it."""

    precision: str
    size: tuple[int, int]
    provider: str = CPU

    @property
    def graph_precision(self) -> str:
        """Of the export that it runs."""
        return "fp32" if self.precision == "bf16" else self.precision

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        return f"{self.precision} {size}" + (", OpenVINO" if self.provider == OPENVINO else "")


FP32 = Variant("fp32", NETWORK_SIZE)
ON_CPU = [FP32, Variant("int8", NETWORK_SIZE), Variant("int8", FRAME_SIZE)]
ON_OPENVINO = [
    Variant(precision, size, OPENVINO) for precision in ("bf16", "int8_qdq") for size in (NETWORK_SIZE, FRAME_SIZE)
]
# Clusters of random features lie nearer together than what a trained head separates, so int8 changes more labels. This
# script measures speed; the table says how many labels are equal.
LEAST_LABELS = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="vits16plus")
    parser.add_argument("--classes", type=int, default=134)
    parser.add_argument("--in-view", type=int, default=12)
    parser.add_argument("--detail", action="store_true", help="with the image-guided head, as recipes have it on a ViT")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="CPU threads of all pipelines")
    parser.add_argument("--work", type=Path, help="folder for the bundle and its exports, kept for the next time")
    options = parser.parse_args()
    if options.picture:
        check_can_draw(options.picture)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    frames = synthetic_frames(FRAME_SIZE, options.frames)
    variants = [*ON_CPU, *(ON_OPENVINO if runs_here(OPENVINO) else ())]
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = work / f"{options.model}_{options.classes}{'_detail' if options.detail else ''}"
        if not path.exists():
            random_bundle(
                path,
                options.model,
                NETWORK_SIZE,
                frames,
                options.classes,
                "aspp",
                options.in_view,
                options.detail,
            )
        bundle = load_bundle(path)
        for precision, size in dict.fromkeys((one.graph_precision, one.size) for one in variants):
            if not export_folder(bundle, size, precision).exists():
                export([path], ExportOptions(size=size, precision=precision, least_labels=LEAST_LABELS))
        opened, refused = {}, {}
        for one in variants:
            try:
                segmenter = Segmenter.from_bundle(
                    path,
                    "onnx",
                    network_size=one.size,
                    precision=one.precision,
                    providers=[one.provider],
                    threads=options.threads,
                )
            except DisagreementError as error:  # on random weights; the others are measured all the same
                refused[one] = str(error)
            else:
                opened[one] = OurPipeline(segmenter, str(one))
        if FP32 not in opened:
            sys.exit(f"nothing to compare with: {refused[FP32]}")
        variants, ours = list(opened), list(opened.values())
        # The naive pipeline's labels come first: the others are compared with them.
        baselines = [NaivePipeline(bundle, NETWORK_SIZE), Dinov3RosPipeline(bundle, NETWORK_SIZE)]
        naive, dinov3_ros, *measured = run_in_turn([*baselines, *ours], frames, options.frames)
        gflop, rates = backbone_gflop(bundle, NETWORK_SIZE), dict(matrix_rates(options.threads))
    rows = [describe(one, dinov3_ros, naive, measured[0]) for one in (*measured, naive, dinov3_ros)]
    for row, variant in zip(rows, variants, strict=False):
        if variant.size == NETWORK_SIZE:
            row["backbone_gflops"] = round(gflop / row["stages_ms"]["backbone"]["median"] * 1000.0, 1)
    print(f"{this_cpu().name}, {options.threads} threads\n{table(rows)}")
    for one, reason in refused.items():
        print(f"{one} was not measured: {reason}")
    print(f"backbone: {gflop:.0f} GFLOP; this processor multiplies, in GFLOP/s: {rates}")
    for row in rows:
        if "backbone_gflops" in row:
            shares = ", ".join(f"{row['backbone_gflops'] / rate:.0%} of {name}" for name, rate in rates.items())
            print(f"{row['name']}: {row['backbone_gflops']:.0f} GFLOP/s, {shares}")
    if options.json:
        result = {
            "processor": this_cpu().model_dump(mode="json"),
            "threads": options.threads,
            "pipelines": rows,
            "refused": {str(one): reason for one, reason in refused.items()},
            "backbone_gflop": round(gflop, 2),
            "matrix_gflops": rates,
        }
        write_json(options.json, result)
    if options.picture:
        draw_stages({one.name: one.stages_ms for one in (*measured, naive, dinov3_ros)}, options.picture)


def matrix_rates(threads: int) -> Iterator[tuple[str, float]]:
    """Measure what the processor multiplies in each number type: GFLOP/s, for int8 10^9 operations a second."""
    rate = gemm_gflops(threads=threads)
    if rate is not None:
        yield "float32", round(rate, 1)
    cpu = this_cpu()
    if cpu.multiplies_bf16:
        yield "bfloat16", round(torch_gemm_gflops("cpu", "bfloat16", 2048), 1)
    if "avx512_vnni" in cpu.features or "avx_vnni" in cpu.features:
        yield "int8", round(torch_gemm_gflops("cpu", "int8", 2048), 1)


def describe(measured: Measured, dinov3_ros: Measured, naive: Measured, fp32: Measured) -> dict:
    """Return the row of one pipeline."""
    return {
        "name": measured.name,
        **measured.summary(),
        # As a share of the backbone, like what is outside of it.
        "head_and_decode": round(
            (measured.stage_ms("heads") + measured.stage_ms("decode")) / measured.stage_ms("backbone"), 4
        ),
        "times_faster_than_dinov3_ros": round(measured.times_faster_than(dinov3_ros), 2),
        "times_faster_than_naive": round(measured.times_faster_than(naive), 2),
        "share_of_fp32": round(measured.total_ms["median"] / fp32.total_ms["median"], 3),
        # The head of dinov3_ros has random weights of its own.
        "labels_equal_naive": None if measured is dinov3_ros else round(measured.equal_labels, 6),
    }


def table(rows: list[dict]) -> str:
    """Format the rows as text."""
    lines = [
        f"{'':<26}{'total ms (p95)':>20}{'x dinov3_ros':>14}{'x naive':>9}{'of fp32':>9}"
        f"{'equal labels':>14}{'head and decode':>17}{'outside backbone':>18}{'in view':>9}"
    ]
    for row in rows:
        total, equal = row["total_ms"], row["labels_equal_naive"]
        equal = "" if equal is None else f"{equal:.4%}"
        lines.append(
            f"{row['name']:<26}{total['median']:>11.1f} ({total['p95']:.1f})".ljust(46)
            + f"{row['times_faster_than_dinov3_ros']:>14.2f}"
            + f"{row['times_faster_than_naive']:>9.2f}{row['share_of_fp32']:>9.3f}"
            + f"{equal:>14}{row['head_and_decode']:>17.1%}{row['outside_backbone']:>18.1%}{row['classes_in_view']:>9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
