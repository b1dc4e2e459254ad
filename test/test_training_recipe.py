"""Recipes: what is refused, and in which words; overrides; schedules."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from dinov3_seg_ros.support.command_line import UsageError
from dinov3_seg_ros.support.errors import RecipeError
from training import train
from training.optimization.optimizers import AdamSection, AdamWSection, SGDSection
from training.optimization.schedules import Constant, Cosine, OneCycle, Poly, Step
from training.recipes.loading import RECIPES_FOLDER, load_recipe
from training.recipes.overrides import SettingsParser, apply_overrides
from training.recipes.resolve import lasting
from training.recipes.schema import Recipe
from training.samples.transforms import Augmentation

SIZE = {"network_size": [64, 96]}
MINIMAL = {
    "name": "minimal",
    "data": {"name": "scenes", "count": 8},
    "input": SIZE,
    "backbone": {"source": "somewhere"},
    "epochs": 1,
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "minimal.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "wrong", "right"),
    [
        ({"batchsize": 4}, "batchsize", "batch_size"),
        ({"optimizer": {"name": "adamw", "learning": 1, "wieght_decay": 1}}, "learning", "optimizer"),
        ({"optimizer": {"name": "sgd", "momentun": 0.5}}, "momentun", "momentum"),
        ({"data": {"name": "scenes", "cuont": 4}}, "cuont", "count"),
        ({"losses": [{"name": "cross_entropy", "label_smothing": 0.1}]}, "label_smothing", "label_smoothing"),
        ({"losses": [{"name": "dice"}, {"name": "focal", "gama": 1}]}, "gama", "gamma"),
        ({"augmentation": {"flipp": 0.5}}, "flipp", "flip"),
    ],
)
def test_an_unknown_key_is_named_with_file_and_nearest_key(tmp_path, changes, wrong, right):
    path = write(tmp_path, **changes)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert str(path) in str(error.value)
    assert wrong in str(error.value)
    assert right in str(error.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": None}, "epochs or iterations"),
        ({"iterations": 5}, "epochs or iterations"),
        ({"backbone": {}}, "source or config"),
        ({"schedule": {"name": "sawtooth"}}, "schedule"),
        ({"description": "Halls\x1b[2J"}, r"description: 'Halls\\x1b\[2J' holds control characters"),
        (
            {"name": "With Spaces"},
            "name: 'With Spaces' is no name; use lower-case letters, digits and _, beginning with a",
        ),
        ({"name": "1st"}, "name: '1st' is no name; use lower-case letters, digits and _, beginning with a letter"),
        ({"name": "äther"}, "name: 'äther' is no name"),
        ({"name": "my_head\n"}, "is no name"),
        ({"head": {"options": {"variant": "plain"}}}, r"head\.options: variant is no option; .*head\.variant"),
        ({"head": {"options": {"strides": [4], "num_classes": 3}}}, r"head\.options: num_classes, strides .*from data"),
        ({"optimizer": {"name": "adamw", "betas": [0.9, 1.0]}}, r"optimizer\.betas\.1: .*less than 1"),
        ({"optimizer": {"name": "adam", "betas": [-0.1, 0.9]}}, r"optimizer\.betas\.0: .*greater than or equal to 0"),
        ({"optimizer": {"name": "adamw", "lr": math.inf}}, r"optimizer\.lr: .*finite number"),
        ({"optimizer": {"name": "sgd", "weight_decay": math.nan}}, r"optimizer\.weight_decay: .*finite number"),
        ({"input": {**SIZE, "mean": [123.675, 116.28, 103.53]}}, r"input\.mean\.0: .*less than or equal to 1"),
        ({"input": {**SIZE, "mean": [-0.1, 0.5, 0.5]}}, r"input\.mean\.0: .*greater than or equal to 0"),
        ({"input": {**SIZE, "std": [0.2, 57.12, 0.2]}}, r"input\.std\.1: .*less than or equal to 1"),
        ({"input": {**SIZE, "std": [0.2, 0.2, 0]}}, r"input\.std\.2: .*greater than 0"),
        ({"input": {**SIZE, "std": [math.nan, 0.2, 0.2]}}, r"input\.std\.0: .*finite number"),
        ({"losses": [{"name": "dice", "weight": 0}]}, r"losses\.0\.weight: .*greater than 0"),
        ({"losses": [{"name": "focal", "weight": math.nan}]}, r"losses\.0\.weight: .*finite number"),
        ({"losses": [{"name": "focal", "class_weights": [1, -1]}]}, r"class_weights\.1: .*greater than or equal to 0"),
        ({"losses": [{"name": "cross_entropy", "class_weights": [0, 0]}]}, r"losses\.0\.class_weights: all are 0"),
        ({"augmentation": {"scale": [0, 1]}}, r"augmentation\.scale\.0: .*greater than 0"),
        ({"augmentation": {"scale": [2, 0.5]}}, r"augmentation\.scale: .*2 before 0\.5"),
        ({"augmentation": {"contrast": [1.5, 1]}}, r"augmentation\.contrast: .*1\.5 before 1"),
        ({"data": {"name": "folder", "root": "r", "ignore": [-1]}}, r"data\.ignore: .*ignore has -1; write values"),
        ({"data": {"name": "folder", "root": "r", "ignore": [1 << 24]}}, r"data\.ignore: .*below 16777216"),
        ({"data": {"name": "folder", "root": "r", "ignore": [[0, 256, 0]]}}, r"data\.ignore: .*\[0, 256, 0\].*255"),
        ({"data": {"name": "folder", "root": "r", "classes": ["a", "b", "a"]}}, r"data\.classes: .*'a'; rename one"),
        ({"data": {"name": "folder", "root": "r", "classes": {"a": "9-7"}}}, r"data\.classes: .*range 9-7, which ends"),
        ({"data": {"name": "folder", "root": "r", "classes": {"a": {}}}}, r"data\.classes: .*'a' has {}; write values"),
        ({"stages": [{"augmentation": {"saturation": [1, 0]}}]}, r"stages\.0\.augmentation\.saturation: .*1 before 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path, changes, part):
    with pytest.raises(RecipeError, match=part):
        load_recipe(write(tmp_path, **changes))


def test_overrides_reach_every_depth(tmp_path):
    path = write(tmp_path, head={"options": {"width": 8}}, losses=[{"name": "cross_entropy"}])
    overrides = "--optimizer.lr 0.5 --input.network-size 32 64 --losses.0.label-smoothing 0.2 --seed 7"
    read = "--backbone.class-token True --backbone.output-stride 8"
    free = "--head.options.width 24 --head.options.rates 1 2"
    recipe = load_recipe(path, [*overrides.split(), *read.split(), *free.split()])
    assert recipe.optimizer.lr == 0.5
    assert recipe.input.network_size == (32, 64)
    assert recipe.losses[0].label_smoothing == 0.2
    assert recipe.seed == 7
    assert (recipe.backbone.class_token, recipe.backbone.output_stride) == (True, 8)
    assert recipe.head.options == {"width": 24, "rates": [1, 2]}
    assert recipe.batch_size == load_recipe(path).batch_size


def test_a_mapping_may_merge_one_that_stands_deeper_and_merges_too(tmp_path):
    path = write(tmp_path, epochs=None)
    stages = """
        stages:
        - {epochs: 1, augmentation: &weak {brightness: 0.1, contrast: [0.9, 1.1]}}
        - {epochs: 1, augmentation: &strong {<<: *weak, brightness: 0.3}}
        augmentation: {<<: *strong, hue: 0.1}
        """
    path.write_text(path.read_text() + textwrap.dedent(stages))
    recipe = load_recipe(path)
    assert recipe.augmentation == Augmentation(brightness=0.3, contrast=(0.9, 1.1), hue=0.1)
    assert recipe.stages[1].augmentation == Augmentation(brightness=0.3, contrast=(0.9, 1.1))


def test_a_value_may_follow_an_equals_sign(tmp_path):
    path = write(tmp_path, head={"options": {"width": 8}})
    overrides = "--optimizer.lr=0.5 --input.network-size=32 64 --head.options.width=24 --head.options.rates=1 2"
    recipe = load_recipe(path, [*overrides.split(), "--description=a=b"])
    assert (recipe.optimizer.lr, recipe.input.network_size, recipe.description) == (0.5, (32, 64), "a=b")
    assert recipe.head.options == {"width": 24, "rates": [1, 2]}


def test_a_tilde_begins_the_users_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    data, cache = {"name": "scenes", "count": 8, "cache": "~/scenes"}, {"folder": "~/features"}
    recipe = load_recipe(write(tmp_path, data=data, cache=cache), ["--output", "~/run"])
    assert (recipe.output, recipe.cache.folder) == ("/home/me/run", "/home/me/features")
    assert recipe.data.cache == "/home/me/scenes"


def test_a_backbone_in_the_users_folder_is_found_by_other_users_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    assert lasting("~/weights") == str(tmp_path / "weights")
    assert lasting("~/absent") == "~/absent"


def settings_parser() -> SettingsParser:
    parser = SettingsParser("training.try", "Try something.", "RECIPE", Recipe)
    parser.add_argument("recipe")
    parser.add_argument("--dry-run", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("line", "overrides"),
    [
        ("--optimizer.lr 1e-3 demo", "--optimizer.lr 1e-3"),
        ("--optimizer.lr=1e-3 demo", "--optimizer.lr 1e-3"),
        ("demo --optimizer.lr 1e-3", "--optimizer.lr 1e-3"),
        ("--input.network-size 32 64 demo", "--input.network-size 32 64"),
        ("--seed 7 demo --optimizer.betas 0.8 0.9", "--seed 7 --optimizer.betas 0.8 0.9"),
        ("--inference.scales 0.75 1.0 demo", "--inference.scales 0.75 1.0"),
        ("--inference.stride auto demo", "--inference.stride auto"),
        ("--inference.stride 32 64 demo", "--inference.stride 32 64"),
        ("--head.options.rates 1 2 demo", "--head.options.rates 1 2"),
        ("--losses.0.gamma 2 demo", "--losses.0.gamma 2"),
        ("--data.root FOLDER demo", "--data.root FOLDER"),
        ("--backbone.layers 1 2 --seed 7 demo", "--backbone.layers 1 2 --seed 7"),
        ("--backbone.layers -2 -1 demo --seed 7", "--backbone.layers -2 -1 --seed 7"),
        ("demo --backbone.layers 1 2", "--backbone.layers 1 2"),
    ],
)
@pytest.mark.parametrize("place", ["before", "after", "without"])
def test_overrides_may_stand_before_the_recipe(line, overrides, place):
    words = {"before": ["--dry-run", *line.split()], "after": [*line.split(), "--dry-run"], "without": line.split()}
    options, found = settings_parser().parse_settings(words[place])
    assert (options.recipe, options.dry_run) == ("demo", place != "without")
    assert found == overrides.split()


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("--optimizer.lrr", "--optimizer.lr"),
        ("--batchsize", "--batch_size"),
        ("--data.rot", "--data.root"),
        ("--dry-runs", "--dry-run"),
        ("--losses.0.gama", "--losses.N.gamma"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(key, nearest):
    with pytest.raises(UsageError) as error:
        settings_parser().parse_settings(["demo", key, "1"])
    assert f"unknown option {key} (did you mean '{nearest}'?)" in str(error.value)


@pytest.mark.parametrize("words", [[], ["demo"]])
def test_the_help_lists_every_key_with_its_value(words, capsys):
    assert train.main(["--help", *words, "--seed", "7"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("lr FLOAT", "betas FLOAT FLOAT"):
        assert f"--optimizer.{part}" in said, part
    for part in ("--inference.stride INT INT|auto", "--head.options.NAME VALUE"):
        assert part in said, part
    assert "Rows and columns from one window to the next; auto: two thirds of the network size." in said
    assert ("--losses.N.gamma FLOAT" in said) == (not words), "keys of the recipe's own losses, or of all"
    assert ("--seed INT Start of all random numbers. (now: 7)" in said) == bool(words)


def test_null_takes_a_value_back(tmp_path):
    path = write(tmp_path, ema=0.9, data={"name": "scenes", "count": 8, "cache": "there"})
    recipe = load_recipe(path, ["--ema", "null", "--data.cache", "None", "--iterations", "3", "--epochs", "null"])
    assert (recipe.ema, recipe.data.cache, recipe.iterations, recipe.epochs) == (None, None, 3, None)


@pytest.mark.parametrize(
    ("keys", "words", "advice"),
    [
        ({"epochs": 2}, "--iterations 300", "--epochs null"),
        ({"epochs": None, "iterations": 2}, "--epochs 3", "--iterations null"),
        ({"stages": [{"epochs": 2}]}, "--stages.0.iterations 300", "--stages.0.epochs null"),
        ({"epochs": 2, "stages": [{}, {}]}, "--iterations 300", "--epochs null"),
    ],
)
def test_a_second_duration_is_refused_with_the_words_that_take_the_first_back(tmp_path, keys, words, advice):
    path = write(tmp_path, **keys)
    with pytest.raises(RecipeError, match=f"cannot use {words}: give either epochs or iterations.* {advice}"):
        load_recipe(path, words.split())
    recipe = load_recipe(path, f"{words} {advice}".split())
    assert (recipe.by_stage()[0].epochs is None) == ("iterations" in words)


def test_overrides_leave_the_recipe_itself_unchanged(tmp_path):
    recipe = load_recipe(write(tmp_path, head={"options": {"width": 8}}))
    assert apply_overrides(recipe, ["--head.options.width", "16"]).head.options == {"width": 16}
    assert recipe.head.options == {"width": 8}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("--seed", "--seed has no value"),
        ("--seed 1 2", "cannot use --seed 1 2: it takes one value"),
        ("7", "cannot use 7: it belongs to no key"),
        ("--head.options.width [1", r"cannot use --head.options.width \[1: it is no YAML"),
        ("--head.options.width 2026-13-45", "width 2026-13-45: it is no YAML"),
        ("--backbone.config.depths 1", "what holds it is null"),
        ("--stages 1", "unknown key --stages"),
    ],
)
def test_an_override_of_a_wrong_form_is_refused(tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path), overrides.split())


def test_overrides_reach_each_of_several_losses(tmp_path):
    path = write(tmp_path, losses=[{"name": "focal"}, {"name": "dice", "weight": 0.5}, {"name": "lovasz"}])
    overrides = "--losses.0.gamma 1.5 --losses.1.smooth 1 --losses.2.per-image True"
    focal, dice, lovasz = load_recipe(path, overrides.split()).losses
    assert (focal.gamma, dice.smooth, dice.weight, lovasz.per_image) == (1.5, 1.0, 0.5, True)


@pytest.mark.parametrize(
    "override", ["--optimizer.lrr 1", "--epochs 0", "--optimizer.lr fast", "--augmentation.scale 0 1"]
)
def test_an_override_that_cannot_be_used_is_named(tmp_path, override):
    with pytest.raises(RecipeError, match=override.split()[0]):
        load_recipe(write(tmp_path), override.split())


@pytest.mark.parametrize(
    "override", ["--optimizer.name sgd", "--losses.0.name lovasz", "--data.name voc", "--stages.0.optimizer.lr 1"]
)
def test_keys_that_only_the_file_can_change_are_refused(tmp_path, override):
    path = write(tmp_path, losses=[{"name": "cross_entropy"}], epochs=None, stages=[{"epochs": 1}])
    with pytest.raises(RecipeError, match=f"loss, must be written in {path}"):
        load_recipe(path, override.split())


def test_an_unknown_recipe_is_answered_with_the_nearest_name():
    with pytest.raises(RecipeError, match="'camvid_quick'"):
        load_recipe("camvid_quik")


@pytest.mark.parametrize("text", ["name: [", 5000 * "["], ids=["cut", "deep"])
def test_a_file_that_is_not_yaml_is_named(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=str(path)):
        load_recipe(path)


@pytest.mark.parametrize("path", sorted(RECIPES_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path):
    assert load_recipe(path.stem).name


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), {0: 1.0, 99: 1.0}),
        (Constant(warmup=0.1), {0: 1 / 11, 9: 10 / 11, 10: 1.0, 99: 1.0}),
        (Poly(), {0: 1.0, 50: 0.5**0.9, 99: 0.01**0.9}),
        (Poly(power=1.0), {0: 1.0, 50: 0.5, 99: 0.01}),
        (Poly(power=1.0, warmup=0.2), {0: 1 / 21, 20: 1.0, 60: 0.5}),
        (Step(milestones=(0.6, 0.9)), {0: 1.0, 59: 1.0, 60: 0.1, 89: 0.1, 90: 0.01}),
        (Step(milestones=(0.5,), gamma=0.5, warmup=0.2), {0: 1 / 21, 20: 1.0, 59: 1.0, 60: 0.5}),
        (Cosine(), {0: 1.0, 50: 0.5}),
        (Cosine(warmup=0.1, final=0.2), {0: 1 / 11, 9: 10 / 11, 10: 1.0, 55: 0.6}),
        (OneCycle(warmup=0.5, initial=0.1), {0: 0.1, 25: 0.55, 50: 1.0, 75: 0.5}),
    ],
)
def test_schedules_pass_through_their_known_points(schedule, expected):
    for step, factor in expected.items():
        assert schedule.factor(step, 100) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", [Poly(), Step(), Cosine(warmup=1.0), OneCycle(warmup=0.0), OneCycle(warmup=1.0)])
def test_schedules_stay_between_zero_and_one(schedule):
    assert all(0.0 <= schedule.factor(step, 7) <= 1.0 for step in range(7))


def modules() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A backbone whose first part is frozen, and a head."""
    backbone = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Conv2d(3, 4, 1))
    backbone[0].requires_grad_(False)
    return backbone, torch.nn.Sequential(torch.nn.Conv2d(4, 5, 1), torch.nn.BatchNorm2d(5))


