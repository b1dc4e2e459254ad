"""Every recipe that comes with the package, at a reduced size: it is built, takes steps and is evaluated as it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labelled_folders
import pytest
import tiny_datasets
import torch
from rich.console import Console
from trainings import forget_accelerator

from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from training.data import contents
from training.evaluate import evaluate_bundle
from training.loop.bundle_writer import BundleWriter
from training.loop.stages import Batch, Stage
from training.loop.trainer import Trainer
from training.recipes.loading import RECIPES_FOLDER, load_recipe
from training.recipes.schema import Recipe

NAMES = sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))
RECIPES = {name: load_recipe(name) for name in NAMES}

_VIT = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}
#: Part of a recipe's backbone.source -> a tiny backbone of that architecture, with as many layers.
ARCHITECTURES = {
    "dinov3-vit": {**_VIT, "model_type": "dinov3_vit", "patch_size": 16, "num_register_tokens": 4},
    "dinov3-convnext": {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "dinov2": {**_VIT, "model_type": "dinov2", "patch_size": 14, "image_size": 112},
    # With a stem of 8 channels, torch 2.13 crashes in the backward pass of this network on a CPU.
    "resnet": {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 1, 1]},
}
#: What makes a head small without changing what it is made of.
SMALL_HEADS = {"aspp": {"width": 8}, "pyramid": {"width": 8, "hidden": 8}, "unet": {"widths": [8, 8, 8, 8]}}
#: A multiple of every patch size and stride.
SIDE = 224


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("backbones")
    for name, config in ARCHITECTURES.items():
        torch.manual_seed(0)
        save_backbone(build_backbone(config), folder / name)
    return {name: folder / name for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Tiny copies of all data sets; CamVid serves as a folder of one's own, and `auto` finds an export by Roboflow."""
    root = tmp_path_factory.mktemp("data")
    for name, build in tiny_datasets.BUILDERS.items():
        build(root / name)
    labelled_folders.build_roboflow_masks(root / "auto")
    return root


def reduced(recipe: Recipe, backbones: dict[str, Path], data: Path, cache: Path) -> Recipe:
    """The recipe with the same parts, smaller; everything that its file chooses stays as it is."""
    content: dict[str, Any] = recipe.model_dump()
    section, backbone, head = content["data"], content["backbone"], content["head"]
    if section["name"] == "scenes":
        section.update(count=4, val_count=2, size=(48, 64), cache=None)
    elif recipe.name == "my_head":  # custom_folder, which is to be copied and filled in
        section.update(root=str(data / "camvid"), classes=[f"class_{index}" for index in range(11)], ignore=[11])
    else:
        section["root"] = str(data / section["name"])
    architecture = next((name for name in ARCHITECTURES if name in (backbone["source"] or "")), None)
    if architecture is not None:
        backbone["source"] = str(backbones[architecture])
    if head["variant"] != "plain":
        head["options"].update(SMALL_HEADS.get(head["name"], {}))
    content["input"]["network_size"] = (SIDE, SIDE)
    for stage in (content, *content["stages"]):
        if stage["augmentation"] is not None and stage["augmentation"]["crop"] is not None:
            stage["augmentation"]["crop"] = (SIDE, SIDE)
    if content["inference"]["stride"] != "auto":
        content["inference"]["stride"] = (SIDE // 2, SIDE // 2)
    content["cache"].update(views=min(content["cache"]["views"], 2), folder=str(cache))
    content.update(batch_size=2, workers=0, precision="fp32")
    return Recipe.model_validate(content)


@pytest.fixture
def build(backbones, data, tmp_path, monkeypatch) -> Callable[[str], Trainer]:
    """Makes a recipe's trainer, at a reduced size; digests of its files are not kept in the user's cache."""
    monkeypatch.setattr(contents, "cache_folder", lambda name: tmp_path / name)

    def made(name: str) -> Trainer:
        forget_accelerator()
        return Trainer(reduced(RECIPES[name], backbones, data, tmp_path / "cache"), Console(quiet=True))

    return made


def take_a_step(trainer: Trainer, stage: Stage) -> list[Batch]:
    """Train by the first step of a stage; gives what it saw."""
    run = trainer.start(stage)
    batches = next(run.batches(stage.first_step))
    assert math.isfinite(run.step(stage.first_step, batches))
    return batches


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_takes_two_steps_and_is_validated(name, build):
    record = build(name).dry_run()
    assert record["step"] in (1, 2)  # VOC's own list has but one batch
    assert math.isfinite(record["loss"])
    assert 0 <= record["miou"] <= 1


@pytest.mark.parametrize("name", [name for name in NAMES if RECIPES[name].stages])
def test_every_stage_of_a_recipe_takes_a_step(name, build):
    trainer = build(name)
    assert len(trainer.stages) == len(RECIPES[name].stages)
    for stage in trainer.stages:
        take_a_step(trainer, stage)


@pytest.mark.parametrize("name", [name for name in NAMES if RECIPES[name].cache.views])
def test_a_recipe_that_asks_for_cached_features_trains_on_them(name, build, tmp_path):
    trainer = build(name)
    trainer.use_cache()
    assert any((tmp_path / "cache").iterdir())
    for stage in trainer.stages:
        channels = trainer.model.backbone.channels
        for (*seen,), _ in take_a_step(trainer, stage):
            assert [feature_map.shape[1] for feature_map in seen[: len(channels)]] == channels
            assert [canvas.dtype for canvas in seen[len(channels) :]] == [torch.uint8] * trainer.model.head.reads_images


@pytest.mark.parametrize("name", [name for name in NAMES if not RECIPES[name].inference.looks_once])
def test_a_recipes_bundle_is_evaluated_by_the_views_that_it_asks_for(name, build, tmp_path):
    trainer = build(name)
    recipe = trainer.recipe
    BundleWriter(recipe, trainer.model, recipe.data.open("val")).save(tmp_path / "bundle", {})
    scores = evaluate_bundle(tmp_path / "bundle", Console(quiet=True))
    assert scores["inference"] == recipe.inference.model_dump(mode="json")
    assert scores["images"] == 2 and 0 <= scores["miou"] <= 1


def test_a_recipe_is_called_like_its_file_and_described():
    for name in set(NAMES) - {"custom_folder"}:
        assert RECIPES[name].name == name
        assert RECIPES[name].description


def test_no_two_recipes_are_alike():
    """One file is one published number: rows of a table differ in what they build."""
    parts = [recipe.model_dump_json(exclude={"name", "description"}) for recipe in RECIPES.values()]
    assert len(set(parts)) == len(parts)
