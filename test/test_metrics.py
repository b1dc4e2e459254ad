"""Metrics over a whole data set, against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from dinov3_seg_ros.errors import ImageError
from dinov3_seg_ros.metrics import ConfusionMatrix

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


def test_masks_of_different_size_are_refused():
    with pytest.raises(ImageError, match="one size"):
        ConfusionMatrix(2).update(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
