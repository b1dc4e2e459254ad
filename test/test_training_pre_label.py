"""Labels for labelling tools: the readers of the same formats give them back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from bundles import write_tiny_bundle
from PIL import Image

from dinov3_seg_ros.frames.classes import ClassesSection, default_palette
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import RuntimeFailedError
from training import pre_label as command
from training.data import DATASETS
from training.data.labelled_folder import AutoData
from training.data.run_lengths import compressed, region_of_coco, run_lengths
from training.data.writing import WRITERS
from training.data.writing.regions import find_regions
from training.pre_label import PreLabelSettings
from training.unlabelled.teacher import Teacher

FORMATS = get_args(PreLabelSettings.model_fields["format"].annotation)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", network_size=(64, 96))


def picture(seed: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def write_photos(folder: Path) -> None:
    for name, seed in (("day/a.png", 0), ("night/b.png", 1)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(folder / name)


def random_labels(seed: int, size: tuple[int, int] = (60, 80), classes: int = 4) -> np.ndarray:
    """Blobs with holes, islands in the holes and single pixels."""
    random = np.random.default_rng(seed)
    noise = np.stack([cv2.GaussianBlur(random.standard_normal(size), (0, 0), 3) for _ in range(classes)])
    labels = noise.argmax(0)
    labels[20:40, 20:40] = 0
    labels[25:35, 25:35] = 1
    labels[29:31, 29:31] = classes  # of no class, within a class within a class
    labels[random.random(size) < 0.01] = 2
    return labels


def drawn(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    values = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(values, [polygon], 1)
    return values > 0


@pytest.mark.parametrize("seed", range(3))
def test_polygons_without_holes_cover_regions_with_holes_exactly(seed):
    labels = random_labels(seed)
    regions = find_regions(labels, 4)
    painted = np.full(labels.shape, 4)
    for region in regions:
        covered = drawn(region.polygons, labels.shape)
        assert (labels[covered] == region.label).all(), "a hole stays open"
        assert covered.sum() == region.area
        painted[covered] = region.label
        assert min(map(len, region.polygons)) >= 3
    assert np.array_equal(painted, np.where(labels < 4, labels, 4))
    assert [region.area for region in regions] == sorted((region.area for region in regions), reverse=True)


def test_small_regions_join_what_encloses_them_or_stay_open():
    labels = np.full((40, 40), 2)
    labels[5:30, 5:30] = 0
    labels[10:12, 10:12] = 1  # within a region
    labels[35:37, 35:37] = 1  # where nothing is
    (region,) = find_regions(labels, 2, least_area=16)
    assert (region.label, region.area, len(region.polygons)) == (0, 625, 1)
    labels[range(13, 30), range(13, 30)] = 1  # a line, of which no two pixels share a side
    assert [(region.label, region.area) for region in find_regions(labels, 2, least_area=16)] == [(0, 608), (1, 17)]


def test_small_regions_stay_open_where_no_shape_means_background():
    labels = command.OpenLabels(ClassesSection(names=["background", "person"], palette=default_palette(2)), 0.7)
    ids = np.zeros((40, 40), np.uint8)
    ids[10:15, 10:15] = 1  # a sure speck
    ids[20:32, 20:32] = 1
    confidence = np.full((40, 40), 255, np.uint8)
    confidence[2:4, 2:4] = 0  # a small open region
    confidence[25:27, 25:27] = 0  # and one that the person encloses
    found = labels.of(SimpleNamespace(confidence=confidence, labels=ids))
    painted = np.full((40, 40), "background", object)
    for region in find_regions(found, len(labels.names), 64, 0.0, labels.open):
        painted[drawn(region.polygons, (40, 40))] = labels.names[region.label]
    expected = np.full((40, 40), "background", object)
    expected[10:15, 10:15] = expected[2:4, 2:4] = "__ignore__"
    expected[20:32, 20:32] = "person"
    assert np.array_equal(painted, expected)


def test_every_writer_can_be_asked_for():
    assert set(FORMATS) == set(WRITERS)


@pytest.mark.parametrize("kind", FORMATS)
def test_parts_of_one_region_stay_together_and_have_its_box(tmp_path, kind):
    labels = np.full((40, 50), 1)
    labels[5:25, 10:40] = labels[30:33, 2:9] = 0  # with a hole, and without
    labels[10:15, 20:30] = 1
    writer = WRITERS[kind](tmp_path, ["road"], [(9, 9, 9)], "polygons")
    writer.add("a.png", labels.shape, find_regions(labels, 1))
    writer.finish()
    if kind == "coco":
        annotations = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
        assert [(found["bbox"], found["area"]) for found in annotations] == [
            ([10, 5, 30, 20], 550),
            ([2, 30, 7, 3], 21),
        ]
        groups = [number for number, found in enumerate(annotations) for _ in found["segmentation"]]
    elif kind == "labelme":
        shapes = json.loads((tmp_path / "images/a.json").read_text())["shapes"]
        groups = [shape["group_id"] for shape in shapes]
    else:
        groups = [shape.get("group_id") for shape in ElementTree.parse(tmp_path / "annotations.xml").iter("polygon")]
    assert groups[0] is not None and groups[:-1] == [groups[0]] * (len(groups) - 1) and len(groups) > 2
    assert groups[-1] != groups[0]


def mask_and_run_lengths(seed: int) -> tuple[np.ndarray, str]:
    mask = random_labels(seed) == 0
    return mask, compressed(run_lengths(np.ascontiguousarray(mask.T)))


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_are_read_back(seed):
    mask, counts = mask_and_run_lengths(seed)
    assert np.array_equal(region_of_coco({"size": list(mask.shape), "counts": counts}), mask)


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_are_those_of_cocos_own_encoder(seed):
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    mask, counts = mask_and_run_lengths(seed)
    assert counts == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def run(bundle, photos: Path, output: Path, *words: object) -> dict:
    line = [photos, "--bundle", bundle.path, "--output", output, "--runtime", "torch", *words]
    assert command.main([*map(str, line)]) == 0
    return json.loads((output / "pre_label.json").read_text())


def read_back(summary: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and masks, in the order of their names."""
    data = DATASETS["auto"].model_validate({**summary["data"], "val_fraction": 0.5, "group": "none"})
    assert isinstance(data, AutoData)
    found = {part.describe(0): part.item(0) for part in (data.open("train"), data.open("val"))}
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("background", [False, True], ids=["no background", "background"])
def test_labels_are_read_back_as_they_were_written(bundle, tmp_path, kind, background, monkeypatch):
    names = ["class_0", "background", "road & rail", "tree", "<pole>"] if background else bundle.manifest.classes.names
    classes = ClassesSection(names=names, palette=default_palette(5))
    monkeypatch.setattr(command, "Teacher", lambda *words: named(Teacher(*words), classes))
    write_photos(tmp_path / "photos")
    segmenter = Segmenter.from_bundle(bundle.path, runtime="torch")
    threshold = np.median(segmenter.segment([picture(0)])[0].confidence) / 255
    exact = {}
    for shapes in ("masks", "polygons"):
        output = tmp_path / shapes
        options = ("--format", kind, "--shapes", shapes, "--tolerance", 0, "--least-area", 0, "--threshold", threshold)
        exact[shapes] = run(bundle, tmp_path / "photos", output, *options)
    for shapes, summary in exact.items():
        assert summary["data"]["classes"] == names
        for seed, (image, mask) in enumerate(read_back(summary)):
            assert np.array_equal(image, picture(seed))
            found = segmenter.segment([image])[0]
            wanted = np.where(found.confidence >= round(threshold * 255), found.labels, 255)
            assert np.array_equal(mask, wanted), shapes
            assert 0.1 < (wanted == 255).mean() < 0.9
    assert exact["masks"]["sure"] == pytest.approx(
        1 - np.mean([(m == 255).mean() for _, m in read_back(summary)]), abs=1e-3
    )


