"""How much faster an epoch is from the feature cache: ``python benchmarks/feature_cache.py [--size 448] [--rounds 3]``.

A frozen backbone of ViT-S+/16's shape with random weights, the default head, 11 classes, the loss at the size of the
network input. Epochs with and without the cache alternate in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from random_models import MODELS

from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from training.loop.stages import StageRun
from training.loop.trainer import Trainer
from training.recipes.schema import Recipe

VIEWS = 2


def make_trainer(folder: Path, options: argparse.Namespace, views: int) -> Trainer:
    recipe = Recipe.model_validate(
        {
            "name": "cached" if views else "uncached",
            "output": str(folder / "run"),
            "data": {
                "name": "scenes",
                "count": options.images,
                "val_count": 1,
                "size": [480, 640],
                "cache": str(folder / "scenes"),
            },
            "input": {"network_size": [options.size, options.size]},
            "backbone": {"source": str(folder / "backbone")},
            "augmentation": {"scale": [0.5, 2.0], "flip": 0.5, "brightness": 0.1},
            "epochs": options.rounds + 1,
            "batch_size": options.batch_size,
            "precision": options.precision,
            "workers": options.workers,
            "cache": {"views": views, "folder": str(folder / "features")},
        }
    )
    return Trainer(recipe, Console(quiet=True))


def epoch_seconds(run: StageRun, epoch: int) -> float:
    step = epoch * run.stage.batching.steps
    start = time.perf_counter()
    for batches in run.batches(step):
        run.step(step, batches)
        step += 1
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=448, help="height and width of the network input, pixels")
    parser.add_argument("--images", type=int, default=16, help="images of an epoch")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="measured epochs of each kind")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_backbone(build_backbone(MODELS["vits16plus"]), folder / "backbone")
        uncached = make_trainer(folder, options, views=0)
        computed = uncached.start(uncached.stages[0])
        epoch_seconds(computed, 0)  # renders the scenes
        cached = make_trainer(folder, options, views=VIEWS)
        start = time.perf_counter()
        cached.use_cache()
        filled = time.perf_counter() - start
        read = cached.start(cached.stages[0])
        epoch_seconds(read, 0)
        size = sum(path.stat().st_size for path in (folder / "features").rglob("*") if path.is_file())
        print(
            f"{options.images} images at {options.size}x{options.size}, batches of {options.batch_size}, "
            f"{options.precision}, {torch.get_num_threads()} threads on {cached.model.head.classifier.weight.device}; "
            f"{VIEWS} views computed in {filled:.1f} s, {size / 1e6:.1f} MB"
        )
        print(f"{'epoch':>5} {'computed':>10} {'from cache':>10} {'ratio':>7}   seconds")
        times = []
        for epoch in range(1, options.rounds + 1):
            times.append((epoch_seconds(computed, epoch), epoch_seconds(read, epoch)))
            slow, fast = times[-1]
            print(f"{epoch:5d} {slow:10.2f} {fast:10.2f} {slow / fast:7.1f}", flush=True)
        slow, fast = (statistics.median(side) for side in zip(*times, strict=True))
        print(f"medians {slow:8.2f} {fast:10.2f} {slow / fast:7.1f}")


if __name__ == "__main__":
    main()
