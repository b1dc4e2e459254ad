"""Kill a training at random moments, resume it each time, and compare: ``python benchmarks/kill_and_resume.py``.

The script runs the training command on the CPU and ends it by SIGKILL. After each kill every bundle on disk must load.
At the end the weights must equal, in every bit, those of a training that was never killed. The exit status is 0 only
if this holds and the training was killed as often as asked for.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dinov3_seg_ros.bundle.loading import load_bundle
from training.loop.checkpoint import read_checkpoint
from training.loop.run_folder import BEST, BEST_LOSS, CHECKPOINT_FILE, LAST

BUNDLES = (BEST, BEST_LOSS, LAST)
#: Share of the kills after the first step of the training; the others may come while it starts.
WHILE_TRAINING = 0.8
TINY = {
    "name": "killed",
    "data": {"name": "scenes", "count": 24, "val_count": 4, "size": [96, 128]},
    "input": {"network_size": [96, 128], "geometry": "stretch"},
    "backbone": {
        "config": {"model_type": "dinov3_convnext", "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
        "layers": [1, 2, 3],
    },
    "head": {"options": {"width": 32}},
    "augmentation": {"scale": [0.5, 1.5], "flip": 0.5},
    "stages": [{"epochs": 6}, {"epochs": 6, "optimizer": {"name": "sgd"}, "augmentation": {}}],
    "batch_size": 4,
    "accumulate": 2,
    "ema": 0.99,
    "precision": "fp32",
    "checkpoint_minutes": 0,
    "workers": 0,
}


def start(recipe: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "training.train", str(recipe), "--output", str(output), "--resume"]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def wait_for_steps(process: subprocess.Popen, output: Path) -> None:
    """Wait until the training writes a checkpoint, or ends."""

    def written() -> int:
        path = output / CHECKPOINT_FILE
        return path.stat().st_mtime_ns if path.exists() else 0

    before = written()
    while process.poll() is None and written() == before:
        time.sleep(0.005)


def step(output: Path) -> int:
    """The step from which the training can resume."""
    checkpoint = read_checkpoint(output / CHECKPOINT_FILE)
    return 0 if checkpoint is None else checkpoint.step


def bundles(output: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of all bundles on disk; raises an error where one cannot be loaded."""
    weights = {}
    for name in BUNDLES:
        if (output / name).exists():
            bundle = load_bundle(output / name)
            bundle.load_head(), bundle.load_backbone()
            files = sorted(bundle.path.rglob("*.safetensors"))
            weights[name] = {f"{file.name}/{key}": value for file in files for key, value in load_file(file).items()}
    return weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "cache": str(folder / "scenes")}}))
        if start(recipe, folder / "first").wait() != 0:  # pays for the scenes
            return 1
        process = start(recipe, folder / "unbroken")
        wait_for_steps(process, folder / "unbroken")
        begun = time.monotonic()
        if process.wait() != 0:
            return 1
        part = (time.monotonic() - begun) / options.kills
        kills = 0
        while kills < options.kills:
            process = start(recipe, folder / "killed")
            if moments.random() < WHILE_TRAINING:
                wait_for_steps(process, folder / "killed")
                moment = moments.uniform(0, 1.5 * part)
            else:
                moment = moments.uniform(0, 10)
            try:
                process.wait(moment)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                loaded = ", ".join(bundles(folder / "killed")) or "none yet"
                print(f"kill {kills:2d} after step {step(folder / 'killed')}; bundles that load: {loaded}", flush=True)
        if start(recipe, folder / "killed").wait() != 0:
            return 1
        expected, found = bundles(folder / "unbroken"), bundles(folder / "killed")
        different = [
            f"{bundle}: {key}"
            for bundle in BUNDLES
            for key, value in expected[bundle].items()
            if not torch.equal(value, found[bundle][key])
        ]
    print(f"{kills} kills; tensors that differ: {', '.join(different) or 'none'}")
    if kills < options.kills:
        print(f"the training ended before {options.kills} kills; ask for fewer with --kills, or take another --seed")
    return 1 if different or kills < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
