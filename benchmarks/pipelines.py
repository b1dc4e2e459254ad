"""Measure whole frames with many classes: our pipeline, a naive PyTorch pipeline and the dinov3_ros pipeline.

    python benchmarks/pipelines.py --frames 30 --json pipelines.json --picture pipelines.png

ViT-S+/16 and the default head with random weights, 134 classes of which about 12 are in view (random_models.py). The
other pipelines run eagerly in PyTorch in float32 at 640x640; the naive one has the same head. All take turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from random_models import MODELS, random_bundle

from dinov3_seg_ros.benchmark.baselines import Dinov3RosPipeline, NaivePipeline
from dinov3_seg_ros.benchmark.measurement import Measured, run_in_turn, synthetic_frames
from dinov3_seg_ros.benchmark.operations import backbone_gflop
from dinov3_seg_ros.benchmark.picture import draw_stages
from dinov3_seg_ros.benchmark.processor import gemm_gflops
from dinov3_seg_ros.benchmark.timed_pipeline import OurPipeline
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.segmenter import Segmenter

FRAME_SIZE, NETWORK_SIZE = (480, 640), (640, 640)
VARIANTS = (("fp32", NETWORK_SIZE), ("int8", NETWORK_SIZE), ("int8", FRAME_SIZE))
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
    options = parser.parse_args()
    frames = synthetic_frames(FRAME_SIZE, options.frames)
    with tempfile.TemporaryDirectory() as work:
        path = random_bundle(
            Path(work) / "bundle",
            options.model,
            NETWORK_SIZE,
            frames,
            options.classes,
            "aspp",
            options.in_view,
            options.detail,
        )
        for precision, size in VARIANTS:
            export([path], ExportOptions(size=size, precision=precision, least_labels=LEAST_LABELS))
        bundle = load_bundle(path)
        ours = [
            OurPipeline(
                Segmenter.from_bundle(path, "onnx", network_size=size, precision=precision),
                f"{precision} {size[0]}x{size[1]}",
            )
            for precision, size in VARIANTS
        ]
        # The naive pipeline's labels come first: the others are compared with them.
        baselines = [NaivePipeline(bundle, NETWORK_SIZE), Dinov3RosPipeline(bundle, NETWORK_SIZE)]
        naive, dinov3_ros, *measured = run_in_turn([*baselines, *ours], frames, options.frames)
        gflop, rate = backbone_gflop(bundle, NETWORK_SIZE), gemm_gflops()
    rows = [describe(one, dinov3_ros, naive) for one in (*measured, naive, dinov3_ros)]
    print(table(rows))
    reached = gflop / measured[0].stages_ms["backbone"]["median"] * 1000.0
    print(
        f"backbone of {measured[0].name}: {gflop:.0f} GFLOP, {reached:.0f} GFLOP/s, {reached / rate:.0%} of the "
        f"measured float32 GEMM rate ({rate:.0f} GFLOP/s)"
    )
    if options.json:
        result = {"pipelines": rows, "backbone_gflop": round(gflop, 2), "gemm_gflops": round(rate, 1)}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.picture:
        draw_stages({one.name: one.stages_ms for one in (*measured, naive, dinov3_ros)}, options.picture)


def describe(measured: Measured, dinov3_ros: Measured, naive: Measured) -> dict:
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
        # The head of dinov3_ros has random weights of its own.
        "labels_equal_naive": None if measured is dinov3_ros else round(measured.equal_labels, 6),
    }


def table(rows: list[dict]) -> str:
    """Format the rows as text."""
    lines = [
        f"{'':<16}{'total ms (p95)':>20}{'x dinov3_ros':>15}{'x naive':>12}{'equal labels':>14}"
        f"{'head and decode':>17}{'outside backbone':>18}{'in view':>9}"
    ]
    for row in rows:
        total, equal = row["total_ms"], row["labels_equal_naive"]
        equal = "" if equal is None else f"{equal:.4%}"
        lines.append(
            f"{row['name']:<16}{total['median']:>11.1f} ({total['p95']:.1f})".ljust(36)
            + f"{row['times_faster_than_dinov3_ros']:>15.2f}{row['times_faster_than_naive']:>12.2f}"
            + f"{equal:>14}{row['head_and_decode']:>17.1%}{row['outside_backbone']:>18.1%}{row['classes_in_view']:>9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
