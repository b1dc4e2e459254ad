"""Train a head from Python: python examples/train_from_python.py [RECIPE] [--key value ...]

Without arguments it trains the demo's head on a few rendered rooms; the bundle is runs/from_python/best.
"""

import sys
from pathlib import Path

from rich.console import Console

from dinov3_seg_ros import load_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # training/ is not installed
from training.loop.trainer import Trainer
from training.recipes.loading import load_recipe

SHORT = ["demo", "--name", "from_python", "--data.count", "32", "--data.val_count", "8", "--epochs", "1"]

if __name__ == "__main__":  # the processes that load data import this file, too
    recipe, *overrides = sys.argv[1:] or SHORT
    trainer = Trainer(load_recipe(recipe, overrides), Console())
    best = trainer.run()
    bundle = load_bundle(trainer.output / "best")
    print(f"{bundle.path}: {bundle.manifest.head.name} head, mIoU {best['miou']:.3f}")