def named(teacher: Teacher, classes: ClassesSection) -> Teacher:
    teacher.classes = classes
    return teacher


@pytest.mark.parametrize("kind", FORMATS)
def test_polygons_within_a_pixel_keep_98_percent(bundle, tmp_path, kind):
    for seed in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture(seed, (240, 320))).save(tmp_path / f"photos/{seed}.png")
    summary = run(bundle, tmp_path / "photos", tmp_path / "out", "--format", kind, "--threshold", 0)
    segmenter = Segmenter.from_bundle(bundle.path, runtime="torch")
    for image, mask in read_back(summary):
        labels = segmenter.segment([image])[0].labels
        both = (mask == labels).sum()
        assert both / (2 * labels.size - both) >= 0.98


def test_several_bundles_are_averaged(bundle, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", network_size=(96, 96), seed=7)
    image = picture(0)
    teacher = Teacher([bundle.path, other.path])
    single = [Teacher([one.path]).label(image) for one in (bundle, other)]
    found = teacher.label(image)
    assert found.labels.shape == image.shape[:2]
    agreed = single[0].labels == single[1].labels
    assert 0 < agreed.mean() < 1
    assert (found.labels == single[0].labels)[agreed].mean() > 0.9
    assert found.confidence.mean() < np.mean([one.confidence.mean() for one in single])


def test_an_average_that_fails_is_told_as_a_runtime_that_fails(bundle, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "stack", fails)
    with pytest.raises(RuntimeFailedError, match="averaging the bundles failed: CUDA out of memory; end what else"):
        Teacher([bundle.path, bundle.path]).label(picture(0))


def test_what_cannot_be_labelled_is_one_message(bundle, tmp_path, capsys):
    write_photos(tmp_path / "photos")
    Image.fromarray(picture(3)).save(tmp_path / "photos/day/a.jpg")
    line = [str(tmp_path / "photos"), "--bundle", str(bundle.path), "--output", str(tmp_path / "out")]
    assert command.main(line) == 1
    assert "day/a.jpg and day/a.png would have the same labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "it is known before the first image"
    assert command.main([*line, "--format", "coco"]) == 0, "where the names of images stand in one file"
    large = write_tiny_bundle(tmp_path / "large", num_classes=6)
    line[line.index("--output") - 0 : line.index("--output")] = [str(large.path)]
    assert command.main([*line[:-1], str(tmp_path / "new")]) == 1
    assert "has other classes than" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
