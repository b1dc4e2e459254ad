"""A teacher labels images, and a student trains on them beside the labelled ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from bundles import write_tiny_bundle
from PIL import Image
from rich.console import Console
from trainings import forget_accelerator, records, tiny_recipe, train

from dinov3_seg_ros import scenes
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import DatasetError, OutputError
from training import check_dataset
from training import distill as command
from training.checks.findings import Findings
from training.checks.likeness import thumbnail
from training.checks.problems import find_problems, remedy_of
from training.data.pseudo_labels import JoinedImages, PseudoLabels
from training.loop.parts import make_repeats, open_training_data
from training.loop.trainer import Trainer
from training.samples.loader import EpochBatches, repeat_factors, share_out

CLASSES = len(scenes.CLASS_NAMES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A bundle with the classes of the scenes."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    bundle = write_tiny_bundle(folder, network_size=(64, 96), num_classes=CLASSES)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["classes"]["names"] = list(scenes.CLASS_NAMES)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture(scope="module")
def taught(teacher, tmp_path_factory):
    """What the teacher makes of six images in two folders."""
    folder = tmp_path_factory.mktemp("taught")
    for seed in range(6):
        path = folder / "photos" / ("day", "night")[seed % 2] / f"{seed // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path)
    assert run(folder / "photos", teacher, folder / "pseudo", "--threshold", 0.5, "--class-share", 0.5) == 0
    return folder


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (96, 64), interpolation=cv2.INTER_CUBIC)


def run(photos: Path, teacher, output: Path, *words: object) -> int:
    line = [photos, "--bundle", teacher.path, "--output", output, "--runtime", "torch", *words]
    return command.main([*map(str, line)])


def test_masks_hold_the_teachers_labels_where_it_is_sure(teacher, taught):
    segmenter = Segmenter.from_bundle(teacher.path, runtime="torch")
    said = json.loads((taught / "pseudo/pseudo_labels.json").read_text())
    levels = np.rint(255 * np.array([said["thresholds"][name] for name in scenes.CLASS_NAMES]))
    assert len(said["images"]) == 6
    kept = np.zeros(CLASSES)
    total = np.zeros(CLASSES)
    for entry in said["images"]:
        image = np.array(Image.open(taught / "pseudo/images" / entry["image"]))
        assert np.array_equal(image, np.array(Image.open(taught / "photos" / entry["image"])))
        mask = np.array(Image.open(taught / "pseudo/masks" / entry["mask"]))
        found = segmenter.segment([image])[0]
        wanted = np.where(found.confidence >= levels[found.labels], found.labels, 255)
        assert np.array_equal(mask, wanted)
        kept += np.bincount(mask[mask < 255], minlength=CLASSES)
        total += np.bincount(found.labels.ravel(), minlength=CLASSES)
    assert 0 < kept.sum() < total.sum()
    assert (kept >= 0.5 * total).all()
    shares = [said["kept"].get(name, 0) for name in scenes.CLASS_NAMES]
    assert shares == pytest.approx(kept / np.maximum(total, 1), abs=1e-4)


def test_a_rare_class_keeps_its_share_and_a_sure_one_its_threshold():
    histogram = np.zeros((3, 256), np.int64)
    histogram[0, 250], histogram[0, 10] = 90, 10  # sure
    histogram[1, 100], histogram[1, 50] = 6, 6  # never sure
    levels = command.class_levels(histogram, 0.8, 0.5)
    assert levels.tolist()[:2] == [204, 100]
    assert command.class_levels(histogram, 0.8, 0)[1] == 204
    assert command.class_levels(histogram, 0, 0.5).tolist() == [0, 0, 0]


def test_a_student_trains_on_both_and_draws_as_many_of_each(taught, tmp_path):
    recipe = tiny_recipe(tmp_path, pseudo_labels={"root": str(taught / "pseudo"), "labelled_share": 0.75}, epochs=1)
    data = open_training_data(recipe)
    assert isinstance(data, JoinedImages)
    assert (len(data), data.describe(0), data.describe(8)) == (14, "train scene 0", "images/day/0.png")
    assert np.array_equal(data.item(13)[0], picture(5))
    assert np.array_equal(data.item(13)[1], data.mask(13))
    assert set(np.unique(data.mask(13))) <= {*range(CLASSES), data.ignore_value}
    repeats = make_repeats(recipe, data, lambda: np.zeros((0, 0)))
    pixels = np.eye(14, CLASSES, dtype=int) + np.eye(1, CLASSES, dtype=int)  # the first class is in each image
    rare = make_repeats(recipe.model_copy(update={"repeat_threshold": 0.5}), data, lambda: pixels)
    factors = repeat_factors(pixels, 0.5)
    for part in (slice(8), slice(8, 20)):
        np.testing.assert_allclose(rare[part] / rare[part].min(), factors[part] / factors[part].min())
    assert not np.allclose(rare, repeats)
    assert rare[:8].sum() / rare.sum() == pytest.approx(repeats[:8].sum() / repeats.sum()), "the share of the labelled"
    assert rare.min() == 1
    order = EpochBatches(share_out(14, 7), 0, repeats)
    drawn = []
    for order.epoch in range(40):
        drawn += [index for batch in order for _, index in batch]
    assert np.mean(np.array(drawn) < 8) == pytest.approx(0.75, abs=0.03)
    train(recipe)
    assert records(tmp_path / "run")[-1]["step"] == 3
    files = json.loads((tmp_path / "run/origins.json").read_text())["data"]["train"]["files"]
    assert sum(name.startswith("pseudo-labels/") for name in files) == 12


def test_a_training_goes_on_after_the_teachers_folder_was_moved(taught, tmp_path):
    shutil.copytree(taught / "pseudo", tmp_path / "pseudo")
    settings = {"labelled_share": 0.75}
    train(tiny_recipe(tmp_path, pseudo_labels={**settings, "root": str(tmp_path / "pseudo")}, epochs=1))
    (tmp_path / "pseudo").rename(tmp_path / "moved")
    moved = {**settings, "root": str(tmp_path / "moved")}
    train(tiny_recipe(tmp_path, pseudo_labels=moved, epochs=2), resume=True)
    assert records(tmp_path / "run")[-1]["epoch"] == 2
    mask = min((tmp_path / "moved/masks").rglob("*.png"))
    Image.fromarray(np.zeros_like(np.array(Image.open(mask)))).save(mask)
    with pytest.raises(OutputError, match=r"pseudo-labels/.*changed|changed: .*pseudo-labels"):
        train(tiny_recipe(tmp_path, pseudo_labels=moved, epochs=3), resume=True)


def test_validation_images_that_the_teacher_labelled_are_told(teacher, tmp_path, capsys):
    seen, _ = tiny_recipe(tmp_path).data.open("val").item(0)
    for name, pixels in (("kitchen", seen), ("hall", picture(0))):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    assert run(tmp_path / "photos", teacher, tmp_path / "pseudo") == 0
    recipe = tiny_recipe(tmp_path, pseudo_labels={"root": str(tmp_path / "pseudo")})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    kind, told = "the same image in pseudo-labels and val: 1", "kitchen.png and val scene 0"
    remedy = "label again with training.distill, without the stretches of videos that are for validation"
    capsys.readouterr()
    forget_accelerator()
    Trainer(recipe, Console(width=300)).dry_run()
    assert f"warning: {kind}: {told}; {remedy}\n" in capsys.readouterr().out
    assert check_dataset.main([str(tmp_path / "recipe.json")]) == 1
    said = capsys.readouterr().out
    assert f"{kind}\n  {told}\n" in said and remedy in said


def test_frames_next_to_those_for_validation_are_told_with_what_helps():
    taught = Findings(names=["12.png"], contents=[b"12"], thumbnails=[thumbnail(picture(3))])
    val = replace(taught, names=["13.png"], contents=[b"13"])
    found = find_problems({"train": Findings(), "val": val}, taught)
    assert found == {"images of pseudo-labels and val look alike": ["12.png and 13.png (correlation 1.000)"]}
    assert [remedy_of(kind).partition(",")[0] for kind in found] == ["label again with training.distill"]


def test_without_a_folder_nothing_changes(tmp_path):
    recipe = tiny_recipe(tmp_path)
    data = open_training_data(recipe)
    assert type(data) is type(recipe.data.open("train"))
    assert make_repeats(recipe, data, lambda: np.zeros((0, 0))) is None


def test_an_unfinished_folder_and_other_classes_are_refused(taught, tmp_path):
    data = tiny_recipe(tmp_path).data.open("train")
    with pytest.raises(DatasetError, match=r"holds no pseudo_labels\.json"):
        PseudoLabels(root=str(tmp_path)).join(data)
    data.class_names = ["floor", "wall"]
    with pytest.raises(DatasetError, match="has other classes than the data set"):
        PseudoLabels(root=str(taught / "pseudo")).join(data)


def test_two_images_of_one_mask_are_refused_before_the_first_is_labelled(teacher, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg", "b.png"):
        Image.fromarray(picture(0)).save(tmp_path / "photos" / name)
    assert run(tmp_path / "photos", teacher, tmp_path / "out") == 1
    assert "b.jpg and b.png would have the same labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_have_labels_are_left_out(teacher, taught, tmp_path, capsys):
    (tmp_path / "known").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "known" / "a.png")
    assert run(taught / "photos", teacher, tmp_path / "out", "--labelled", tmp_path / "known") == 0
    assert "1 left out as labelled" in capsys.readouterr().out
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 5
    assert run(tmp_path / "known", teacher, tmp_path / "none", "--labelled", taught / "photos") == 1
    assert "no image is left to label: 1 are labelled already" in capsys.readouterr().err
    assert not (tmp_path / "none/pseudo_labels.json").exists()
