"""Stages of a training, accumulated gradients, validation loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from trainings import changed, forget_accelerator, records, tiny_recipe, train

from dinov3_seg_ros.support.errors import RecipeError
from training.loop.stages import plan_stages
from training.loop.trainer import Trainer
from training.recipes.loading import load_recipe
from training.samples.loader import EpochBatches, repeat_factors, share_out

STAGES = [
    {"epochs": 2, "augmentation": {"flip": 0.5}},
    {"iterations": 5, "optimizer": {"name": "sgd", "lr": 0.5}, "losses": [{"name": "dice"}]},
    {},
]


def test_a_stage_changes_what_it_names_and_keeps_the_rest(tmp_path):
    whole = tiny_recipe(tmp_path, stages=STAGES, epochs=3, augmentation={"grey": 0.1})
    first, second, third = whole.by_stage()
    assert (first.epochs, second.epochs, second.iterations, third.epochs) == (2, None, 5, 3)
    assert (first.augmentation.flip, first.augmentation.grey, second.augmentation.grey) == (0.5, 0.0, 0.1)
    assert (first.optimizer, second.optimizer.name, third.optimizer) == (whole.optimizer, "sgd", whole.optimizer)
    assert [loss.name for loss in second.losses] == ["dice"]


def test_stages_follow_each_other_in_steps_and_epochs(tmp_path):
    stages = plan_stages(tiny_recipe(tmp_path, stages=STAGES, epochs=3), count=9)
    assert [(stage.first_step, stage.end, stage.first_epoch) for stage in stages] == [(0, 4, 0), (4, 9, 2), (9, 15, 5)]
    assert [stages[1].position(step) for step in (4, 5, 8)] == [(2, 0), (2, 1), (4, 0)]


@pytest.mark.parametrize(("changes", "part"), [({}, "stages.0"), ({"iterations": 1, "epochs": 1}, "stages.0")])
def test_a_stage_without_one_duration_is_named(tmp_path, changes, part):
    content = {**tiny_recipe(tmp_path).model_dump(mode="json"), "epochs": None, "stages": [changes]}
    path = tmp_path / "recipe.yaml"
    path.write_text(str(content).replace("None", "null").replace("True", "true").replace("False", "false"))
    with pytest.raises(RecipeError, match=part):
        load_recipe(path)


def test_overrides_reach_a_stage(tmp_path):
    path = tmp_path / "recipe.yaml"
    content = tiny_recipe(tmp_path, stages=STAGES).model_dump_json()
    path.write_text(content)
    options = "--stages.1.optimizer.lr 0.25 --stages.0.augmentation.flip 0 --stages.0.epochs 7"
    changed_recipe = load_recipe(path, options.split())
    assert changed_recipe.stages[1].optimizer.lr == 0.25
    assert changed_recipe.stages[0].augmentation.flip == 0
    assert changed_recipe.stages[0].epochs == 7


def test_one_stage_is_the_same_as_none(tmp_path):
    plain = train(tiny_recipe(tmp_path)).output
    staged = train(tiny_recipe(tmp_path, output=str(tmp_path / "staged"), epochs=None, stages=[{"epochs": 2}])).output
    for file in ("head.safetensors", "backbone/model.safetensors"):
        assert not changed(load_file(plain / "last" / file), load_file(staged / "last" / file))


def test_each_stage_trains_its_own_way(tmp_path):
    flat = {"name": "constant"}
    stages = [{"epochs": 1}, {"iterations": 1, "optimizer": {"name": "sgd", "lr": 0.5}}, {"epochs": 2}]
    recipe = tiny_recipe(tmp_path, stages=stages, epochs=None, schedule=flat, evaluate_every=2)
    history = records(train(recipe).output)
    assert [(record["epoch"], record["step"], record["lr"]) for record in history] == [
        (1, 2, 1e-3),
        (2, 3, 0.5),
        (4, 7, 1e-3),
    ]


def test_accumulated_batches_train_as_one_large_batch_does(tmp_path):
    # At random sizes, the images of a batch have different numbers of labelled pixels.
    alike = {
        "augmentation": {"scale": [0.3, 1.0]},
        "head": {"options": {"width": 16, "dropout": 0}},
        "batch_norm": "frozen",
        "optimizer": {"name": "sgd", "lr": 0.05, "clip_norm": 0.5},
        "losses": [{"name": "cross_entropy"}, {"name": "dice", "per_image": True}],
    }
    whole = train(tiny_recipe(tmp_path, **alike, batch_size=4))
    parts = train(tiny_recipe(tmp_path, **alike, batch_size=1, accumulate=4, output=str(tmp_path / "parts")))
    first, second = (records(trainer.output) for trainer in (whole, parts))
    assert [record["loss"] for record in first] == pytest.approx([record["loss"] for record in second], abs=1e-5)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_step_is_no_longer_than_the_norm_that_gradients_are_clipped_to(tmp_path):
    optimizer = {"name": "sgd", "lr": 1.0, "momentum": 0, "weight_decay": 0, "clip_norm": 1e-3}
    forget_accelerator()
    trainer = Trainer(tiny_recipe(tmp_path, optimizer=optimizer, schedule={"name": "constant"}), Console(quiet=True))
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    steps = trainer.dry_run()["step"]
    moved = [(now - then).square().sum() for now, then in zip(trainer.model.parameters(), before, strict=True)]
    assert 0 < sum(moved).sqrt() <= steps * 1e-3 * (1 + 1e-3)


def test_each_step_has_random_numbers_of_its_own(tmp_path):
    forget_accelerator()
    trainer, seeds = Trainer(tiny_recipe(tmp_path), Console(quiet=True)), []
    trainer.model.head.dropout.register_forward_hook(
        lambda module, *_: seeds.extend([torch.initial_seed()] if module.training else [])
    )
    steps = trainer.dry_run()["step"]
    assert len(set(seeds)) == len(seeds) == steps == 2


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(tmp_path):
    trainer = train(tiny_recipe(tmp_path, batch_norm="frozen"))
    norms = [m for m in trainer.model.head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((norm.running_mean == 0).all() and (norm.running_var == 1).all() for norm in norms)
    assert all((norm.weight != 1).any() for norm in norms)


def test_synchronised_batch_norm_without_cuda_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="batch_norm"):
        train(tiny_recipe(tmp_path, batch_norm="synchronised"))


def test_the_validation_loss_is_that_of_the_split_as_one_batch(tmp_path):
    losses = [{"name": "cross_entropy", "label_smoothing": 0.1}, {"name": "focal", "weight": 0.5}]
    trainer = train(tiny_recipe(tmp_path, losses=losses, epochs=1))
    items = [trainer._val_data.item(index) for index in range(3)]
    images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*items, strict=True))
    trainer.model.eval()
    with torch.inference_mode():
        expected = trainer._losses[0](trainer.model(images), masks, trainer._val_data.ignore_value)
    assert records(trainer.output)[0]["val_loss"] == pytest.approx(float(expected), abs=1e-5)


def test_processes_share_the_batches_of_one():
    def parts(processes: int) -> list[list[list[tuple[int, int]]]]:
        return [list(EpochBatches(share_out(11, 4, 1, process, processes), seed=3)) for process in range(processes)]

    (alone,) = parts(1)
    first, second = parts(2)
    assert len(alone) == 2
    assert alone == [a + b for a, b in zip(first, second, strict=True)]


def test_an_epoch_can_be_entered_anywhere():
    batches = EpochBatches(share_out(24, batch_size=2, accumulate=3), seed=0)
    batches.epoch = 5
    whole = list(batches)
    batches.first_step = 2
    assert len(batches) == 6
    assert list(batches) == whole[6:]


def test_images_of_a_rare_class_are_drawn_more_often():
    pixels = np.zeros((100, 3), int)
    pixels[:, 0], pixels[:50, 1], pixels[:4, 2] = 9, 9, 1  # the last class is on 4 of 100 images
    factors = repeat_factors(pixels, threshold=0.16)
    np.testing.assert_allclose(factors, [2] * 4 + [1] * 96)
    batches = EpochBatches(share_out(100, batch_size=5), seed=0, factors=factors)
    drawn = []
    for batches.epoch in range(50):
        keys = [key for batch in batches for key in batch]
        assert len(keys) == len(set(keys)) == 100  # each draw of an image has a number of its own
        drawn += [index for _, index in keys]
    assert np.mean(np.array(drawn) < 4) == pytest.approx(8 / 104, rel=0.1)
    assert set(drawn) == set(range(100))


def test_without_rare_classes_every_image_is_drawn_once():
    factors = repeat_factors(np.ones((7, 2), int), threshold=0.5)
    keys = [key for batch in EpochBatches(share_out(7, 1), seed=4, factors=factors) for key in batch]
    assert sorted(keys) == [(0, index) for index in range(7)]


def test_a_fraction_of_a_repeat_comes_in_that_share_of_epochs():
    batches = EpochBatches(share_out(2, batch_size=2), seed=0, factors=np.array([1.5, 1.0]))
    rows = []
    for batches.epoch in range(400):
        rows += [[index for _, index in batch] for batch in batches]
    # Two of three draws where the first image comes twice, in half of the epochs: it makes 7 of 12 samples.
    assert np.mean(np.array(rows) == 0) == pytest.approx(7 / 12, abs=0.05)


def test_a_training_draws_images_by_its_repeat_threshold(tmp_path):
    plain, repeated = (
        train(tiny_recipe(tmp_path / name, epochs=1, repeat_threshold=threshold)).model.state_dict()
        for name, threshold in (("plain", 0), ("repeated", 1))
    )
    assert changed(plain, repeated)


@pytest.mark.parametrize(
    ("count", "batch_size", "processes", "advice"),
    [(10, 3, 2, "multiple of their number"), (1, 2, 2, "start fewer processes")],
)
def test_a_batch_that_cannot_be_divided_is_refused(count, batch_size, processes, advice):
    with pytest.raises(RecipeError, match=advice):
        share_out(count, batch_size, processes=processes)


def test_few_images_make_one_batch():
    batching = share_out(5, batch_size=8, accumulate=4)
    assert (batching.batch_size, batching.accumulate, batching.steps) == (5, 1, 1)