@pytest.mark.parametrize("decay_vectors", [False, True])
@pytest.mark.parametrize("kind", [AdamSection, AdamWSection, SGDSection])
def test_optimizers_group_rates_and_weight_decay_as_told(kind, decay_vectors):
    backbone, head = modules()
    section = kind(lr=0.1, backbone_lr_factor=0.25, weight_decay=0.5, decay_vectors=decay_vectors)
    optimizer = section.build(backbone, head)
    settings = {
        parameter: (group["lr"], group["peak_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert settings.keys() == {*backbone[1].parameters(), *head.parameters()}
    vectors = 0.5 if decay_vectors else 0.0
    assert settings[head[0].weight] == (0.1, 0.1, 0.5)
    assert settings[head[0].bias] == settings[head[1].weight] == (0.1, 0.1, vectors)
    assert settings[backbone[1].weight] == (0.025, 0.025, 0.5)
    assert settings[backbone[1].bias] == (0.025, 0.025, vectors)


@pytest.mark.parametrize(
    ("kind", "equal", "settings"),
    [
        (SGDSection, torch.optim.SGD, {"momentum": 0.8}),
        (AdamSection, torch.optim.Adam, {"betas": (0.5, 0.6)}),
        (AdamWSection, torch.optim.AdamW, {"betas": (0.5, 0.6)}),
    ],
)
def test_an_optimizer_with_poly_decay_equals_that_of_pytorch(kind, equal, settings):
    (_, head), (_, other) = modules(), modules()
    other.load_state_dict(head.state_dict())
    section, schedule = kind(lr=0.1, weight_decay=0.1, decay_vectors=True, **settings), Poly()
    ours = section.build(torch.nn.Identity(), head)
    theirs = equal(other.parameters(), lr=0.1, weight_decay=0.1, **settings)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(theirs, total_iters=10, power=0.9)
    images = torch.randn(2, 4, 3, 3)
    for step in range(10):
        for group in ours.param_groups:
            group["lr"] = group["peak_lr"] * schedule.factor(step, 10)
        for module, optimizer in ((head, ours), (other, theirs)):
            optimizer.zero_grad()
            module(images).square().sum().backward()
            optimizer.step()
        scheduler.step()
    for one, another in zip(head.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, another)
