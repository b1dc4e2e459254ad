"""Evaluation: averages over views against the plain way, and the folder that is left."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import labelled_folders
import numpy as np
import pytest
import tiny_datasets
import torch
import torch.nn.functional as F
from bundles import write_tiny_bundle
from full_disk import full_disk
from PIL import Image
from rich.console import Console
from trainings import forget_accelerator, tiny_recipe

from dinov3_seg_ros.bundle.loading import Bundle, load_bundle
from dinov3_seg_ros.bundle.saving import save_bundle
from dinov3_seg_ros.options import GEOMETRIES, ComputeOptions
from dinov3_seg_ros.runtimes.choice import open_runtime
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import DatasetError, ParameterError, RuntimeFailedError
from dinov3_seg_ros.support.metrics import ConfusionMatrix
from dinov3_seg_ros.support.resources import resource_path
from training import calibrate, evaluate, train
from training.evaluation.inference import AveragingSegmenter, Inference, open_segmenter
from training.evaluation.scores import Scores
from training.loop.trainer import Trainer
from training.reports.pictures import captioned, prediction_row, write_predictions

NETWORK_SIZE = (64, 128)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", network_size=NETWORK_SIZE, geometry="stretch")


@pytest.fixture(scope="module")
def data(tmp_path_factory, bundle) -> Path:
    """A folder with three images: what the bundle says of them, with one image's labels spoilt and one wholly so."""
    root = tmp_path_factory.mktemp("data")
    segmenter = Segmenter.from_bundle(bundle.path)
    for folder in ("images", "masks"):
        (root / "val" / folder).mkdir(parents=True)
    for index in range(3):
        image = picture(48, 64, seed=index)
        labels = segmenter.segment([image])[0].labels.copy()
        labels[: 24 * index] = (labels[: 24 * index] + 1) % 5
        labels[:, :4] = 255
        Image.fromarray(image).save(root / "val" / "images" / f"{index}.png")
        Image.fromarray(labels).save(root / "val" / "masks" / f"{index}.png")
    return root


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def averaging(bundle: Bundle, **inference: object) -> AveragingSegmenter:
    return AveragingSegmenter(
        bundle, open_runtime([bundle], ComputeOptions(runtime="torch"))[0], Inference(**inference)
    )


def network(bundle: Bundle):
    """Pictures of the network's size or another multiple -> logits, with nothing of ours between."""
    backbone, head = bundle.load_backbone(), bundle.load_head()
    mean, std = (torch.tensor(v)[:, None, None] for v in (bundle.manifest.input.mean, bundle.manifest.input.std))

    @torch.inference_mode()
    def logits(rgb: np.ndarray) -> torch.Tensor:
        canvas = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255
        return head(backbone((canvas - mean) / std))

    return logits


