"""Whole trainings on a few tiny scenes: what is written, what changes and what must not."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_datasets
import torch
import trainings
import yaml
from bundles import tiny_backbone, write_tiny_bundle
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset
from trainings import CONVNEXT, changed, records, tiny_recipe

from dinov3_seg_ros import scenes
from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.bundle.manifest import DELTA_FILE
from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import BundleError, HeadError, OutputError, ParameterError, RecipeError
from training import evaluate, train
from training.checks import problems
from training.loop import bundle_writer
from training.loop import trainer as trainer_module
from training.loop.checkpoint import read_checkpoint
from training.loop.stages import StageRun
from training.loop.trainer import Trainer
from training.optimization.ema import MovingAverage
from training.recipes import resolve
from training.recipes.loading import load_recipe
from training.recipes.schema import Recipe
from training.samples.loader import BatchLoader
from training.support.text import say

RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
DINOV3 = {
    "model_type": "dinov3_vit",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 16,
}
DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 56,
}
WEIGHTS = "backbone/model.safetensors"


@pytest.fixture(autouse=True)
def _independent_accelerators():
    trainings.forget_accelerator()


@pytest.fixture
def recipe(tmp_path):
    """Make a recipe that trains in a second, with sections changed by keyword."""

    def make(**changes: object) -> Recipe:
        return tiny_recipe(tmp_path, **changes)

    return make


@pytest.fixture
def run():
    """Train by a recipe; gives the trainer afterwards."""

    return trainings.train


def test_a_message_is_printed_as_it_is():
    console = Console(file=io.StringIO(), width=20, force_terminal=False)
    text = "/data/run:100:a [bold] and more than a line is wide"
    say(console, text)
    assert console.file.getvalue() == f"{text}\n"


def saved_backbone(folder: Path, config: dict) -> str:
    torch.manual_seed(3)
    save_backbone(build_backbone(config), folder)
    return str(folder)


def test_a_training_leaves_bundles_a_history_and_pictures(recipe, run):
    folder = run(recipe(description="what it is", licences=["free"])).output
    history = records(folder)
    assert [record["epoch"] for record in history] == [1, 2]
    assert [record["step"] for record in history] == [2, 4]
    assert all(set(record["per_class_iou"]) == set(scenes.CLASS_NAMES) for record in history)
    best, least, last = (load_bundle(folder / name).manifest for name in ("best", "best_loss", "last"))
    assert least.training.metrics["val_loss"] == min(record["val_loss"] for record in history)
    assert best.training.metrics["miou"] == max(record["miou"] for record in history)
    assert last.training.metrics["epoch"] == 2
    assert (best.description, best.licences, best.classes.names) == ("what it is", ["free"], list(scenes.CLASS_NAMES))
    for picture in ("predictions.png", "curves.png"):
        with Image.open(folder / picture) as image:
            assert min(image.size) > 100
    assert list((folder / "tensorboard").iterdir())
    image = scenes.sample("val", 0, (50, 70))[0]
    assert Segmenter.from_bundle(folder / "best", runtime="torch").segment([image])[0].labels.shape == (50, 70)


def test_a_log_has_each_epoch_on_one_line(recipe, tmp_path):
    with open(tmp_path / "log", "w") as file:
        Trainer(recipe(), Console(file=file)).run()
    epochs = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert all(re.search(r" mIoU \d+\.\d\d %  aAcc \d+\.\d\d %( \(best\))?$", line) for line in epochs)


def test_the_written_recipe_is_resolved_and_trains_to_the_same_weights(recipe, run, tmp_path):
    first = run(recipe()).output
    written = load_recipe(first / "recipe.yaml", ["--output", str(tmp_path / "again")])
    assert "auto" not in yaml.safe_dump(written.model_dump(mode="json", exclude={"inference": {"stride"}}))
    second = run(written).output
    for file in ("head.safetensors", WEIGHTS):
        assert not changed(load_file(first / "last" / file), load_file(second / "last" / file))


def test_training_lowers_the_loss(recipe, run):
    optimizer = {"name": "adamw", "lr": 0.01}
    folder = run(recipe(epochs=12, evaluate_every=4, optimizer=optimizer, schedule={"name": "constant"})).output
    losses = [record["loss"] for record in records(folder)]
    assert losses[-1] < 0.8 * losses[0]


def test_iterations_end_the_training_at_the_very_step(recipe, run):
    folder = run(recipe(epochs=None, iterations=5)).output
    assert [record["step"] for record in records(folder)] == [2, 4, 5]


def test_an_output_folder_that_holds_something_is_refused_and_untouched(recipe, run, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("keep")
    monkeypatch.delattr(trainer_module, "check_before_training")  # which can take minutes, as counting can
    monkeypatch.setattr(trainer_module, "pixel_counter", lambda _data: lambda: pytest.fail("masks were read"))
    with pytest.raises(OutputError, match="--output"):
        run(recipe(repeat_threshold=0.3, losses=[{"name": "cross_entropy", "class_weights": "balanced"}]))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["precious.txt"]


def test_a_crop_that_does_not_fit_the_backbone_is_named(recipe, run):
    with pytest.raises(ParameterError, match=r"augmentation\.crop .*\(60, 90\).* multiples of 32"):
        run(recipe(augmentation={"crop": [60, 90]}))


@pytest.mark.parametrize("config", [CONVNEXT, RESNET], ids=lambda config: config["model_type"])
def test_a_frozen_backbone_stays_as_it_was_to_the_bit(recipe, run, tmp_path, config):
    source = saved_backbone(tmp_path / "source", config)
    folder = run(recipe(backbone={"source": source, "layers": [2, 3], "storage": "embedded"})).output
    assert load_bundle(folder / "last").manifest.backbone.storage == "embedded"
    assert not changed(load_file(Path(source, "model.safetensors")), load_file(folder / "last" / WEIGHTS))


def test_only_the_trained_stage_changes_its_weights_and_batch_statistics(recipe, run, tmp_path):
    source = saved_backbone(tmp_path / "source", RESNET)
    backbone = {"source": source, "layers": [2, 3], "trainable": 1, "storage": "embedded"}
    folder = run(recipe(backbone=backbone)).output
    names = changed(load_file(Path(source, "model.safetensors")), load_file(folder / "last" / WEIGHTS))
    assert names
    assert all("stages.3." in name for name in names)
    assert any("running_mean" in name for name in names)


def test_a_delta_holds_what_changed_and_gives_the_trained_model_back(recipe, run, tmp_path):
    source = saved_backbone(tmp_path / "source", CONVNEXT)
    trainer = run(recipe(backbone={"source": source, "layers": [2, 3], "trainable": 1}))
    bundle = load_bundle(trainer.output / "last")
    delta = load_file(bundle.path / DELTA_FILE)
    assert delta and all("stages.3." in name for name in delta)
    trained = trainer.model.backbone.checkpoint_tensors()
    assert not changed(trained, bundle.load_backbone().checkpoint_tensors())
    save_backbone(build_backbone(CONVNEXT), source)
    with pytest.raises(BundleError, match="not the one"):
        bundle.load_backbone()


@pytest.mark.parametrize(
    ("config", "size", "trainable", "asked", "head"),
    [
        (
            RESNET,
            (64, 96),
            0,
            {"output_stride": 8},
            {"name": "pyramid", "options": {"fpn": False, "hidden": 8}},
        ),
        (
            DINOV2,
            (56, 84),
            0,
            {"layers": [0, 1], "class_token": True},
            {"name": "linear", "options": {"dropout": 0}},
        ),
        (
            DINOV2,
            (56, 84),
            1,
            {"storage": "delta"},
            {"name": "unet", "options": {"widths": [8, 8, 4, 4]}},
        ),
    ],
    ids=["PSPNet on a dilated ResNet", "DINOv2's linear head with class tokens", "U-Net and the last block"],
)
def test_a_bundle_gives_back_what_was_trained(recipe, run, tmp_path, config, size, trainable, asked, head):
    source = saved_backbone(tmp_path / "source", config)
    sized = {"network_size": size, "geometry": "stretch"}
    backbone = {"source": source, "trainable": trainable, **asked}
    trainer = run(recipe(backbone=backbone, head=head, input=sized, calibrate=False))
    bundle = load_bundle(trainer.output / "last")
    assert bundle.manifest.calibration is None
    assert bundle.manifest.backbone.model_dump(include=asked.keys()) == asked
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected = trainer.model.head(trainer.model.backbone(images), images)
        torch.testing.assert_close(bundle.load_head()(bundle.load_backbone()(images), images), expected)


def test_bundles_are_calibrated_on_the_validation_images(recipe, run):
    trainer = run(recipe())
    bundle = load_bundle(trainer.output / "last")
    calibration = bundle.manifest.calibration
    assert (calibration.data, calibration.split, calibration.images) == ("scenes", "val", 3)
    assert "calibration" not in bundle.manifest.training.metrics
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        maps = trainer.model.backbone(images)
        logits = bundle.load_head()(maps) * calibration.temperature
        torch.testing.assert_close(logits, trainer.model.head(maps), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("layers", "options", "guided"),
    [([3], {}, True), ([1, 2, 3], {}, False), ([1, 2, 3], {"detail": True}, True), ([3], {"detail": False}, False),
     ([1, 2, 3], {"detail": "auto"}, False)],
)  # fmt: skip
def test_heads_on_maps_of_one_stride_are_image_guided(recipe, layers, options, guided):
    made = recipe(backbone={"config": CONVNEXT, "layers": layers}, head={"options": {"width": 16, **options}})
    trainer = Trainer(made, Console(quiet=True))
    assert trainer.model.head.reads_images is guided
    assert trainer._bundles.manifest().head.reads_images is guided
    assert trainer.recipe.head.options.get("detail", False) is guided


@pytest.mark.parametrize(("layers", "guided"), [([3], False), ([1, 2, 3], True)])
def test_a_head_that_starts_from_a_bundles_is_image_guided_as_that_is(recipe, tmp_path, layers, guided):
    bundle = write_tiny_bundle(
        tmp_path / "first", backbone=tiny_backbone(layers), num_classes=len(scenes.CLASS_NAMES), detail=guided
    )
    head = {"start_from": str(bundle.path), "options": {"width": 16}}
    made = recipe(backbone={"config": CONVNEXT, "layers": layers}, head=head)
    assert Trainer(made, Console(quiet=True)).model.head.reads_images is guided


def test_a_head_starts_from_a_bundles_weights_of_the_same_shape_only(recipe, run, tmp_path):
    folder = run(recipe()).output / "best"
    trained = load_bundle(folder).load_head().state_dict()
    backbone = {"source": str(folder / "backbone"), "layers": [1, 2, 3], "storage": "embedded"}
    head = {"start_from": str(folder), "options": {"width": 16}}
    started = Trainer(recipe(backbone=backbone, head=head), Console(quiet=True))
    assert not changed(trained, started.model.head.state_dict())
    with pytest.raises(HeadError, match=r"start_from.*of a wrong shape: \S+ \(16, .* instead of \(12, "):
        other = {"start_from": str(folder), "options": {"width": 12}}
        Trainer(recipe(backbone=backbone, head=other), Console(quiet=True))


@pytest.mark.parametrize("detail", [False, True])
def test_a_head_starts_with_the_weights_of_its_classes_wherever_they_stand(recipe, run, tmp_path, detail):
    options = {"width": 16, "detail": detail}
    folder = run(recipe(head={"options": options})).output / "best"
    before = load_bundle(folder)
    *rest, first = before.manifest.classes.names[::-1]
    backbone = {"source": str(folder / "backbone"), "layers": [1, 2, 3], "storage": "embedded"}
    names = [*rest, "added", first]
    for number in range(4):
        tiny_datasets.save_image(tmp_path / f"data/images/{number}.png", number)
        tiny_datasets.save_mask(tmp_path / f"data/masks/{number}.png", tiny_datasets.values_of(range(12), number))
    said = io.StringIO()
    made = recipe(
        backbone=backbone,
        head={"start_from": str(folder), "options": options},
        data={"name": "auto", "root": str(tmp_path / "data"), "classes": names},
        epochs=1,
        output=str(tmp_path / "second"),
    )
    trainer = Trainer(made, Console(file=said, width=200))
    maps = [torch.randn(1, channels, 8, 8) for channels in trainer.model.head.in_channels]
    image = torch.randn(1, 3, 32, 32) if detail else None
    with torch.no_grad():
        old, new = (head.eval()(maps, image) for head in (before.load_head(), trainer.model.head))
    torch.testing.assert_close(new[:, [*range(len(names) - 2), -1]], old[:, [*range(1, len(names) - 1)[::-1], 0]])
    trainer.run()
    assert f"classes of the head since {folder}: new: added" in said.getvalue()


def test_a_reference_holds_no_backbone_and_finds_it_from_any_folder(recipe, run, tmp_path, monkeypatch):
    saved_backbone(tmp_path / "source", CONVNEXT)
    monkeypatch.chdir(tmp_path)
    folder = run(recipe(backbone={"source": "source"})).output
    assert sorted(file.name for file in (folder / "best").iterdir()) == ["bundle.json", "head.safetensors"]
    monkeypatch.chdir("/")
    load_bundle(folder / "best").load_backbone()


def test_a_trained_backbone_cannot_be_stored_as_a_reference(recipe, tmp_path):
    source = saved_backbone(tmp_path / "source", CONVNEXT)
    with pytest.raises(RecipeError, match="storage"):
        Trainer(recipe(backbone={"source": source, "trainable": "all", "storage": "reference"}), Console(quiet=True))


@pytest.mark.parametrize("trainable", ["none", "all"])
def test_half_precision_storage_is_what_the_bundle_identifies(recipe, run, tmp_path, trainable):
    source = saved_backbone(tmp_path / "source", CONVNEXT)
    backbone = {"source": source, "trainable": trainable, "storage": "embedded", "storage_dtype": "float16"}
    folder = run(recipe(backbone=backbone)).output
    assert load_file(folder / "last" / WEIGHTS).popitem()[1].dtype == torch.float16
    load_bundle(folder / "last").load_backbone()


def test_a_head_trains_on_the_features_that_a_half_precision_bundle_gives(recipe, run, tmp_path):
    source = saved_backbone(tmp_path / "source", DINOV3)
    backbone = {"source": source, "storage": "embedded", "storage_dtype": "float16"}
    trainer = run(recipe(backbone=backbone, epochs=1))
    stored = load_bundle(trainer.output / "last").load_backbone()
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(trainer.model.backbone.cpu().eval()(image), stored(image), atol=0, rtol=0)


def interrupt_at(monkeypatch, interrupted_step):
    original = StageRun.step

    def interrupted(self, step, batches):
        if step == interrupted_step:
            raise KeyboardInterrupt
        return original(self, step, batches)

    monkeypatch.setattr(StageRun, "step", interrupted)


def test_an_interrupted_training_leaves_the_last_bundle_with_averaged_weights(recipe, run, monkeypatch):
    interrupt_at(monkeypatch, 3)
    made = recipe(ema=0.5, evaluate_every=9, checkpoint_minutes=0)
    trainer = Trainer(made, Console(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    bundle = load_bundle(trainer.output / "last")
    assert bundle.manifest.training.metrics == {"step": 3, "interrupted": True}
    with trainer.average.applied():
        assert not changed(trainer.model.head.state_dict(), bundle.load_head().state_dict())
    shutil.rmtree(bundle.path)
    with pytest.raises(KeyboardInterrupt):
        run(made, resume=True)
    assert not bundle.path.exists(), "it has taken no step since"


def test_interrupted_after_a_validation_it_leaves_the_bundle_of_that(recipe, run, monkeypatch):
    interrupt_at(monkeypatch, 2)
    made = recipe()
    with pytest.raises(KeyboardInterrupt):
        run(made)
    manifest = load_bundle(Path(made.output) / "last").manifest
    assert manifest.training.metrics["step"] == 2 and "interrupted" not in manifest.training.metrics
    assert manifest.calibration is not None


def test_interrupted_before_its_first_step_it_leaves_no_bundle(recipe, run, monkeypatch):
    monkeypatch.setattr(StageRun, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    made = recipe()
    with pytest.raises(KeyboardInterrupt):
        run(made)
    assert not (Path(made.output) / "last").exists()


def test_a_full_disk_gives_one_message_and_leaves_the_previous_bundle(recipe, run, monkeypatch):
    original, saved = bundle_writer.save_backbone, []

    def disk_full(*arguments):
        saved.append(arguments)
        if len(saved) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(bundle_writer, "save_backbone", disk_full)
    made = recipe()
    with pytest.raises(OutputError, match=r"best_loss cannot be written .*No space left on device\)\. Free"):
        run(made)
    assert load_bundle(Path(made.output) / "last").manifest.training.metrics["epoch"] == 1
    assert not [file for file in Path(made.output).iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("batch_size", [4, 8])  # of 8 images: the validation follows the second or the first step
@pytest.mark.parametrize("dry", [False, True])
def test_a_diverged_training_says_so_and_writes_no_bundle(recipe, run, batch_size, dry):
    made = recipe(batch_size=batch_size, optimizer={"name": "sgd", "lr": 1e20}, schedule={"name": "constant"})
    with pytest.raises(RecipeError, match=r"diverged.*optimizer\.lr"):
        Trainer(made, Console(quiet=True)).dry_run() if dry else run(made)
    assert not (Path(made.output) / "last").exists()


def test_a_diverged_training_keeps_the_checkpoint_before(recipe, run, monkeypatch):
    original = StageRun.step

    def diverging(self, step, batches):
        return original(self, step, batches) * (float("nan") if step == 2 else 1.0)

    monkeypatch.setattr(StageRun, "step", diverging)
    made = recipe(checkpoint_minutes=0)
    with pytest.raises(RecipeError, match="diverged"):
        run(made)
    assert read_checkpoint(Path(made.output) / "checkpoint.pt").step == 2


def test_the_loss_is_drawn_between_validations_too(recipe, run, monkeypatch):
    monkeypatch.setattr(trainer_module, "_STEPS_OF_A_POINT", 2)
    output = run(recipe(epochs=5, evaluate_every=5)).output
    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [2, 4, 6, 8, 10]
    assert [event.step for event in events.Scalars("miou")] == [10]


def test_the_averaged_weights_are_saved_and_the_plain_ones_trained_on(recipe, run):
    trainer = run(recipe(ema=0.5, calibrate=False))
    saved = load_file(trainer.output / "last" / "head.safetensors")
    present = dict(trainer.model.head.state_dict())
    assert changed(present, saved)
    with trainer.average.applied():
        assert not changed(dict(trainer.model.head.state_dict()), saved)


def test_the_moving_average_covers_weights_and_statistics_not_frozen_ones():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    module[0].requires_grad_(False)
    average = MovingAverage(module, decay=0.9)
    frozen, weight, mean = (tensor.clone() for tensor in (module[0].weight, module[2].weight, module[1].running_mean))
    with torch.no_grad():
        for tensor in (module[0].weight, module[2].weight, module[1].running_mean):
            tensor += 1.0
    average.update()
    share = 10 / 11  # of the new weights, after one update
    with average.applied():
        torch.testing.assert_close(module[2].weight.data, weight + share)
        torch.testing.assert_close(module[1].running_mean, mean + share)
        torch.testing.assert_close(module[0].weight.data, frozen + 1.0)
    torch.testing.assert_close(module[2].weight.data, weight + 1.0)


def test_evaluation_of_the_bundle_gives_the_score_of_the_training(recipe, run, tmp_path):
    folder = run(recipe()).output
    output = tmp_path / "scores.json"
    assert evaluate.main([str(folder / "best"), "--dataset", "scenes", "--json", str(output)]) == 0
    scores = json.loads(output.read_text())
    recorded = load_bundle(folder / "best").manifest.training.metrics
    assert scores["miou"] == pytest.approx(recorded["miou"], abs=1e-4)
    assert set(scores) >= {"miou", "macc", "aacc", "per_class_iou"}
    assert all(iou is None or 0 <= iou <= 1 for iou in scores["per_class_iou"].values())
    assert scores["images"] == 3


def test_evaluation_takes_any_folder_with_the_bundles_classes(recipe, run, tmp_path):
    folder = run(recipe(epochs=1)).output
    write_folder(tmp_path / "data", len(scenes.CLASS_NAMES), "val")
    output = tmp_path / "scores.json"
    arguments = ["--dataset", "folder", "--data.root", str(tmp_path / "data"), "--json", str(output)]
    assert evaluate.main([str(folder / "best"), *arguments]) == 0
    assert json.loads(output.read_text())["images"] == 2


def test_a_mistake_ends_the_command_with_one_line(recipe, tmp_path, capfd):
    path = tmp_path / "typo.yaml"
    path.write_text(yaml.safe_dump({**recipe().model_dump(mode="json"), "epoch": 3}))
    assert train.main([str(path)]) == 1
    assert "did you mean 'epochs'" in capfd.readouterr().err
    assert evaluate.main([str(tmp_path / "absent")]) == 1
    assert "no such folder" in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_after_the_check_ends_the_command_with_one_line(recipe, tmp_path, capfd, monkeypatch, workers):
    monkeypatch.setattr(problems, "MOST_BEFORE_TRAINING", 1)  # of two images, the check reads the second
    for split in ("train", "val"):
        write_folder(tmp_path / "data", 2, split)
    (tmp_path / "data" / "classes.yaml").write_text("[a, b]")
    damaged = tmp_path / "data" / "train" / "images" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    made = recipe(data={"name": "folder", "root": str(tmp_path / "data")}, batch_size=2, workers=workers)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert train.main([str(path)]) == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"train: error: {damaged} cannot be read as an image")


class InAnotherProcess(Dataset):
    """Its first sample tells whether its process ignored Ctrl-C from its start; the second one ends the process."""

    def __setstate__(self, _state):
        self.ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN

    def __getstate__(self):
        return True

    def __getitem__(self, key):
        if key == (1, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.ignored


def test_loading_processes_ignore_ctrl_c_and_say_why_one_may_have_ended():
    before = signal.getsignal(signal.SIGINT)
    keys = [[(0, 0)]]
    loader = BatchLoader(InAnotherProcess(), keys, workers=1)
    assert [batch.tolist() for batch in loader] == [[True]]
    assert signal.getsignal(signal.SIGINT) == before
    keys[0] = [(1, 0)]
    with pytest.raises(RecipeError, match=r"\(DataLoader worker .*__name__ == '__main__'.*--shm-size; lower workers"):
        list(loader)


def test_a_gpu_without_memory_says_what_takes_less(recipe, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. Of the allocated memory ...")

    trainer = Trainer(recipe(), Console(quiet=True))
    monkeypatch.setattr(trainer, "_take_step", fail)
    for work in (trainer.dry_run, trainer.run):
        with pytest.raises(RecipeError, match=r"lacks memory \(CUDA out of memory\); lower batch_size"):
            work()


def test_evaluation_on_other_classes_is_refused(recipe, run, tmp_path, capfd):
    folder = run(recipe(epochs=1)).output
    write_folder(tmp_path / "data", 2, "val")
    (tmp_path / "data" / "classes.yaml").write_text("[a, b]")
    other = load_recipe(folder / "recipe.yaml").model_dump(mode="json")
    other["data"] = {"name": "folder", "root": str(tmp_path / "data")}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    arguments = ["--dataset", str(tmp_path / "other.yaml"), "--json", str(tmp_path / "scores.json")]
    assert evaluate.main([str(folder / "best"), *arguments]) == 1
    assert "classes" in capfd.readouterr().err
    assert not (tmp_path / "scores.json").exists()


def test_a_published_data_set_trains_and_is_evaluated_by_its_name(recipe, run, tmp_path):
    tiny_datasets.build_voc(tmp_path / "voc")
    folder = run(recipe(data={"name": "voc", "root": str(tmp_path / "voc")}, epochs=1)).output
    assert load_recipe(folder / "recipe.yaml").data.train_list == "train_aug"
    output = tmp_path / "scores.json"
    arguments = ["--dataset", "voc", "--data.root", str(tmp_path / "voc"), "--json", str(output)]
    assert evaluate.main([str(folder / "best"), *arguments]) == 0
    assert json.loads(output.read_text())["images"] == 2


@pytest.mark.skipif("CAMVID" not in os.environ, reason="set CAMVID to the folder of the data set")
def test_the_camvid_recipe_dry_runs_on_the_data_itself(tmp_path, capsys):
    options = ["--data.root", os.environ["CAMVID"], "--workers", "0", "--batch-size", "2"]
    options += ["--backbone.source", saved_backbone(tmp_path / "source", CONVNEXT)]
    assert train.main(["camvid_quick", "--dry-run", *options]) == 0
    assert "no run folder was written" in capsys.readouterr().out


def write_folder(root: Path, classes: int, split: str) -> None:
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True)
    for index in range(2):
        Image.fromarray(random.integers(0, 256, (64, 96, 3), np.uint8)).save(root / split / "images" / f"{index}.png")
        Image.fromarray(random.integers(0, classes, (64, 96), np.uint8)).save(root / split / "masks" / f"{index}.png")


def test_a_dry_run_leaves_no_run_folder_and_says_so(tmp_path, capsys):
    options = ["--input.network-size", "64", "96", "--augmentation.crop", "64", "64", "--batch-size", "2"]
    options += ["--data.count", "2", "--data.val-count", "1", "--data.size", "64", "96", "--workers", "0"]
    options += ["--data.cache", str(tmp_path / "cache"), "--output", str(tmp_path / "run")]
    options += ["--backbone.source", saved_backbone(tmp_path / "source", CONVNEXT), "--backbone.layers", "1", "3"]
    assert train.main(["demo", "--dry-run", *options]) == 0
    assert "no run folder was written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_the_detail_that_the_head_takes_by_itself(recipe, tmp_path, capsys):
    path = tmp_path / "recipe.json"
    path.write_text(recipe(backbone={"config": CONVNEXT, "layers": [3]}).model_dump_json())
    assert train.main([str(path), "--dry-run"]) == 0
    assert re.search(r"head\.options\.detail +. True", capsys.readouterr().out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for CPUs")
@pytest.mark.parametrize(("best", "printed"), [("bf16", r"bf16 \(heads: fp32\)"), ("fp32", "fp32")])
def test_a_dry_run_on_a_cpu_names_the_precision_of_the_head_too(recipe, tmp_path, capsys, monkeypatch, best, printed):
    trainings.forget_accelerator()
    monkeypatch.setattr(resolve, "_best_precision", lambda: best)
    path = tmp_path / "recipe.json"
    path.write_text(recipe(precision="auto").model_dump_json())
    assert train.main([str(path), "--dry-run"]) == 0
    assert re.search(f"precision +. {printed} +.\n", capsys.readouterr().out)
    trainings.forget_accelerator()
