"""Compares all heads on one frozen backbone and CamVid, over several seeds: scores, costs and latencies.

    python -m training.train camvid_backbone --data.root CAMVID
    python benchmarks/camvid_heads.py CAMVID [--backbone runs/camvid_backbone/best/backbone] [--seeds 0 1 2]

All heads are trained by the recipe `camvid` with the same number of steps, on the same cached views; finished trainings
are not repeated. The table printed at the end is the one in docs/heads.md.

The times of training come from the trainings themselves, with one thread each and as many trainings at a time as there
are jobs. They include all steps, also after interruptions, and the search for the cached views. They do not include
the start of the process, the validation at the end, and steps lost in an interruption. Computing the views is not in
them either: the trainings of the first seed do this for all, and the times are medians over the seeds.

The latencies are PyTorch's, with the heads in turn, for one image: on a map of 384 channels and 40x40 cells with 134
classes, and on this backbone's maps of a 640x640 image.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dinov3_seg_ros.model.heads import Head, build_head  # noqa: E402
from dinov3_seg_ros.model.weights import load_backbone  # noqa: E402
from dinov3_seg_ros.support.cpu import usable_cores  # noqa: E402

ALL, STRIDE_16, DEEPEST = (1, 2, 3), (2,), (3,)
CLASSES = 11
LATENCY_ROUNDS = 15
SCORES_FILE = "scores.json"
SCORES = {"mIoU": "miou", "within 3 px of boundaries": "boundary_miou_3px"}


@dataclass(frozen=True)
class Row:
    """A head, the stages that it reads, and a note for the table."""

    head: str
    layers: tuple[int, ...] = ALL
    note: str = ""
    variant: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.head}, {self.note}" if self.note else self.head

    def build(self, channels: Sequence[int], strides: Sequence[int], classes: int) -> Head:
        return build_head(self.head, channels, strides, classes, variant=self.variant, **self.options)

    def arguments(self) -> list[str]:
        """Command-line options that make a recipe train this head."""
        words = ["--backbone.layers", *map(str, self.layers), "--head.name", self.head]
        if self.variant is not None:
            words += ["--head.variant", self.variant]
        for key, value in self.options.items():
            values = value if isinstance(value, list) else [value]
            words += [f"--head.options.{key}", *map(str, values)]
        return words


# Widths are in proportion to the backbone's: its deepest stage has 256 channels where ConvNeXt-T has 768.
ROWS = {
    "linear": Row("linear"),
    "aspp": Row("aspp", note="the default"),
    "aspp, stride 16": Row("aspp", STRIDE_16, options={"detail": False}),
    "aspp with detail, stride 16": Row("aspp", STRIDE_16, "image-guided", options={"detail": True}),
    "plain aspp, stride 16": Row("aspp", STRIDE_16, "variant plain", "plain"),
    "aspp, deepest stage": Row("aspp", DEEPEST, options={"detail": False}),
    "plain aspp, deepest stage": Row("aspp", DEEPEST, "variant plain", "plain"),
    "convolutions, deepest stage": Row(
        "pyramid", DEEPEST, "convolutions only", options={"fpn": False, "ppm": False, "hidden": 128}
    ),
    "PPM, deepest stage": Row("pyramid", DEEPEST, "PPM only", options={"fpn": False, "hidden": 128}),
    "FPN 128": Row("pyramid", note="FPN of 128", options={"width": 128, "ppm": False, "hidden": 128}),
    "FPN 64, PPM": Row("pyramid", note="FPN of 64, PPM", options={"width": 64, "hidden": 128}),
    "FPN 128, PPM": Row("pyramid", note="FPN of 128, PPM", options={"width": 128, "hidden": 128}),
    "FPN 256, PPM": Row("pyramid", note="FPN of 256, PPM", options={"width": 256, "hidden": 128}),
    "unet, deepest stage": Row("unet", DEEPEST, "no skip connections", options={"widths": [128, 64, 32, 16]}),
    "unet": Row("unet", note="with skip connections", options={"widths": [128, 64, 32, 16]}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="CamVid's folder")
    parser.add_argument("--backbone", type=Path, default=Path("runs/camvid_backbone/best/backbone"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--layers", nargs="+", type=int, help="what every row reads: block 7 of the ViT of camvid_vit")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--lr", type=float, default=1e-3, help="largest learning rate")
    parser.add_argument("--crop", type=int, nargs=2, default=[224, 320], help="height and width of the training crops")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="trainings at a time, one thread each")
    parser.add_argument("--views", type=int, default=8, help="cached views of each image; 0: compute features anew")
    parser.add_argument("--output", type=Path, default=Path("runs/camvid_heads"))
    parser.add_argument("--latency", action="store_true", help="measure latencies too, on a quiet machine")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(train_and_evaluate, name, seed, options) for seed in options.seeds for name in options.rows]
        for run in runs:
            run.result()
    latencies = measure_latencies(options) if options.latency else {}
    print(table(options, latencies))


def chosen_row(name: str, options: argparse.Namespace) -> Row:
    return replace(ROWS[name], layers=tuple(options.layers)) if options.layers else ROWS[name]


def run_folder(name: str, seed: int, options: argparse.Namespace) -> Path:
    words = "".join(letter if letter.isalnum() else "_" for letter in name).replace("__", "_")
    return options.output / f"{words}-{seed}"


def train_and_evaluate(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train and evaluate one head in processes of their own, on one thread each; what is done is not repeated."""
    output = run_folder(name, seed, options)
    record = last_record(output)
    if record is None or record["step"] != options.iterations:
        train(name, seed, options)
    if not (output / SCORES_FILE).exists():
        words = [str(output / "last"), "--json", str(output / SCORES_FILE), "--data.root", options.data]
        run("training.evaluate", *words, "--runtime", "torch")