def enlarged(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def assert_agree(labels: np.ndarray, expected: torch.Tensor) -> None:
    """Up to pixels at which two classes tie within rounding."""
    assert len(np.unique(labels)) > 1
    assert (labels == expected.argmax(1)[0].numpy()).mean() > 0.999


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_one_view_equals_the_robots_labels_exactly(tmp_path, geometry):
    bundle = write_tiny_bundle(tmp_path / "bundle", geometry=geometry)
    images = [picture(90, 70), picture(64, 96)]
    robot = Segmenter.from_bundle(bundle.path, runtime="torch").segment(images)
    for one, other in zip(averaging(bundle).segment(images), robot, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.confidence, other.confidence)


@pytest.mark.parametrize(
    ("size", "scale", "stride"),
    [((50, 130), 1.0, (40, 90)), ((100, 90), 1.0, "auto"), ((64, 128), 1.7, (64, 128)), ((200, 100), 1.5, (30, 50))],
)
def test_windows_are_averaged_where_they_overlap(bundle, size, scale, stride):
    image = picture(*size)
    cover = max(NETWORK_SIZE[0] / size[0], NETWORK_SIZE[1] / size[1]) * scale
    resized_size = tuple(round(side * cover) for side in size)
    shrinks = resized_size[0] <= size[0]
    resized = cv2.resize(image, resized_size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    rows, columns = (43, 85) if stride == "auto" else stride
    total, looks, logits = torch.zeros(1, 5, *resized_size), torch.zeros(resized_size), network(bundle)
    for top in range(0, resized_size[0], rows):
        for left in range(0, resized_size[1], columns):
            bottom, right = min(top + NETWORK_SIZE[0], resized_size[0]), min(left + NETWORK_SIZE[1], resized_size[1])
            window = slice(bottom - NETWORK_SIZE[0], bottom), slice(right - NETWORK_SIZE[1], right)
            if top and top - rows + NETWORK_SIZE[0] >= resized_size[0]:
                continue  # the windows above reached the bottom already
            if left and left - columns + NETWORK_SIZE[1] >= resized_size[1]:
                continue
            total[:, :, window[0], window[1]] += enlarged(logits(resized[window]), NETWORK_SIZE)
            looks[window] += 1
    labels = averaging(bundle, mode="slide", stride=stride, scales=[scale]).segment([image])[0].labels
    assert labels.shape == size
    assert_agree(labels, enlarged(total / looks, size))


@pytest.mark.parametrize("geometry", ["pad", "native"])
def test_windows_keep_the_scale_that_training_had(tmp_path, geometry):
    bundle = write_tiny_bundle(tmp_path / "bundle", network_size=(64, 64), geometry=geometry)
    image, logits = picture(96, 128), network(bundle)
    total, looks = torch.zeros(1, 5, 96, 128), torch.zeros(96, 128)
    for top in (0, 32):
        for left in (0, 32, 64):
            window = slice(top, top + 64), slice(left, left + 64)
            total[:, :, window[0], window[1]] += enlarged(logits(image[window]), (64, 64))
            looks[window] += 1
    labels = averaging(bundle, mode="slide", stride=(32, 32)).segment([image])[0].labels
    assert_agree(labels, total / looks)


def test_scales_and_mirror_images_are_averaged_as_probabilities(bundle):
    image, logits = picture(*NETWORK_SIZE), network(bundle)
    scales, expected = (0.5, 1.0, 1.5), 0
    for scale in scales:
        size = tuple(int(side * scale) for side in NETWORK_SIZE)
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        for mirrored in (False, True):
            seen = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
            seen = cv2.resize(seen, size[::-1], interpolation=interpolation)
            probabilities = enlarged(logits(seen), NETWORK_SIZE).softmax(1)
            expected = expected + (probabilities.flip(-1) if mirrored else probabilities)
    result = averaging(bundle, scales=scales, flip=True).segment([image])[0]
    assert_agree(result.labels, expected)
    confidence = 255 * expected.amax(1)[0].numpy() / 6
    assert np.abs(result.confidence - confidence).max() <= 1


def test_classes_of_two_sides_trade_places_in_mirror_images(tmp_path):
    def rename(manifest):
        manifest["classes"]["names"] = ["floor", "Left lane", "right lane", "left", "bright"]

    plain = write_tiny_bundle(tmp_path / "plain", network_size=NETWORK_SIZE, geometry="stretch")
    sided = load_bundle(changed_copy(plain, tmp_path / "sided", rename))
    image, logits = picture(*NETWORK_SIZE), network(plain)
    seen = (enlarged(logits(view), NETWORK_SIZE).softmax(1) for view in (image, np.ascontiguousarray(image[:, ::-1])))
    straight, mirrored = seen
    expected = straight + mirrored.flip(-1)[:, [0, 2, 1, 3, 4]]
    assert_agree(averaging(sided, flip=True).segment([image])[0].labels, expected)


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_flipping_makes_labels_symmetric(tmp_path, geometry, mode):
    bundle = write_tiny_bundle(tmp_path / "bundle", geometry=geometry)
    segmenter = averaging(bundle, mode=mode, scales=[0.6, 1.0], flip=True)
    image = picture(75, 91)
    labels, mirrored = (s.labels for s in segmenter.segment([image, np.ascontiguousarray(image[:, ::-1])]))
    assert labels.shape == (75, 91)
    assert (labels == mirrored[:, ::-1]).mean() > 0.99


def test_a_runtime_that_fails_is_told_with_averaged_views_too(bundle, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    segmenter = averaging(bundle, flip=True)
    with monkeypatch.context() as patch, pytest.raises(RuntimeFailedError, match="averaging the views failed: CUDA"):
        patch.setattr(torch.Tensor, "softmax", fails)
        segmenter.segment([picture(50, 70)])
    monkeypatch.setattr(segmenter.runtime, "start", fails)
    with pytest.raises(RuntimeFailedError, match=r"^PyTorch .* failed: CUDA out of memory; end what else"):
        segmenter.segment([picture(50, 70)])


def test_a_stride_that_leaves_gaps_is_refused(bundle):
    with pytest.raises(ParameterError, match="gaps"):
        averaging(bundle, mode="slide", stride=(64, 129))


def test_a_training_refuses_a_stride_that_leaves_gaps(tmp_path):
    forget_accelerator()
    with pytest.raises(ParameterError, match=r"\(64, 97\) leaves gaps .* \(64, 96\) pixels; .*stride to auto"):
        Trainer(tiny_recipe(tmp_path, inference={"mode": "slide", "stride": [64, 97]}), Console(quiet=True))


@pytest.fixture
def exported(tmp_path):
    """The demo's bundle, which has a graph of its network size, with a geometry of choice."""

    def copy(geometry: str) -> Path:
        shutil.copytree(resource_path("weights/demo"), tmp_path / geometry)
        manifest = json.loads((tmp_path / geometry / "bundle.json").read_text())
        manifest["input"]["geometry"] = geometry
        (tmp_path / geometry / "bundle.json").write_text(json.dumps(manifest))
        return tmp_path / geometry

    return copy


@pytest.mark.parametrize(
    ("geometry", "views", "used"),
    [
        ("stretch", {"flip": True}, "onnx"),
        ("letterbox", {"mode": "slide", "scales": [1.0, 1.5]}, "onnx"),
        ("pad", {"mode": "slide"}, "onnx"),
        ("stretch", {"scales": [0.75, 1.0]}, "torch"),
        ("pad", {"flip": True}, "torch"),
        ("native", {"flip": True}, "torch"),
    ],
    ids=str,
)
def test_views_use_the_exports_where_their_size_fits(exported, geometry, views, used):
    path, image, inference = exported(geometry), picture(100, 140), Inference(**views)
    segmenter = open_segmenter(load_bundle(path), inference)
    assert segmenter.runtime.name == used
    labels = segmenter.segment([image])[0].labels
    by_the_model = averaging(load_bundle(path), **views).segment([image])[0].labels
    assert len(np.unique(labels)) > 1
    assert (labels == by_the_model).mean() > 0.999


@pytest.mark.parametrize(("geometry", "views"), [("stretch", {"scales": [0.75, 1.0]}), ("pad", {"flip": True})])
def test_a_named_runtime_without_the_size_of_a_view_is_refused(exported, geometry, views):
    segmenter = open_segmenter(load_bundle(exported(geometry)), Inference(**views), ComputeOptions(runtime="onnx"))
    with pytest.raises(ParameterError, match=r"'onnx' has graphs for 224x320 only; use --runtime torch"):
        segmenter.segment([picture(100, 140)])


@pytest.mark.parametrize("views", [{"flip": True}, {"mode": "slide"}])
def test_size_and_geometry_take_effect_with_averaged_views(bundle, tmp_path, views):
    image = picture(100, 140)
    other = write_tiny_bundle(tmp_path / "other", network_size=(96, 96), geometry="letterbox")
    expected = averaging(other, **views).segment([image])[0].labels
    options = ComputeOptions(runtime="torch", network_size=(96, 96), geometry="letterbox")
    labels = open_segmenter(bundle, Inference(**views), options).segment([image])[0].labels
    assert np.array_equal(labels, expected)
    assert not np.array_equal(labels, averaging(bundle, **views).segment([image])[0].labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_batch": 2}, "max_batch is 2"), ({"network_size": (60, 60)}, "multiples of")],
)
def test_options_that_averaged_views_cannot_honour_are_refused(bundle, options, message):
    with pytest.raises(ParameterError, match=message):
        open_segmenter(bundle, Inference(flip=True), ComputeOptions(runtime="torch", **options))


def test_batches_give_the_scores_of_single_images(bundle, data, tmp_path):
    single, batches = run(bundle, data, tmp_path), run(bundle, data, tmp_path, "--max-batch", "2")
    assert batches == {**single, "max_batch": 2}


def test_compute_flags_reach_the_segmenter(bundle, data, tmp_path):
    scores = run(bundle, data, tmp_path, "--runtime", "torch", "--network-size", "32", "64", "--geometry", "letterbox")
    assert (scores["runtime"], scores["network_size"], scores["geometry"]) == ("torch", [32, 64], "letterbox")
    assert scores["miou"] != run(bundle, data, tmp_path)["miou"]


def run(bundle: Bundle, data: Path, output: Path, *options: str) -> dict:
    arguments = ["--dataset", "folder", "--data.root", str(data), "--json", str(output / "scores.json"), *options]
    assert evaluate.main([str(bundle.path), *arguments]) == 0
    return json.loads((output / "scores.json").read_text())


def test_the_default_evaluation_sees_what_the_robot_sees(bundle, data, tmp_path):
    matrix, segmenter = ConfusionMatrix(5), Segmenter.from_bundle(bundle.path)
    for index in range(3):
        truth, image = (np.array(Image.open(data / "val" / kind / f"{index}.png")) for kind in ("masks", "images"))
        matrix.update(truth, segmenter.segment([image])[0].labels)
    scores = run(bundle, data, tmp_path)
    assert scores | matrix.summary(bundle.manifest.classes.names) == scores
    assert 0 < scores["boundary_miou"] < 1
    assert scores["per_class_boundary_iou"].keys() == scores["per_class_iou"].keys()


def test_boundaries_and_thin_objects_are_as_wide_as_asked_for(bundle, tmp_path):
    image = picture(48, 64)
    found = Segmenter.from_bundle(bundle.path).segment([image])[0]
    truth = np.full((48, 64), found.labels.min(), np.uint8)
    truth[:, 10:13] = truth[:, 30:44] = found.labels.max()
    for kind, pixels in (("images", image), ("masks", truth)):
        (tmp_path / "val" / kind).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "val" / kind / "0.png")
    expected = Scores(bundle.manifest.classes.names, 0.05, 0.2)
    expected.update(truth, found.labels, found.confidence)
    scores = run(bundle, tmp_path, tmp_path, "--boundary_width", "0.05", "--thin_width", "0.2", "--bootstrap", "0")
    assert scores | expected.summary() == scores


@pytest.fixture(scope="module")
def sequence(tmp_path_factory, bundle) -> Path:
    """A folder with frames of a still scene that differ by noise, labelled with what the bundle says without it."""
    root = tmp_path_factory.mktemp("sequence")
    segmenter, rng = Segmenter.from_bundle(bundle.path), np.random.default_rng(4)
    for folder in ("images", "masks"):
        (root / "val" / folder).mkdir(parents=True)
    still = picture(96, 128)
    labels = segmenter.segment([still])[0].labels
    for index in range(6):
        image = np.clip(still + rng.normal(0, 12, still.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "val" / "images" / f"{index}.png")
        Image.fromarray(labels).save(root / "val" / "masks" / f"{index}.png")
    return root


def test_a_sequence_is_scored_for_flicker_and_can_be_smoothed(bundle, sequence, tmp_path):
    assert run(bundle, sequence, tmp_path)["flicker"] is None
    words = ("--sequence", "True", "--bootstrap", "0")
    single = run(bundle, sequence, tmp_path, *words)
    smoothed = run(bundle, sequence, tmp_path, *words, "--temporal_smoothing", "0.8")
    assert 0 < smoothed["flicker"] < single["flicker"]
    assert smoothed["miou"] > single["miou"]


@pytest.mark.parametrize("of_a_sequence", [True, False])
def test_every_table_shows_the_flicker_of_a_sequence(bundle, sequence, tmp_path, capfd, of_a_sequence):
    other = write_tiny_bundle(tmp_path / "other", network_size=NETWORK_SIZE, geometry="stretch", seed=5)
    words = ("--sequence", str(of_a_sequence), "--against", str(other.path), "--report", str(tmp_path / "report"))
    scores = run(bundle, sequence, tmp_path, *words)
    assert capfd.readouterr().out.count("flicker") == 2 * of_a_sequence
    assert (tmp_path / "report/scores.md").read_text().count("flicker") == of_a_sequence
    against = scores["against"]
    if of_a_sequence:
        assert against["difference"]["flicker"] == scores["flicker"] - against["flicker"] != 0
    else:
        assert against["difference"]["flicker"] is None


def test_the_order_of_a_sequence_is_that_of_the_numbers_in_its_names(bundle, tmp_path):
    segmenter, wide = Segmenter.from_bundle(bundle.path), picture(64, 120, seed=3)
    found = []
    for name in ("{:04d}.png", "{}.png"):
        root = tmp_path / name
        for folder in ("images", "masks"):
            (root / "val" / folder).mkdir(parents=True)
        for number in range(8, 12):
            image = np.ascontiguousarray(wide[:, 4 * number - 32 : 4 * number + 64])
            Image.fromarray(image).save(root / "val" / "images" / name.format(number))
            labels = segmenter.segment([image])[0].labels
            Image.fromarray(labels).save(root / "val" / "masks" / name.format(number))
        words = ("--sequence", "True", "--temporal_smoothing", "0.8", "--bootstrap", "0")
        found.append(run(bundle, root, tmp_path, *words))
    assert 0 < found[0]["flicker"] == found[1]["flicker"]
    assert found[0]["miou"] == found[1]["miou"] < 1


def test_smoothing_images_that_are_no_sequence_is_refused(bundle, data, tmp_path, capfd):
    arguments = ["--dataset", "folder", "--data.root", str(data), "--json", str(tmp_path / "scores.json")]
    assert evaluate.main([str(bundle.path), *arguments, "--temporal_smoothing", "0.5"]) == 1
    assert "add --sequence True" in capfd.readouterr().err
    assert not (tmp_path / "scores.json").exists()


def test_two_bundles_are_compared_on_the_same_images(bundle, data, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", network_size=NETWORK_SIZE, geometry="stretch", seed=5)
    scores = run(bundle, data, tmp_path, "--against", str(other.path), "--bootstrap", "50")
    against = scores["against"]
    assert against["miou"] == run(other, data, tmp_path)["miou"]
    assert against["difference"]["miou"] == pytest.approx(scores["miou"] - against["miou"])
    low, high = against["difference"]["miou_interval"]
    assert low <= against["difference"]["miou"] <= high
    assert scores["miou_interval"][0] <= scores["miou"] <= scores["miou_interval"][1]


def test_images_that_a_bundle_was_trained_on_are_counted(tmp_path, capfd):
    for seed in range(8):
        tiny_datasets.save_image(tmp_path / "data/images" / f"{seed}.png", seed)
        tiny_datasets.save_mask(tmp_path / "data/masks" / f"{seed}.png", tiny_datasets.values_of([0, 1], seed))
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["floor", "wall"], "folds": 2, "group": "none"}
    (tmp_path / "recipe.yaml").write_text(tiny_recipe(tmp_path, epochs=1, data=data).model_dump_json())
    forget_accelerator()
    assert train.main([str(tmp_path / "recipe.yaml")]) == 0
    best, alone, output = tmp_path / "run/best", tmp_path / "alone", tmp_path / "scores.json"
    shutil.copytree(best, alone)
    warning = "warning: {} images were trained on by {}, which knows them better than new ones\n"

    def scores(*words: str) -> dict:
        capfd.readouterr()
        assert evaluate.main([str(alone), "--against", str(best), "--json", str(output), *words]) == 0
        return json.loads(output.read_text())

    found = scores()
    assert (found["trained_on"], found["against"]["trained_on"]) == (None, 0), "without its run, nothing tells"
    assert "trained on" not in capfd.readouterr().out
    assert scores("--data.fold", "1")["against"]["trained_on"] == 4
    assert warning.format("4 of 4", best) in capfd.readouterr().out
    assert scores("--split", "all")["against"]["trained_on"] == 4
    assert warning.format("4 of 8", best) in capfd.readouterr().out
    assert calibrate.main([str(best), "--output", str(tmp_path / "calibrated"), "--split", "train"]) == 0
    assert "warning: 4 of 4 images were trained on by" in capfd.readouterr().out
    (tmp_path / "run/origins.json").write_text("{")
    assert scores("--split", "all")["against"]["trained_on"] is None


@pytest.mark.parametrize("words", [(), ("--inference.flip", "True")])
def test_of_two_bundles_one_at_a_time_is_in_memory(bundle, data, tmp_path, monkeypatch, words):
    other = write_tiny_bundle(tmp_path / "other", network_size=NETWORK_SIZE, geometry="stretch", seed=5)
    opened, in_memory, most = [], set(), []

    def opening(one, *rest):
        opened.append(one.path)
        segmenter = open_segmenter(one, *rest)
        runtime, close = segmenter.runtime, segmenter.runtime.close
        in_memory.add(runtime)
        most.append(len(in_memory))
        runtime.close = lambda: (in_memory.discard(runtime), close())
        return segmenter

    monkeypatch.setattr(evaluate, "open_segmenter", opening)
    run(bundle, data, tmp_path, "--against", str(other.path), *words)
    assert opened == [other.path, bundle.path, other.path], "the other one first: what does not run is told at once"
    assert set(most) == {1} and not in_memory


@pytest.mark.parametrize(("classes", "said"), [(None, "there is no such folder"), (3, "classes are not those of")])
def test_a_bundle_that_cannot_be_compared_is_told_at_once(bundle, data, tmp_path, capfd, classes, said):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data/val/images/0.png").write_bytes((data / "val/images/0.png").read_bytes()[:500])
    if classes is not None:
        write_tiny_bundle(tmp_path / "other", num_classes=classes)
    words = ["--dataset", "folder", "--data.root", str(tmp_path / "data"), "--json", str(tmp_path / "scores.json")]
    assert evaluate.main([str(bundle.path), *words, "--against", str(tmp_path / "other")]) == 1
    assert re.search(rf"--against .*({said})", capfd.readouterr().err)


def test_a_calibrated_copy_keeps_the_labels_and_halves_the_error(bundle, data, tmp_path):
    before = run(bundle, data, tmp_path)
    words = ["--dataset", "folder", "--data.root", str(data), "--output", str(tmp_path / "calibrated")]
    assert calibrate.main([str(bundle.path), *words]) == 0
    copy = load_bundle(tmp_path / "calibrated")
    after = run(copy, data, tmp_path)
    assert after["miou"] == pytest.approx(before["miou"], abs=1e-6)
    assert after["ece"] < before["ece"] / 2
    sure = sum(b["confidence"] * b["share"] for b in after["reliability"])
    assert sure == pytest.approx(after["aacc"], abs=0.01)
    assert copy.manifest.calibration.images == 3
    words[-1] = str(tmp_path / "again")
    assert calibrate.main([str(copy.path), *words]) == 0
    once, twice = (load_bundle(tmp_path / name).manifest.calibration for name in ("calibrated", "again"))
    assert twice.temperature == pytest.approx(once.temperature, rel=0.05), "of both together"


def test_a_head_whose_logits_are_not_finite_is_not_calibrated(bundle, data, tmp_path, capfd):
    head = bundle.load_head()
    for parameter in head.parameters():
        parameter.data.sign_().mul_(3e38)  # finite, which its products are not

    def copy_backbone(folder: Path) -> None:
        shutil.copytree(bundle.path / "backbone", folder / "backbone")

    save_bundle(tmp_path / "diverged", bundle.manifest, head.state_dict(), copy_backbone)
    words = ["--dataset", "folder", "--data.root", str(data), "--output", str(tmp_path / "calibrated")]
    assert calibrate.main([str(tmp_path / "diverged"), *words]) == 1
    assert "diverged gives logits that are not finite; train it again" in capfd.readouterr().err


@pytest.mark.parametrize("option", [("--sequence", "True"), ("--boundary_width", "0.1"), ("--inference.flip", "True")])
def test_what_a_calibration_would_ignore_is_refused(bundle, tmp_path, capfd, option):
    assert calibrate.main([str(bundle.path), "--output", str(tmp_path / "calibrated"), *option]) == 2
    assert f"unknown option {option[0]}" in capfd.readouterr().err
    assert calibrate.main(["--help"]) == 0
    assert "--split" in (shown := capfd.readouterr().out) and option[0] not in shown


def changed_copy(bundle: Bundle, folder: Path, change: Callable[[dict], object]) -> Path:
    """A copy of a bundle whose manifest is changed."""
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("command", "recipe", "said"),
    [
        (evaluate, {"data": {"name": "folder", "root": "x", "ignore_values": [255]}}, "data: unknown key 'ignore_valu"),
        (calibrate, {"data": {"name": "folder", "root": "x", "ignore_values": [255]}}, "data: unknown key 'ignore_val"),
        (evaluate, {"data": {"name": "folder"}}, "data: root: Field required"),
        (evaluate, {"inference": {"flips": True}}, "inference: unknown key 'flips' (did you mean 'flip'?)"),
    ],
)
def test_a_recipe_of_another_version_in_a_bundle_is_told_in_one_line(bundle, tmp_path, capfd, command, recipe, said):
    path = changed_copy(bundle, tmp_path / "old", lambda manifest: manifest.update(training={"recipe": recipe}))
    output = ["--output", str(tmp_path / "calibrated")] if command is calibrate else []
    assert command.main([str(path), *output]) == 1
    error = capfd.readouterr().err
    assert said in error and ("give --dataset auto --data.root FOLDER" in error) == ("data" in recipe), error


@pytest.mark.parametrize("names", [["0", "1", "2", "3", "4"], ["floor", "1", "2", "3", "4"]])
def test_names_of_classes_may_be_numbers(bundle, data, tmp_path, names):
    path = changed_copy(bundle, tmp_path / "numbers", lambda manifest: manifest["classes"].update(names=names))
    scores = run(load_bundle(path), data, tmp_path)
    assert list(scores["per_class_iou"]) == names and scores["miou"] == run(bundle, data, tmp_path)["miou"]


def test_views_chosen_on_the_command_line_are_recorded(bundle, data, tmp_path):
    options = "--inference.mode slide --inference.stride 32 64 --inference.scales 1.0 1.5 --inference.flip True"
    scores = run(bundle, data, tmp_path, *options.split())
    assert scores["inference"] == {"mode": "slide", "stride": [32, 64], "scales": [1.0, 1.5], "flip": True}
    assert scores["miou"] != run(bundle, data, tmp_path)["miou"]


def test_a_value_may_follow_an_equals_sign(bundle, data, tmp_path):
    command = ["--dataset=folder", f"--data.root={data}", "--split=val", f"--json={tmp_path / 'scores.json'}"]
    assert evaluate.main([str(bundle.path), *command]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 3


def test_the_test_split_is_evaluated_when_asked_for(bundle, data, tmp_path, capfd):
    for folder in ("images", "masks"):
        shutil.copytree(data / "val" / folder, tmp_path / "data" / "val" / folder)
        (tmp_path / "data" / "test" / folder).mkdir(parents=True)
        shutil.copy(data / "val" / folder / "0.png", tmp_path / "data" / "test" / folder)
    scores = run(bundle, tmp_path / "data", tmp_path, "--split", "test")
    assert (scores["images"], scores["aacc"]) == (1, 1.0)
    assert evaluate.main([str(bundle.path), "--dataset", "folder", "--data.root", str(data), "--split", "test"]) == 1
    assert "the folder has no test split; its splits are: val" in capfd.readouterr().err


def test_of_a_folder_without_splits_all_images_can_be_scored(bundle, data, tmp_path, capfd):
    shutil.copytree(data / "val", tmp_path / "field")
    assert run(bundle, tmp_path / "field", tmp_path)["images"] == 1
    said = capfd.readouterr().out
    assert "1 images: the split val\n" in said
    assert "note: the folder has no validation split: 20% of the images are kept for it" in said
    scores = run(bundle, tmp_path / "field", tmp_path, "--split", "all")
    assert scores["miou"] == run(bundle, data, tmp_path)["miou"]
    said = capfd.readouterr().out
    assert "3 images: all splits\n" in said and "note:" not in said
    assert evaluate.main([str(bundle.path), "--dataset", "scenes", "--split", "all"]) == 1
    assert "data set 'scenes' has no items but those of its splits; choose train or val" in capfd.readouterr().err


@pytest.mark.parametrize("command", [evaluate, calibrate])
def test_the_share_kept_in_training_gives_way_to_another_folders_own_split(bundle, data, tmp_path, command, capfd):
    names = bundle.manifest.classes.names
    own = {"name": "auto", "root": str(tmp_path / "gone"), "classes": names, "val_fraction": 0.4}
    recipe = {"recipe": {"data": own}}
    path = changed_copy(bundle, tmp_path / "trained", lambda manifest: manifest.update(training=recipe))
    option, output = ("--output", tmp_path / "out") if command is calibrate else ("--json", tmp_path / "out.json")
    arguments = [str(path), option, str(output), "--data.root", str(data)]
    assert command.main(arguments) == 0, capfd.readouterr().err
    if command is evaluate:
        assert json.loads(output.read_text())["images"] == 3
    arguments[2] = str(tmp_path / "other")
    assert command.main([*arguments, "--data.val_fraction", "0.5"]) == 1
    assert "has a validation split of its own" in capfd.readouterr().err


@pytest.mark.parametrize("command", [evaluate, calibrate])
@pytest.mark.parametrize(
    ("build", "own"),
    [
        (labelled_folders.build_labelme, {"format": "coco"}),
        (labelled_folders.build_coco, {"format": "folder", "ignore": [255]}),
    ],
)
def test_the_labels_of_another_folder_may_be_of_another_tool(bundle, tmp_path, command, build, own):
    build(tmp_path / "field")
    classes = {name: [9, 9, index] for index, name in enumerate([*labelled_folders.NAMES, "other"])}
    own = {"name": "auto", "root": str(tmp_path / "gone"), "classes": classes, **own}
    recipe = {"recipe": {"data": own}}
    path = changed_copy(bundle, tmp_path / "trained", lambda manifest: manifest.update(training=recipe))
    where = path if command is evaluate else load_bundle(path).manifest
    words = ["--data.root", str(tmp_path / "field")]
    data = command.find_settings(where, None, words).data.open_all()
    truths = [labelled_folders.truth(seed) for _, _, seed in labelled_folders.items()]
    assert len(data) == len(truths)
    assert all(any(np.array_equal(data.mask(i), truth) for truth in truths) for i in range(len(data)))
    with pytest.raises(DatasetError, match="no image with a text file of labels"):
        command.find_settings(where, None, [*words, "--data.format", "yolo"]).data.open_all()


def test_the_report_holds_tables_confusion_matrix_and_examples(bundle, data, tmp_path):
    report = tmp_path / "report"
    scores = run(bundle, data, tmp_path, "--report", str(report))
    assert json.loads((report / "scores.json").read_text()) == scores
    table = (report / "scores.md").read_text()
    assert all(f"| {name} |" in table for name in bundle.manifest.classes.names)
    worst, best = table.split("worst images")[1].split("best images")
    for part, names in ((worst, "210"), (best, "012")):
        positions = [part.index(f"{name}.png") for name in names]
        assert positions == sorted(positions)
    assert "| 0.png | 100.00 % |" in best
    rows = list(csv.reader((report / "confusion.csv").open()))
    counts = np.array([row[1:] for row in rows[1:]], int)
    assert counts.sum() == 3 * 48 * 60
    assert np.trace(counts) / counts.sum() == pytest.approx(scores["aacc"])
    for file in ("confusion.png", "reliability.png", "worst.png", "best.png"):
        with Image.open(report / file) as image:
            assert min(image.size) > 100


def test_a_bar_in_a_name_stays_in_its_column_of_the_report(bundle, data, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "bundle")
    manifest = (copy / "bundle.json").read_text()
    (copy / "bundle.json").write_text(manifest.replace("class_0", "wall|door"))
    for kind in ("images", "masks"):
        (tmp_path / "data/val" / kind).mkdir(parents=True)
        shutil.copy(data / "val" / kind / "0.png", tmp_path / "data/val" / kind / "left|right.png")
    run(load_bundle(copy), tmp_path / "data", tmp_path, "--report", str(tmp_path / "report"))
    lines = (tmp_path / "report/scores.md").read_text().splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines if "|d" in line or "|r" in line] == [8, 3, 3]


@pytest.mark.parametrize("size", [(4, 10_000), (1, 40_000), (10_000, 4)])
def test_examples_of_very_long_images_fit_into_a_picture(size, tmp_path):
    labels = np.zeros(size, np.uint8)
    row = captioned(prediction_row(np.zeros((*size, 3), np.uint8), labels, labels, [(9, 9, 9)]), "long.png")
    write_predictions([row, row], ["floor"], [(9, 9, 9)], tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as picture:
        assert max(picture.size) < 6000


def test_a_full_disk_leaves_no_part_of_a_report(bundle, data, tmp_path, capfd):
    run(bundle, data, tmp_path, "--report", str(tmp_path / "whole"))
    size_of = {file.name: file.stat().st_size for file in (tmp_path / "whole").iterdir()}
    examples = min(size_of.pop("worst.png"), size_of.pop("best.png"))
    assert max(size_of.values()) < examples
    report, scores = tmp_path / "report", tmp_path / "scores.json"
    words = ["--dataset", "folder", "--data.root", str(data), "--report", str(report), "--json", str(scores)]
    with full_disk(examples - 1):
        assert evaluate.main([str(bundle.path), *words]) == 1
    assert f"{report} cannot be written" in capfd.readouterr().err
    assert not list(tmp_path.glob("*report*"))


def test_a_report_folder_in_use_is_refused_before_evaluation(bundle, data, tmp_path, capfd):
    (tmp_path / "precious.txt").write_text("keep")
    arguments = ["--dataset", "folder", "--data.root", str(data), "--json", str(tmp_path / "scores.json")]
    assert evaluate.main([str(bundle.path), *arguments, "--report", str(tmp_path)]) == 1
    assert "--report" in capfd.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_a_report_within_the_data_set_is_refused(bundle, data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "folder", "--data.root", str(data), "--report", str(data / "val/images/new")]
    assert evaluate.main([str(bundle.path), *words]) == 1
    assert f"new lies in {data}, so the next run would read" in capfd.readouterr().err
    assert not (data / "val/images/new").exists()


def test_an_image_without_labelled_pixels_is_no_example(bundle, data, tmp_path):
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / "val" / folder).mkdir(parents=True)
    Image.fromarray(picture(48, 64)).save(root / "val" / "images" / "a.png")
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(root / "val" / "masks" / "a.png")
    scores = run(bundle, root, tmp_path, "--report", str(tmp_path / "report"))
    assert scores["miou"] is scores["boundary_miou"] is None
    assert "a.png" not in (tmp_path / "report" / "scores.md").read_text()


def test_a_recipe_states_how_its_bundle_is_evaluated(tmp_path):
    recipe = tiny_recipe(tmp_path, epochs=1, inference={"mode": "slide", "flip": True})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.model_dump_json())
    forget_accelerator()
    assert train.main([str(path)]) == 0
    at_the_end = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (at_the_end["inference"]["mode"], at_the_end["inference"]["flip"]) == ("slide", True)
    output = tmp_path / "scores.json"
    assert evaluate.main([str(tmp_path / "run" / "best"), "--json", str(output)]) == 0
    assert json.loads(output.read_text())["miou"] == at_the_end["miou"]
    once = ["--inference.mode", "whole", "--inference.flip", "False"]
    assert evaluate.main([str(tmp_path / "run" / "best"), "--json", str(output), *once]) == 0
    recorded = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert json.loads(output.read_text())["miou"] == pytest.approx(recorded["miou"], abs=1e-4)
    smaller = ["--network-size", "32", "32"]  # than the stride between windows of the recipe's size
    assert evaluate.main([str(tmp_path / "run" / "best"), "--json", str(output), *smaller]) == 0


def test_a_resumed_training_is_evaluated_by_its_new_inference(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(tiny_recipe(tmp_path, epochs=1, inference={"mode": "slide"}).model_dump_json())
    for options in ([], ["--resume", "--inference.flip", "True"]):
        forget_accelerator()
        assert train.main([str(path), *options]) == 0
    at_the_end = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (at_the_end["inference"]["mode"], at_the_end["inference"]["flip"]) == ("slide", True)
    output = tmp_path / "scores.json"
    command = [str(tmp_path / "run" / "best"), "--json", str(output), "--inference.flip", "True"]
    assert evaluate.main(command) == 0
    assert json.loads(output.read_text())["miou"] == at_the_end["miou"]
    forget_accelerator()
    assert train.main([str(path), "--resume", "--inference.mode", "whole"]) == 0
    assert not (tmp_path / "run" / "evaluation.json").exists(), "of one view, the history has the scores"
    shutil.copy(output, tmp_path / "run" / "evaluation.json")  # as `training.evaluate --json` may write it there
    forget_accelerator()
    assert train.main([str(path), "--resume", "--inference.mode", "whole"]) == 0
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_a_resumed_training_is_evaluated_where_its_data_lie_now(tmp_path):
    for seed in range(8):
        tiny_datasets.save_image(tmp_path / "data" / "images" / f"{seed}.png", seed)
        tiny_datasets.save_mask(tmp_path / "data" / "masks" / f"{seed}.png", tiny_datasets.values_of([0, 1], seed))
    data = {"name": "folder", "root": str(tmp_path / "data"), "classes": ["floor", "wall"]}
    path, moved = tmp_path / "recipe.yaml", str(tmp_path / "moved")
    path.write_text(tiny_recipe(tmp_path, epochs=1, data=data, inference={"flip": True}).model_dump_json())
    forget_accelerator()
    assert train.main([str(path)]) == 0
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    (tmp_path / "run" / "evaluation.json").unlink()
    (tmp_path / "data").rename(moved)
    forget_accelerator()
    assert train.main([str(path), "--resume", "--data.root", moved]) == 0
    again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (again["miou"], again["data"]["root"]) == (scores["miou"], moved)
