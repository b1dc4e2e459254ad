"""Metrics over a whole data set, against torchmetrics."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from dinov3_seg_ros.support.errors import ImageError
from dinov3_seg_ros.support.metrics import ConfusionMatrix
from training.evaluation.bootstrap import Ratios
from training.evaluation.boundary import boundary_counts

NAMES = ["a", "b", "c", "d"]


def test_metrics_equal_torchmetrics_with_ignored_pixels():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, (6, 20, 30), np.uint8)
    truth[truth == 4] = 255
    prediction = np.where(
        generator.random(truth.shape) < 0.6, np.minimum(truth, 3), generator.integers(0, 4, truth.shape)
    )
    matrix = ConfusionMatrix(4)
    for t, p in zip(truth, prediction.astype(np.uint8), strict=True):
        matrix.update(t, p)
    summary = matrix.summary(NAMES)
    tensors = torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
    iou = MulticlassJaccardIndex(4, average=None, ignore_index=255)(*tensors)
    assert list(summary["per_class_iou"].values()) == pytest.approx(iou.tolist())
    assert summary["miou"] == pytest.approx(iou.mean().item())
    assert summary["macc"] == pytest.approx(MulticlassAccuracy(4, ignore_index=255)(*tensors).item())
    micro = MulticlassAccuracy(4, average="micro", ignore_index=255)(*tensors)
    assert summary["aacc"] == pytest.approx(micro.item())


def test_perfect_predictions_score_one_though_each_image_lacks_classes():
    matrix = ConfusionMatrix(4)
    for label in (0, 1, 2):
        mask = np.full((4, 4), label, np.uint8)
        matrix.update(mask, mask)
    summary = matrix.summary(NAMES)
    assert summary["miou"] == summary["macc"] == summary["aacc"] == 1.0
    assert summary["per_class_iou"]["d"] is None


def test_an_unlabelled_prediction_counts_against_the_true_class():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 255, 1, 1]], np.uint8))
    assert matrix.summary(["a", "b"])["per_class_iou"] == {"a": 0.5, "b": 1.0}


def test_a_set_without_valid_pixels_has_no_score():
    matrix = ConfusionMatrix(2)
    matrix.update(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert matrix.summary(["a", "b"])["miou"] is None


@pytest.mark.parametrize("count", [ConfusionMatrix(2).update, partial(boundary_counts, num_classes=2, width=0.02)])
def test_masks_of_different_size_are_refused(count):
    with pytest.raises(ImageError, match="one size"):
        count(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


def blobs(seed: int, classes: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Labels in smooth regions."""
    noise = np.random.default_rng(seed).standard_normal((classes, *size)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(plane, (0, 0), 5) for plane in noise]).argmax(0).astype(np.uint8)


def band(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of one class's mask that erosion by ``width`` pixels takes away, the outside being background."""
    kernel = np.ones((3, 3), np.uint8)
    framed = np.pad(mask.astype(np.uint8), 1)
    return mask & ~cv2.erode(framed, kernel, iterations=width)[1:-1, 1:-1].astype(bool)


def boundary_iou(classes: int, *pairs: tuple[np.ndarray, np.ndarray], width: float = 0.02) -> Ratios:
    """The boundary IoU of true and predicted masks, summed as an evaluation sums it."""
    ratios = Ratios(classes)
    for truth, prediction in pairs:
        ratios.add(*boundary_counts(truth, prediction, classes, width))
    return ratios


@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.2])
def test_boundary_iou_is_that_of_each_class_eroded_alone(classes, share):
    pairs = []
    intersection, union = np.zeros(classes), np.zeros(classes)
    for seed in range(2):
        truth, prediction = (blobs(seed + shift, 4).astype(np.uint16) + classes - 4 for shift in (0, 10))
        prediction[10:30] = truth[10:30]
        pairs.append((truth, prediction))
        for index in range(classes):
            true, predicted = (band(labels == index, round(100 * share)) for labels in (truth, prediction))
            intersection[index] += (true & predicted).sum()
            union[index] += (true | predicted).sum()
    with np.errstate(invalid="ignore"):
        expected = intersection / union
    scores = boundary_iou(classes, *pairs, width=share)
    np.testing.assert_allclose(scores.per_class(), expected)
    assert scores.mean() == pytest.approx(np.nanmean(expected))


def test_ignored_pixels_and_absent_classes_do_not_touch_the_boundary_iou():
    truth = blobs(0, 3)
    truth[20:40, 30:50] = 255
    scores = boundary_iou(4, (truth, blobs(1, 3))).per_class()
    other = boundary_iou(4, (truth, np.where(truth == 255, np.uint8(2), blobs(1, 3)))).per_class()
    np.testing.assert_array_equal(scores, other)
    assert np.isnan(scores[3])
    assert boundary_iou(4, (truth, np.where(truth == 255, np.uint8(1), truth))).mean() == 1.0


def test_a_coarse_edge_costs_more_boundary_iou_than_iou():
    truth = np.zeros((100, 100), np.uint8)
    truth[20:80, 20:80] = 1
    coarse = cv2.morphologyEx(truth, cv2.MORPH_ERODE, np.ones((5, 5), np.uint8))
    matrix = ConfusionMatrix(2)
    matrix.update(truth, coarse)
    assert matrix.iou()[1] > 0.85
    assert boundary_iou(2, (truth, coarse)).per_class()[1] < 0.3


def test_an_unlabelled_prediction_has_no_boundary_of_its_own():
    scores = boundary_iou(2, (np.zeros((9, 9), np.uint8), np.full((9, 9), 255, np.uint8))).per_class()
    assert scores[0] == 0 and np.isnan(scores[1])
