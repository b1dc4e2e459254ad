"""Measures how few labels are enough: mIoU against the number of labelled images, for each strategy of training.select.

    python benchmarks/few_labels.py CAMVID --recipe benchmarks/few_labels_camvid.yaml --probe
    python benchmarks/few_labels.py DHCN/train --recipe benchmarks/few_labels_dhcn.yaml --probe

Every strategy starts without labels. In each round it chooses the next images, with the head that it has fitted so far,
and fits a new head to all that it has chosen; for the first images there is no head, and what `auto` means without one
chooses for the strategies that need one. `random` draws other images each time. Each run chooses from three quarters of
the training images, drawn by its seed: otherwise all runs of a strategy without chance would be one.

The backbone is frozen. `--probe` fits a linear head to the features of the images as they are, by L-BFGS: seconds, and
no chance beyond the choice of images. Without it the recipe's head is trained on augmented views, whose features are
computed once, for the same number of steps whatever the number of images; the chance in it adds to that of the choice.

With `--target` the strategies also look at validation images, without their labels, as `training.select --target`
does: at every second stretch of ten. All are then scored on the other stretches, at which nothing has looked.

mIoU is over the classes that the validation images show. Of an image in several versions, as Roboflow exports them, the
first counts alone.

Each round is a file in the output folder, and is not repeated; so a run that was stopped goes on. The table at the end
says, for the mIoU that random images reach, how many labels each strategy needs (interpolated between the rounds, in
the logarithm of the number), and what share of labels it saves, with the 95 % interval: of 1000 draws of validation
images and of runs. Where a strategy needs fewer labels than the first round, or more than the last, their numbers bound
it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import default_collate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.label_savings import RANDOM, Round, draw, miou, summarise, table  # noqa: E402
from dinov3_seg_ros import decode  # noqa: E402
from dinov3_seg_ros.frames.preprocessing import Placement, fill_canvas, place  # noqa: E402
from dinov3_seg_ros.model.heads.linear import LinearHead  # noqa: E402
from dinov3_seg_ros.support.files import replacing_file, write_json  # noqa: E402
from training.data import SegmentationDataset  # noqa: E402
from training.data.grouping import source_of  # noqa: E402
from training.data.labelled_images import LabelledImages  # noqa: E402
from training.loop.bundle_writer import BundleWriter  # noqa: E402
from training.loop.model import SegmentationModel, make_backbone, make_head  # noqa: E402
from training.loop.parts import make_cache, make_loss, pixel_counter  # noqa: E402
from training.losses import balanced_weights  # noqa: E402
from training.recipes.loading import load_recipe  # noqa: E402
from training.recipes.resolve import resolve  # noqa: E402
from training.samples.cache_filling import fill_caches  # noqa: E402
from training.support.processes import make_accelerator  # noqa: E402
from training.support.randomness import Purpose, generator, seed_torch  # noqa: E402
from training.unlabelled.description import Description, Pool, describe, make_pool  # noqa: E402
from training.unlabelled.network import Look, without_padding  # noqa: E402
from training.unlabelled.strategies import AUTO, STRATEGIES, choose  # noqa: E402

# Each run chooses from another share of the images, so that the runs of a strategy without chance differ as well.
PRESENT = 0.75
PROBE_STEPS, PROBE_DECAY = 40, 1e-2
# Of the validation images, so many after one another are target images, and so many are scored.
STRETCH = 10


class Seen(NamedTuple):
    """What the frozen backbone sees of an image: maps (1, C, h, w) float16, canvas and placement."""

    maps: list[Tensor]
    canvas: Tensor
    placement: Placement


def one_version(data: SegmentationDataset) -> SegmentationDataset:
    """Keep the first of the versions that an export made of each image: nobody labels an image twice."""
    if isinstance(data, LabelledImages):
        names = [source_of(sample.image.with_suffix("").as_posix()) for sample in data.samples]
        first = {name: index for index, name in reversed(list(enumerate(names)))}
        data.samples = [data.samples[index] for index in sorted(first.values())]
    return data


class Bench:
    """Data, features and trainings of the heads."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        overrides = ["--data.root", options.data, "--cache.views", str(options.views), "--backbone.trainable", "none"]
        if options.backbone:
            overrides += ["--backbone.source", options.backbone, "--backbone.storage", "embedded"]
        if options.layers:
            overrides += ["--backbone.layers", *map(str, options.layers)]
        recipe = load_recipe(options.recipe, [*overrides, *options.set])
        if getattr(recipe.data, "train_images", None) is not None:  # the pool is all of them
            recipe = load_recipe(options.recipe, [*overrides, "--data.train_images", "None", *options.set])
        backbone = make_backbone(recipe.backbone)
        self.recipe = recipe = resolve(recipe, backbone)
        self.options, self.console = options, console
        self.train, self.val = (one_version(recipe.data.open(split)) for split in ("train", "val"))
        self.classes = self.train.class_names
        mean, std = backbone.normalisation = recipe.input.normalisation
        head = make_head(recipe.head, backbone, self.classes)
        self.model = SegmentationModel(backbone, head, mean, std).eval()
        self.pixels = pixel_counter(self.train)
        manifest = BundleWriter(recipe, self.model, self.val).manifest()
        self.cache = make_cache(recipe, self.train, self.train.contents().digest(), manifest)
        accelerator = make_accelerator(recipe.precision)

        def extract(canvases: Tensor) -> list[Tensor]:
            with torch.inference_mode(), accelerator.autocast():
                return self.model.features(canvases)

        if not options.probe:
            fill_caches([self.cache], recipe.cache, extract, 8, 0, accelerator, console)
        self.of_train = [self.see(self.train, index) for index in self._track(self.train, "training images")]
        looked_at = {index for index in range(len(self.val)) if options.target and index // STRETCH % 2 == 0}
        of_val = [self.see(self.val, index) for index in self._track(self.val, "validation images")]
        scored = [index for index in range(len(of_val)) if index not in looked_at]
        if not scored:
            raise SystemExit(f"--target needs more than {STRETCH} validation images; there are {len(self.val)}")
        self.of_target = [of_val[index] for index in sorted(looked_at)]
        self.of_val = [of_val[index] for index in scored]
        self.truth = [self.val.mask(index) for index in scored]
        if options.probe:
            self.cells, self.cell_labels = self.all_cells()

    def _track(self, data: SegmentationDataset, what: str) -> Any:
        return track(range(len(data)), what, console=self.console, disable=not self.console.is_terminal)

    @torch.inference_mode()
    def see(self, data: SegmentationDataset, index: int) -> Seen:
        """Run the backbone on an image, as the robot lays it on the canvas."""
        image, _ = data.item(index)
        shape = self.recipe.input
        multiple = self.model.backbone.patch_multiple
        placement = place(image.shape[:2], shape.geometry, shape.network_size, multiple)
        canvas = np.empty((*placement.canvas_size, 3), np.uint8)
        fill_canvas(image, placement, shape.normalisation[0], canvas)
        canvases = torch.from_numpy(canvas[None])
        return Seen([found.half() for found in self.model.features(canvases)], canvases, placement)

    @torch.inference_mode()
    def logits(self, seen: Seen) -> Tensor:
        """Logits (1, K, h, w) of the present head."""
        return self.model([*seen.maps, *([seen.canvas] if self.model.head.reads_images else [])])

    @torch.inference_mode()
    def all_cells(self) -> tuple[Tensor, Tensor]:
        """Features (N, cells, C) and labels (N, cells) of all training images, every second cell in height and width.

        They are normalised by their mean and variance, and so is what the head sees from now on.
        """
        head, cells, labels = self.model.head, [], []
        if not isinstance(head, LinearHead) or self.recipe.input.geometry != "stretch":
            raise SystemExit("--probe needs a recipe with the head linear and the geometry stretch")
        for index, seen in enumerate(self.of_train):
            found = head.extract([each.float() for each in seen.maps])
            height, width = found.shape[-2:]
            mask = cv2.resize(self.train.mask(index), (width, height), interpolation=cv2.INTER_NEAREST)
            cells.append(found[0, :, ::2, ::2].flatten(1).T)
            labels.append(torch.from_numpy(mask.astype(np.int64))[::2, ::2].flatten())
        every = torch.stack(cells)
        mean, variance = every.mean((0, 1)), every.var((0, 1))
        head.norm.running_mean, head.norm.running_var = mean, variance
        return (every - mean) / (variance + head.norm.eps).sqrt(), torch.stack(labels)

    def probe(self, indices: Sequence[int]) -> None:
        """Fit the linear head to the cells of some training images, until it is as good as it gets: no chance in it."""
        norm = self.model.head.norm
        head = make_head(self.recipe.head, self.model.backbone, self.classes)
        weights = balanced_weights(torch.from_numpy(self.pixels()[list(indices)].sum(0)))
        cells = self.cells[list(indices)].flatten(0, 1).T.contiguous()  # a product with few rows is the faster one
        labels = self.cell_labels[list(indices)].flatten()
        weight = torch.zeros(len(self.classes), len(cells), requires_grad=True)
        bias = torch.zeros(len(self.classes), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

        def objective() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy((weight @ cells).T + bias, labels, weights, ignore_index=self.train.ignore_value)
            value = value + PROBE_DECAY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(objective)
        head.norm = norm
        head.classifier.weight.data = weight.detach()[:, :, None, None]
        head.classifier.bias.data = bias.detach()
        self.model.head = head
        self.model.eval()

    def fit(self, indices: Sequence[int], seed: int) -> None:
        """Train a new head on some training images."""
        recipe, options = self.recipe, self.options
        if options.probe:
            return self.probe(indices)
        seed_torch(Purpose.INITIAL_WEIGHTS, seed)
        self.model.head = head = make_head(recipe.head, self.model.backbone, self.classes)
        loss = make_loss(recipe, len(self.classes), lambda: self.pixels()[list(indices)])
        optimizer = recipe.optimizer.build(self.model.backbone, head)
        self.model.train()
        order: list[int] = []
        random = generator(Purpose.SAMPLE_ORDER, seed)
        for step in range(options.iterations):
            while len(order) < recipe.batch_size:
                order += random.permutation(list(indices)).tolist()
            batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
            keys = [(int(random.integers(self.cache.views)), index) for index in batch]
            seen, masks = default_collate([self.cache[key] for key in keys])
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * recipe.schedule.factor(step, options.iterations)
            seed_torch(Purpose.STEP, seed, step)
            loss(self.model(seen), masks, self.train.ignore_value).backward()
            if recipe.optimizer.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(head.parameters(), recipe.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        self.model.eval()

    def score(self) -> tuple[np.ndarray, np.ndarray]:
        """Correct pixels and unions of the present head, (validation images, classes) each."""
        correct, union = (np.zeros((len(self.truth), len(self.classes)), np.int64) for _ in range(2))
        present = np.zeros(len(self.classes), bool)
        for row, (seen, truth) in enumerate(zip(self.of_val, self.truth, strict=True)):
            logits = self.logits(seen).float().numpy()
            window = seen.placement.window(logits.shape[-2:])
            predicted = decode.upsample_argmax(logits, truth.shape, window)[0]
            valid = truth < len(self.classes)
            hits, true, found = (
                np.bincount(ids, minlength=len(self.classes))[: len(self.classes)]
                for ids in (truth[valid & (truth == predicted)], truth[valid], predicted[valid])
            )
            correct[row], union[row] = hits, true + found - hits
            present |= true > 0
        # Of a class that no validation image shows, only errors count; who labels it would lose by it.
        union[:, ~present] = 0
        return correct, union

    def choose(self, strategy: str, labelled: Sequence[int], count: int, seed: int) -> list[int]:
        """The images that a strategy adds; with the present head, if it needs one."""
        with_head = STRATEGIES[strategy].needs_head and bool(labelled)
        present = self.present(seed)
        is_labelled = np.isin(present, labelled)
        if strategy == RANDOM:
            pool = Pool(np.zeros((len(present), 1), np.float32), is_labelled, np.zeros_like(is_labelled))
        else:
            looks = [
                describe(self.look(self.of_train[index], True)) if with_head else self.without_head[index]
                for index in present
            ]
            aims = [describe(self.look(seen, with_head)) for seen in self.of_target]
            is_labelled = np.append(is_labelled, np.zeros(len(aims), bool))
            pool = make_pool([*looks, *aims], is_labelled, self.classes, np.arange(len(is_labelled)) >= len(present))
            if STRATEGIES[strategy].needs_head and not with_head:
                strategy = AUTO
        return [int(present[choice.image]) for choice in choose(strategy, pool, count, seed)]

    @cached_property
    def without_head(self) -> list[Description]:
        """What the backbone alone says of each training image; it is the same in each round."""
        return [describe(self.look(seen, with_head=False)) for seen in self.of_train]

    def present(self, seed: int) -> np.ndarray:
        """The training images that a run may choose from."""
        order = generator(Purpose.SAMPLE_ORDER, seed, 1).permutation(len(self.train))
        return np.sort(order[: round(PRESENT * len(order))])

    def look(self, seen: Seen, with_head: bool) -> Look:
        maps = [without_padding(m, seen.placement.window(tuple(m.shape[-2:]))) for m in seen.maps]
        if not with_head:
            return Look(maps)
        found = self.logits(seen)
        return Look(maps, without_padding(found, seen.placement.window(tuple(found.shape[-2:]))))


def run(bench: Bench, strategy: str, seed: int) -> list[Round]:
    """All rounds of one run; those that are on the disk are not repeated."""
    rounds: list[Round] = []
    labelled: list[int] = []
    for count in bench.options.counts:
        path = bench.options.output / f"{strategy}-{seed}-{count}.json"
        weights = path.with_suffix(".safetensors")
        if path.exists():
            done = json.loads(path.read_text())
            rounds.append(Round(done["labelled"], np.array(done["correct"]), np.array(done["union"])))
            labelled = done["labelled"]
            bench.model.head = make_head(bench.recipe.head, bench.model.backbone, bench.classes)
            bench.model.head.load_weights(load_file(weights))
            bench.model.eval()
            continue
        labelled = [*labelled, *bench.choose(strategy, labelled, count - len(labelled), seed)]
        bench.fit(labelled, seed)
        correct, union = bench.score()
        with replacing_file(weights) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in bench.model.head.state_dict().items()}, temporary)
        names = [bench.train.describe(index) for index in labelled]
        content = {"labelled": labelled, "names": names, "correct": correct.tolist(), "union": union.tolist()}
        write_json(path, content)
        rounds.append(Round(labelled, correct, union))
        bench.console.print(f"{strategy} {seed}: {count} labels, mIoU {miou(correct, union):.4f}", highlight=False)
    return rounds


def same_as_before(bench: Bench) -> None:
    """End the program if the output folder holds rounds that were made otherwise; else note how these are made."""
    options = bench.options
    path = options.output / "rounds.json"
    made = {
        "recipe": bench.recipe.model_dump(mode="json"),
        "probe": options.probe,
        "target": options.target,
        "iterations": options.iterations,
    }
    if path.exists() and json.loads(path.read_text()) != made:
        raise SystemExit(f"{options.output} holds rounds that were made otherwise ({path.name}); give another --output")
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(path, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder of the data set")
    parser.add_argument("--recipe", default="camvid_few_shot", help="data set, head, loss and augmentation")
    parser.add_argument("--backbone", help="in place of the recipe's source; it stays frozen")
    parser.add_argument("--layers", nargs="+", type=int, help="in place of the recipe's")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="further keys of the recipe, at the end")
    parser.add_argument("--counts", nargs="+", type=int, default=[10, 20, 40, 80], help="labelled images of each round")
    parser.add_argument(
        "--strategies", nargs="+", choices=STRATEGIES, help=f"beside {RANDOM} (default: all that can be compared)"
    )
    parser.add_argument("--draws", type=int, default=5, help="runs with random images")
    parser.add_argument("--runs", type=int, default=3, help="runs of each other strategy, with other seeds")
    parser.add_argument("--iterations", type=int, default=400, help="steps of each training")
    parser.add_argument("--probe", action="store_true", help="fit a linear head by L-BFGS, without augmentation")
    parser.add_argument("--views", type=int, default=8, help="cached views of each training image")
    parser.add_argument("--target", action="store_true", help="strategies look at half of the validation images")
    parser.add_argument("--output", type=Path, default=Path("runs/few_labels"))
    options = parser.parse_args()
    able = [name for name, kind in STRATEGIES.items() if kind.uses_target or not options.target]
    options.strategies = [name for name in options.strategies or able if name != RANDOM]
    if blind := [name for name in options.strategies if name not in able]:
        parser.error(f"--target: these strategies do not look at target images: {' '.join(blind)}")
    options.data, options.output = str(options.data), options.output.resolve()
    console = Console()
    bench = Bench(options, console)
    same_as_before(bench)
    runs: dict[str, list[list[Round]]] = {}
    # The first run of all strategies before the second of any: a stopped benchmark has something of each.
    for seed in range(max(options.draws, options.runs)):
        for strategy in [RANDOM, *dict.fromkeys(options.strategies)]:
            if seed < (options.draws if strategy == RANDOM else options.runs):
                runs.setdefault(strategy, []).append(run(bench, strategy, seed))
    found = summarise(runs, options.counts)
    about = {"recipe": bench.recipe.model_dump(mode="json"), "counts": options.counts, "iterations": options.iterations}
    write_json(options.output / "summary.json", {**about, "strategies": found})
    draw(found, options.counts, options.output / "few_labels.png")
    print(table(found, options.counts))


if __name__ == "__main__":
    main()