def train(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train one head, or finish an interrupted training."""
    output = run_folder(name, seed, options)
    words = [
        *("camvid", "--output", str(output), "--seed", str(seed), "--data.root", options.data),
        *("--backbone.source", str(options.backbone), "--backbone.storage", "embedded"),
        *("--epochs", "None", "--iterations", str(options.iterations), "--evaluate_every", "1000"),
        *("--optimizer.lr", str(options.lr)),
        *("--augmentation.crop", *map(str, options.crop), "--cache.views", str(options.views), "--cache.seed", "0"),
        *chosen_row(name, options).arguments(),
    ]
    run("training.train", *words, "--workers", "0", "--resume")


def run(module: str, *words: str) -> None:
    command = [sys.executable, "-m", module, *words]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def measure_latencies(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each row on one 40x40 map of 384 channels, and on the backbone's maps of 640x640."""
    layers = options.layers or list(ALL)
    backbone = load_backbone(str(options.backbone), layers)
    shapes = dict(zip(layers, zip(backbone.channels, backbone.strides, strict=True), strict=True))
    cases, image = {}, torch.randn(1, 3, 640, 640)
    for name in options.rows:
        row = chosen_row(name, options)
        single = row.build([384], [16], 134).eval(), [torch.randn(1, 384, 40, 40)]
        read = [shapes[layer] for layer in row.layers]
        own = row.build([c for c, _ in read], [s for _, s in read], CLASSES).eval()
        cases[name] = single, (own, [torch.randn(1, c, 640 // s, 640 // s) for c, s in read])
    times: dict[str, list[list[float]]] = {name: [[], []] for name in cases}
    with torch.inference_mode():
        for _ in range(LATENCY_ROUNDS):
            for name, both in cases.items():
                for index, (head, maps) in enumerate(both):
                    start = time.perf_counter()
                    head(maps, image)
                    times[name][index].append(1000 * (time.perf_counter() - start))
    return {name: tuple(statistics.median(values[2:]) for values in both) for name, both in times.items()}


def table(options: argparse.Namespace, latencies: dict[str, tuple[float, float]]) -> str:
    """The table in Markdown, with one line for each head."""
    lines = [
        f"| head | reads strides | {' | '.join(SCORES)} | parameters | ms, 384x40x40 | ms, 640x640 | training, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in options.rows:
        row = chosen_row(name, options)
        backbone = load_backbone(str(options.backbone), list(row.layers))
        head = row.build(backbone.channels, backbone.strides, CLASSES)
        folders = [run_folder(name, seed, options) for seed in options.seeds]
        seconds = statistics.median(last_record(folder)["seconds"] for folder in folders)
        evaluations = [json.loads((folder / SCORES_FILE).read_text()) for folder in folders]
        strides = ", ".join(map(str, backbone.strides))
        scores = " | ".join(mean_and_spread([found[key] for found in evaluations]) for key in SCORES.values())
        parameters = sum(parameter.numel() for parameter in head.parameters())
        milliseconds = "".join(f" {value:.1f} |" for value in latencies.get(name, ())) or " | |"
        lines.append(f"| {row.label} | {strides} | {scores} | {parameters:,} |{milliseconds} {seconds:.0f} |")
    return "\n".join(lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def last_record(folder: Path) -> dict[str, Any] | None:
    """Record of the last validation; None before the first one."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else None


if __name__ == "__main__":
    main()
