"""Measures what unlabelled images add: students that a teacher taught against trainings on the labelled images alone.

    python benchmarks/distillation.py CAMVID [--labels 20] [--backbone SOURCE --layers 1 2 3]
        [--teacher RECIPE --teacher-iterations 800 --teacher-seeds 0 1]

The teachers are trained on so many labelled images of CamVid's; together, and by averaged views, they label its other
training images (`training.distill`). Without --teacher they are the trainings that see the labelled images alone. The
students train on both, with the recipe, seeds and steps of those alone. All are evaluated on the validation images. The
table at the end has the means over the seeds, and the 95 % interval of their difference: of 1000 draws of validation
images and of seeds.

All is done by the project's own commands, in processes of their own; what is finished is not repeated.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dinov3_seg_ros.segmenter import Segmenter  # noqa: E402
from dinov3_seg_ros.support.files import write_json  # noqa: E402
from training.data.published.camvid import CamVidData  # noqa: E402
from training.evaluation.bootstrap import Ratios, draw_images  # noqa: E402

DRAWS = 1000


def run(module: str, *words: object) -> None:
    print(f"python -m {module}", *words, flush=True)
    subprocess.run([sys.executable, "-m", module, *map(str, words)], cwd=ROOT, env=os.environ, check=True)


def train(recipe: str, output: Path, seed: int, steps: int, options: argparse.Namespace, *words: object) -> Path:
    """Train, or finish a training; return its last bundle."""
    command = [recipe, "--output", output, "--seed", seed, "--data.root", options.data]
    command += ["--data.train_images", options.labels, "--epochs", "None", "--iterations", steps]
    run("training.train", *command, *words, "--resume")
    return output / "last"


def train_students(kind: str, options: argparse.Namespace, *words: object) -> list[Path]:
    """The students, or those that see the labelled images alone; one of each seed."""
    keys = (pair.partition("=") for pair in options.set)
    changes = [*(word for key, _, value in keys for word in (f"--{key}", value)), *words]
    if options.backbone:
        changes += ["--backbone.source", options.backbone, "--backbone.storage", "embedded"]
    if options.layers:
        changes += ["--backbone.layers", *options.layers]
    folders = {seed: options.output / f"{kind}-{seed}" for seed in options.seeds}
    return [train(options.recipe, folders[seed], seed, options.iterations, options, *changes) for seed in folders]


def train_teachers(options: argparse.Namespace) -> list[Path]:
    """The teachers by a recipe of their own, one of each seed."""
    steps = options.teacher_iterations or options.iterations
    folders = {seed: options.output / f"teacher-{seed}" for seed in options.teacher_seeds or options.seeds}
    return [train(options.teacher, folders[seed], seed, steps, options) for seed in folders]


def labelled_folder(options: argparse.Namespace) -> Path:
    """A folder with links to the labelled images and to those for validation, which the teacher leaves out."""
    folder: Path = options.output / "left_out"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        data = CamVidData(root=options.data, train_images=options.labels).open(split)
        for sample in data.samples:
            link = folder / f"{split}_{sample.image.name}"
            if not link.is_symlink():
                link.symlink_to(sample.image.resolve())
    return folder


def ratios_of(bundle: Path, data: str) -> Ratios:
    """Intersections and unions of a bundle on each validation image."""
    val = CamVidData(root=data).open("val")
    found = Ratios(len(val.class_names))
    segmenter = Segmenter.from_bundle(bundle, runtime="torch")
    for index in range(len(val)):
        image, truth = val.item(index)
        found.add_iou(truth, segmenter.segment([image])[0].labels, len(val.class_names))
    return found


def compare(alone: Sequence[Ratios], taught: Sequence[Ratios], images: int) -> tuple[float, tuple[float, float]]:
    """Mean mIoU of those taught less that of those alone, and its interval."""
    weights, random = draw_images(images, DRAWS), np.random.default_rng(0)
    exact, drawn = [], []
    for own in (alone, taught):
        exact.append(np.mean([ratios.mean() or 0.0 for ratios in own]))
        values = np.array([ratios.draws(weights)[:, -1] for ratios in own])
        picked = random.integers(len(own), size=(DRAWS, len(own)))
        drawn.append(values[picked, np.arange(DRAWS)[:, None]].mean(1))
    low, high = np.percentile(drawn[1] - drawn[0], [2.5, 97.5])
    return float(exact[1] - exact[0]), (float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="CamVid's folder")
    parser.add_argument("--recipe", default="camvid_few_shot", help="of the students")
    parser.add_argument("--teacher", help="recipe of the teachers (default: the students')")
    parser.add_argument("--labels", type=int, default=20, help="labelled training images")
    parser.add_argument("--backbone", help="of the students, in place of the recipe's source")
    parser.add_argument("--layers", nargs="+", type=int, help="of the students, in place of the recipe's")
    parser.add_argument("--iterations", type=int, default=600, help="steps of each student and of those alone")
    parser.add_argument("--teacher-iterations", type=int, help="steps of each teacher (default: the students')")
    parser.add_argument("--teacher-seeds", nargs="+", type=int, help="with --teacher (default: the students')")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of students and of those alone")
    parser.add_argument("--share", type=float, default=0.5, help="of labelled images among the students' samples")
    parser.add_argument("--threshold", type=float, default=0.8, help="of the teacher's confidence")
    parser.add_argument("--scales", nargs="+", default=["0.75", "1.0", "1.25"], help="of the teachers' views")
    parser.add_argument("--output", type=Path, default=Path("runs/distillation"))
    parser.add_argument(
        "--set", nargs="+", metavar="KEY=VALUE", default=[], help="further keys of the students' recipe"
    )
    options = parser.parse_args()
    options.output, options.data = options.output.resolve(), str(Path(options.data).resolve())
    alone = train_students("alone", options)
    teachers = train_teachers(options) if options.teacher else alone
    pseudo = options.output / "pseudo"
    if not (pseudo / "pseudo_labels.json").exists():
        shutil.rmtree(pseudo, ignore_errors=True)  # an interrupted run left it
        images = next(
            path for path in (Path(options.data) / "train" / "images", Path(options.data) / "train") if path.is_dir()
        )
        words = [images, "--bundle", *teachers, "--labelled", labelled_folder(options), "--output", pseudo]
        views = ["--inference.flip", "True", "--inference.scales", *options.scales]
        run("training.distill", *words, "--threshold", options.threshold, *views)
    added = ["--pseudo_labels.root", pseudo, "--pseudo_labels.labelled_share", options.share]
    taught = train_students("taught", options, *added)
    bundles = {"alone": alone, "taught": taught, **({"teacher": teachers} if options.teacher else {})}
    ratios = {name: [ratios_of(bundle, options.data) for bundle in own] for name, own in bundles.items()}
    difference, interval = compare(ratios["alone"], ratios["taught"], len(CamVidData(root=options.data).open("val")))
    scores = {name: [one.mean() or 0.0 for one in own] for name, own in ratios.items()}
    write_json(options.output / "summary.json", {**scores, "difference": difference, "interval": interval})
    print("| | mIoU of each seed | mean |\n|---|---|---|")
    for name, values in scores.items():
        print(f"| {name} | {', '.join(f'{value:.4f}' for value in values)} | {np.mean(values):.4f} |")
    low, high = interval
    print(f"difference: {100 * difference:.2f} points ({100 * low:.2f} to {100 * high:.2f})")


if __name__ == "__main__":
    main()
