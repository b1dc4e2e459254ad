"""The feature cache: trains as without it, never trusts damaged samples, keeps to its bounds."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from trainings import CONVNEXT, end, forget_accelerator, records, start_processes, tiny_recipe, train

from dinov3_seg_ros.model.backbone import Backbone
from dinov3_seg_ros.model.identity import save_backbone
from dinov3_seg_ros.model.weights import build_backbone
from dinov3_seg_ros.support.errors import DatasetError, RecipeError
from dinov3_seg_ros.support.files import locked
from training.loop.trainer import Trainer
from training.samples import cache_filling
from training.samples.cache_filling import fill_caches
from training.samples.feature_cache import CacheSettings, FeatureCache

#: Two views of each of eight images.
SAMPLES = 16
AUGMENTED = {"augmentation": {"scale": [0.5, 1.5], "flip": 0.5, "brightness": 0.1}, "epochs": 2}


@pytest.fixture
def source(tmp_path) -> str:
    torch.manual_seed(3)
    save_backbone(build_backbone(CONVNEXT), tmp_path / "source")
    return str(tmp_path / "source")


@pytest.fixture
def recipe(tmp_path, source):
    """A recipe whose backbone is frozen; ``cache`` changes its cache of two views."""

    def make(cache: dict | None = None, **changes: object):
        section = {"views": 2, "folder": str(tmp_path / "features"), **(cache or {})}
        return tiny_recipe(
            tmp_path, **{"backbone": {"source": source, "layers": [1, 2, 3]}, **AUGMENTED, "cache": section, **changes}
        )

    return make


@pytest.fixture
def images_seen(monkeypatch) -> list[int]:
    """How many images each pass through a backbone has, outside of validation."""
    seen, original = [], Backbone.forward

    def counted(self, images):
        if len(images) > 1:
            seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Backbone, "forward", counted)
    return seen


def entries(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "features").rglob("*") if path.is_file() and path.name != "key.json")


def head(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.model.head.state_dict()


def test_training_from_the_cache_gives_the_head_of_training_without(recipe, tmp_path):
    plain = train(recipe({"views": 0}, output=str(tmp_path / "plain")))
    cached = train(recipe())
    for name, tensor in head(plain).items():
        torch.testing.assert_close(head(cached)[name], tensor, atol=2e-3, rtol=2e-2)
    for one, other in zip(records(cached.output), records(plain.output), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)


def test_the_backbone_computes_each_view_once_for_all_epochs_and_heads(recipe, tmp_path, images_seen):
    train(recipe(epochs=5))
    assert sum(images_seen) == SAMPLES
    assert len(entries(tmp_path)) == SAMPLES
    train(recipe(head={"name": "linear"}, output=str(tmp_path / "other"), losses=[{"name": "dice"}]))
    assert sum(images_seen) == SAMPLES


def test_an_image_guided_head_trains_from_the_cache_as_without(recipe, tmp_path):
    head_section = {"options": {"width": 16, "detail": True}}
    plain = train(recipe({"views": 0}, head=head_section, output=str(tmp_path / "plain")))
    cached = train(recipe(head=head_section))
    for one, other in zip(records(cached.output), records(plain.output), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-3)


def test_images_are_added_to_cached_features_without_the_backbone(recipe, tmp_path, images_seen):
    train(recipe())
    small = sum(path.stat().st_size for path in entries(tmp_path))
    guided = {"options": {"width": 16, "detail": True}}
    trainer = train(recipe(head=guided, output=str(tmp_path / "guided")))
    assert sum(images_seen) == SAMPLES
    assert sum(path.stat().st_size for path in entries(tmp_path)) > small
    (cache,) = trainer._samples
    canvas, _ = cache._samples[1, 2]
    assert torch.equal(cache[1, 2][0][-1], canvas) and cache.missing() == []
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in entries(tmp_path))
    assert SAMPLES * cache.sample_bytes() == pytest.approx(used, rel=0.1)


def test_resuming_a_finished_training_computes_no_features(recipe, tmp_path, images_seen):
    train(recipe())
    shutil.rmtree(tmp_path / "features")
    train(recipe(), resume=True)
    assert sum(images_seen) == SAMPLES
    assert not (tmp_path / "features").exists()


def test_views_differ_and_are_used_in_turn(recipe, tmp_path):
    trainer = train(recipe())
    (cache,) = trainer._samples
    assert not torch.equal(cache[0, 1][0][0], cache[1, 1][0][0])
    assert torch.equal(cache[0, 1][0][0], cache[2, 1][0][0])
    assert not torch.equal(cache[0, 1][1], cache[1, 1][1])


def test_without_augmentation_there_is_one_view(recipe, tmp_path):
    train(recipe({"views": 3}, augmentation={}))
    assert len(entries(tmp_path)) == SAMPLES // 2


def test_views_differ_without_augmentation_where_frames_are_cropped(recipe, tmp_path):
    trainer = train(recipe(augmentation={}, input={"network_size": [32, 64], "geometry": "pad"}))
    (cache,) = trainer._samples
    assert len(entries(tmp_path)) == SAMPLES
    assert not torch.equal(cache[0, 1][1], cache[1, 1][1])


def test_each_stage_has_its_views(recipe, tmp_path, images_seen):
    train(recipe(epochs=None, stages=[{"epochs": 1}, {"epochs": 1, "augmentation": {}}]))
    assert sum(images_seen) == SAMPLES + SAMPLES // 2


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"augmentation": {"flip": 0.5}},
        {"input": {"network_size": [64, 96], "geometry": "letterbox"}},
        {"input": {"network_size": [64, 96], "geometry": "stretch", "mean": [0.5, 0.5, 0.5]}},
        {"layers": [3]},
        {"feature_norm": "final"},
        {"weights": 4},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_different_features_have_different_folders(recipe, tmp_path, source, changes):
    def folder(**changes: object) -> Path:
        backbone = {"source": source, "layers": [1, 2, 3]}
        backbone |= {key: changes.pop(key) for key in ("layers", "feature_norm") if key in changes}
        trainer = Trainer(recipe(backbone=backbone, **changes), Console(quiet=True))
        return trainer.caches(trainer.data_digest()).by_stage[0].folder

    forget_accelerator()
    before = folder()
    forget_accelerator()
    assert folder() == before
    if changes.pop("weights", None):
        torch.manual_seed(4)
        save_backbone(build_backbone(CONVNEXT), source)
    forget_accelerator()
    assert folder(**changes) != before


def test_trainings_of_different_seeds_share_views_of_the_caches_own_seed(recipe, tmp_path, images_seen):
    for seed in (1, 2):
        train(recipe({"seed": 0}, seed=seed, output=str(tmp_path / f"seed{seed}")))
    assert sum(images_seen) == SAMPLES


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_damaged_samples_are_computed_again(recipe, tmp_path, images_seen, damage):
    first = train(recipe())
    path = entries(tmp_path)[5]
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-7], "flipped": bytes(flipped)}.get(damage, b""))
    if damage == "removed":
        path.unlink()
    images_seen.clear()
    again = train(recipe(output=str(tmp_path / "again")))
    assert len(path.read_bytes()) == len(content)
    # In a batch of another size the last bit of a feature may be another.
    for name, tensor in head(first).items():
        torch.testing.assert_close(head(again)[name], tensor, atol=2e-3, rtol=2e-2)


def test_a_sample_damaged_while_training_is_reported_with_advice(recipe, tmp_path):
    (cache,) = train(recipe())._samples
    entries(tmp_path)[0].write_bytes(b"x")
    with pytest.raises(DatasetError, match="--resume"):
        cache[0, 0]


def test_a_trained_backbone_is_refused(recipe, source):
    with pytest.raises(RecipeError, match=r"cache\.views"):
        train(recipe(backbone={"source": source, "trainable": 1}))


def test_a_bound_that_is_too_small_is_refused_before_computing(recipe, tmp_path, images_seen):
    with pytest.raises(RecipeError, match=r"cache\.max_gb"):
        train(recipe({"max_gb": 1e-5}))
    assert not entries(tmp_path) and not images_seen


def test_a_training_resumes_once_its_cache_has_more_room(recipe, tmp_path):
    with pytest.raises(RecipeError, match="--resume"):
        train(recipe({"max_gb": 1e-5}))
    train(recipe({"max_gb": 1.0}), resume=True)
    assert len(entries(tmp_path)) == SAMPLES


def test_a_complete_cache_is_used_in_a_full_folder(recipe, tmp_path, images_seen):
    train(recipe())
    (tmp_path / "features" / "others").write_bytes(bytes(100_000))
    train(recipe({"max_gb": 1e-5}, output=str(tmp_path / "again")))
    assert sum(images_seen) == SAMPLES


def test_leftovers_of_killed_processes_are_removed_and_no_other_file(recipe, tmp_path):
    (cache,) = train(recipe())._samples
    old, new = cache.folder / "000" / "0000" / ".0000001.old", cache.folder / "000" / "0000" / ".0000001.new"
    precious = tmp_path / "features" / ".profile"
    for path in (old, new, precious):
        path.write_bytes(b"half")
    for path in (old, precious):
        os.utime(path, (0, 0))
    entries(tmp_path)[-1].unlink()
    train(recipe(output=str(tmp_path / "again")))
    assert not old.exists() and new.exists() and precious.exists()


def test_a_training_waits_while_another_fills_the_folder(recipe, tmp_path):
    (tmp_path / "features").mkdir()
    with locked(tmp_path / "features"):
        filling = threading.Thread(target=train, args=(recipe(),), daemon=True)
        filling.start()
        filling.join(5)
        assert filling.is_alive() and not entries(tmp_path)
    filling.join(120)
    assert not filling.is_alive()
    assert len(entries(tmp_path)) == SAMPLES


def test_caches_of_other_trainings_count_against_the_bound(recipe, tmp_path):
    train(recipe())
    size = sum(path.stat().st_size for path in entries(tmp_path)) / 1e9
    with pytest.raises(RecipeError, match=r"holds .* already"):
        train(recipe({"max_gb": 1.5 * size}, seed=7, output=str(tmp_path / "other")))


def test_a_disk_that_is_too_small_is_refused_before_computing(recipe, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_filling.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(RecipeError, match=r"cache\.folder"):
        train(recipe())
    assert not entries(tmp_path)


def test_the_announced_disk_use_is_the_real_one(recipe, tmp_path):
    (cache,) = train(recipe())._samples
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in entries(tmp_path))
    assert SAMPLES * cache.sample_bytes() == pytest.approx(used, rel=0.1)


def test_the_key_file_describes_the_features(recipe, tmp_path):
    (cache,) = train(recipe())._samples
    key = json.loads((cache.folder / "key.json").read_text())
    assert key["backbone"]["layers"] == [1, 2, 3]
    assert key["samples"]["augmentation"]["flip"] == 0.5


def test_features_beyond_float16_are_refused(recipe, tmp_path):
    trainer = Trainer(recipe(), Console(quiet=True))
    with torch.no_grad():
        for parameter in trainer.model.backbone.parameters():
            parameter *= 1e3
    with pytest.raises(RecipeError, match="float16"):
        trainer.run()


def test_two_processes_may_fill_one_cache_at_once(recipe, tmp_path):
    trainings = start_processes(train, *((recipe(output=str(tmp_path / f"at_once{number}")),) for number in range(2)))
    assert [end(process) for process in trainings] == [0, 0]
    alone = train(recipe({"folder": str(tmp_path / "alone")}, output=str(tmp_path / "alone_run")))
    assert len(entries(tmp_path)) == SAMPLES
    for number in range(2):
        assert [r["loss"] for r in records(tmp_path / f"at_once{number}")] == [r["loss"] for r in records(alone.output)]


def test_a_dry_run_leaves_no_cache(recipe, tmp_path):
    Trainer(recipe(), Console(quiet=True)).dry_run()
    assert not (tmp_path / "features").exists()


class Numbers:
    """Samples that need no images."""

    is_random = True

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        view, index = key
        return torch.full((4, 4, 3), 10 * view + index, dtype=torch.uint8), torch.full((4, 4), 40_000 + index).int()

    def description(self) -> dict:
        return {}


def test_samples_are_read_as_they_were_written(tmp_path):
    settings = CacheSettings(views=2, folder=str(tmp_path))
    cache = FeatureCache(settings, {}, Numbers(), [(1, 2, 2), (3, 1, 1)])

    def extract(canvases: torch.Tensor) -> list[torch.Tensor]:
        values = canvases[:, :1, :1, :1].float()
        return [values.expand(-1, 1, 2, 2), -values.expand(-1, 3, 1, 1)]

    forget_accelerator()
    fill_caches([cache], settings, extract, 4, 0, Accelerator(cpu=True), Console(quiet=True))
    (first, second), mask = cache[3, 2]
    assert (first == 12).all() and (second == -12).all() and first.dtype == torch.float16
    assert (first.shape, second.shape) == ((1, 2, 2), (3, 1, 1))
    assert (mask == 40_002).all() and mask.dtype == torch.int32
    assert cache.missing() == []
