"""Scores near boundaries, of thin objects, of confidence; their intervals; the fitted temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.evaluation.bootstrap import Ratios, draw_images, intervals
from training.evaluation.regions import near_boundary, thin
from training.evaluation.reliability import Reliability
from training.evaluation.scores import Scores
from training.evaluation.temperature import MOST_PIXELS, PixelSample, fit_temperature

NAMES = ["a", "b", "c"]
IGNORED = 255


def halves(height=20, width=30, column=15):
    truth = np.zeros((height, width), np.uint8)
    truth[:, column:] = 1
    return truth


def sure(truth, level=255):
    return np.full(truth.shape, level, np.uint8)


class TestRegions:
    @pytest.mark.parametrize("pixels", [1, 3, 5])
    def test_a_band_has_its_width_on_each_side(self, pixels):
        near = near_boundary(halves(), 3, pixels)
        assert np.flatnonzero(near.all(axis=0)).tolist() == list(range(15 - pixels, 15 + pixels))
        assert np.array_equal(near.any(axis=0), near.all(axis=0))

    def test_ignored_pixels_make_no_boundary_and_are_in_no_band(self):
        truth = np.full((20, 30), 2, np.uint8)
        truth[:, 10:14] = IGNORED
        assert not near_boundary(truth, 3, 3).any()
        truth[:, 14:] = 1
        near = near_boundary(truth, 3, 5)
        assert near[:, 9].all() and near[:, 14].all() and not near[:, 10:14].any()

    def test_only_what_no_square_covers_is_thin(self):
        truth = np.zeros((40, 40), np.uint8)
        truth[:, 10:14] = 1
        truth[:, 24:31] = 2
        found = thin(truth, 3, 3)
        assert found[:, 10:14].all()
        assert found.sum() == 4 * 40

    def test_what_the_border_of_the_image_cuts_off_is_not_thin(self):
        truth = np.zeros((40, 40), np.uint8)
        truth[:, :2], truth[-3:] = 1, 2
        assert not thin(truth, 3, 3).any()
        truth[:, 20] = 1  # a pole that the border ends
        assert np.array_equal(np.argwhere(thin(truth, 3, 3).any(axis=0)), [[20]])
        assert thin(truth, 3, 3)[:, 20].all()

    def test_ignored_pixels_beside_an_object_do_not_make_it_thin(self):
        truth = np.zeros((40, 40), np.uint8)
        truth[:, 3:37] = IGNORED
        assert not thin(truth, 3, 3).any()


class TestScores:
    def test_the_boundary_score_is_the_miou_of_the_band(self):
        truth = halves()
        prediction = truth.copy()
        prediction[:, 15] = 0  # a column of the band
        prediction[:, 29] = 0  # a column far away
        scores = Scores(NAMES, 0.02, 0.01)
        scores.update(truth, prediction, sure(truth))
        summary = scores.summary()
        assert summary["boundary_miou_3px"] == pytest.approx((3 / 4 + 2 / 3) / 2)
        assert summary["per_class_boundary_iou_3px"] == {"a": 3 / 4, "b": pytest.approx(2 / 3), "c": None}
        assert summary["boundary_miou_1px"] == pytest.approx((1 / 2 + 0) / 2)
        assert summary["miou"] == pytest.approx((15 / 17 + 13 / 15) / 2)

    def test_recall_of_thin_objects_counts_their_pixels_alone(self):
        truth = np.zeros((60, 80), np.uint8)
        truth[:, 40] = 1
        prediction = np.zeros_like(truth)
        prediction[:15, 40] = 1
        scores = Scores(NAMES, 0.02, 0.02)
        scores.update(truth, prediction, sure(truth))
        assert scores.summary()["per_class_thin_recall"] == {"a": None, "b": 0.25, "c": None}

    def test_equal_models_differ_by_nothing(self):
        models = [Scores(NAMES, 0.02, 0.01) for _ in range(2)]
        for seed in range(5):
            truth, prediction = np.random.default_rng(seed).integers(0, 3, (2, 16, 16), np.uint8)
            for scores in models:
                scores.update(truth, prediction, sure(truth))
        found = models[0].differences(models[1], 100)
        assert found["miou"] == 0 and found["miou_interval"] == [0, 0]

    def test_a_difference_on_every_image_has_an_interval_above_zero(self):
        better, worse = (Scores(NAMES, 0.02, 0.01) for _ in range(2))
        random = np.random.default_rng(0)
        for _ in range(12):
            truth = halves(column=int(random.integers(8, 22)))
            spoilt = truth.copy()
            spoilt[: random.integers(2, 8)] = 2
            better.update(truth, truth, sure(truth))
            worse.update(truth, spoilt, sure(truth))
        found = better.differences(worse, 200)
        low, high = found["miou_interval"]
        assert 0 < low < found["miou"] < high
        for name in ("a", "b"):
            low, high = found["per_class_iou_interval"][name]
            assert 0 < low < found["per_class_iou"][name] < high
        assert found["per_class_iou"]["c"] is found["per_class_iou_interval"]["c"] is None  # of one model alone

    def test_without_images_nothing_is_defined(self):
        summary = Scores(NAMES, 0.02, 0.01).summary(100)
        assert summary["miou"] is summary["ece"] is summary["boundary_miou_3px"] is None


class TestBootstrap:
    def test_the_interval_is_that_of_the_mean_of_independent_images(self):
        ratios, random = Ratios(1), np.random.default_rng(0)
        shares = random.integers(30, 71, 200)
        for share in shares:
            ratios.add(np.array([share]), np.array([100]))
        low, high = intervals(ratios.draws(draw_images(200, 2000))).mean
        spread = 1.96 * shares.std() / 100 / np.sqrt(200)
        assert low == pytest.approx(ratios.mean() - spread, abs=0.0015)
        assert high == pytest.approx(ratios.mean() + spread, abs=0.0015)


class TestReliability:
    def test_the_error_is_the_distance_of_confidence_and_accuracy(self):
        truth = np.zeros((10, 100), np.uint8)
        prediction = truth.copy()
        prediction[:, :40] = 1
        reliability = Reliability(3)
        reliability.update(truth, prediction, sure(truth, 204))  # 0.8 sure, 0.6 right
        for _ in range(3):
            reliability.update(truth, truth, sure(truth))
        assert reliability.error() == pytest.approx(0.2 / 4)
        points = [(point["confidence"], point["accuracy"], point["share"]) for point in reliability.diagram()]
        assert points == [pytest.approx((0.8, 0.6, 1 / 4)), pytest.approx((1.0, 1.0, 3 / 4))]

    def test_the_most_confident_pixels_are_kept_first(self):
        truth = halves(10, 100, 50)
        prediction, confidence = truth.copy(), sure(truth, 250)
        prediction[:, ::10] = 2
        confidence[:, ::10] = 90
        truth[0] = IGNORED
        reliability = Reliability(3)
        reliability.update(truth, prediction, confidence)
        points = {round(point["coverage"], 2): point for point in reliability.coverage()}
        assert points[0.9]["miou"] == 1.0 and points[0.9]["threshold"] == pytest.approx(250 / 255)
        assert points[1.0]["miou"] == pytest.approx((0.9 + 0.9 + 0) / 3)

    def test_an_unlabelled_prediction_counts_as_wrong(self):
        truth, reliability = np.zeros((2, 2), np.uint8), Reliability(3)
        reliability.update(truth, np.array([[0, 0], [0, IGNORED]], np.uint8), sure(truth))
        assert reliability.error() == 0.25 and reliability.coverage()[0]["miou"] == 0.75


class TestTemperature:
    def test_of_many_images_each_gives_few_pixels(self):
        pixels = PixelSample(MOST_PIXELS // 10)
        pixels.add(torch.zeros(1, 3, 4, 4), (0.0, 0.0, 4.0, 4.0), np.zeros((16, 16), np.uint8), 3, 0)
        logits, truth, weights = pixels.tensors()
        assert len(logits) == len(truth) == 10
        assert weights.sum() == 16 * 16

    def test_it_finds_what_the_logits_were_multiplied_by(self):
        torch.manual_seed(0)
        logits = 3 * torch.randn(50_000, 5)
        truth = torch.distributions.Categorical(logits=logits).sample()
        pixels = PixelSample(1)
        grid = (2.5 * logits).T.reshape(1, 5, 200, 250)
        pixels.add(grid, (0.0, 0.0, 200.0, 250.0), truth.numpy().astype(np.uint8).reshape(200, 250), 5, 0)
        fitted = fit_temperature(pixels)
        assert fitted["temperature"] == pytest.approx(2.5, rel=0.03)
        assert fitted["ece"] < 0.02 < fitted["ece_before"]

    def test_errors_that_no_temperature_explains_leave_the_others_calibrated(self):
        torch.manual_seed(0)
        logits = 3 * torch.randn(40_000, 5)
        truth = torch.distributions.Categorical(logits=logits).sample()
        truth[:400] = logits[:400].argmin(1)  # wrong labels
        pixels = PixelSample(1)
        window = (0.0, 0.0, 200.0, 200.0)
        pixels.add(logits.T.reshape(1, 5, 200, 200), window, truth.numpy().astype(np.uint8).reshape(200, 200), 5, 0)
        fitted = fit_temperature(pixels)
        assert fitted["temperature"] == pytest.approx(1.0, abs=0.1)
        assert fitted["ece"] < 0.01

    @pytest.mark.parametrize(("top", "left"), [(0, 0), (1, 2)])
    def test_sampled_logits_are_those_of_the_plain_upsampling(self, top, left):
        torch.manual_seed(0)
        logits = torch.randn(1, 3, 4 + 2 * top, 6 + 2 * left)
        truth = np.random.default_rng(0).integers(0, 3, (16, 24)).astype(np.uint8)
        truth[:3] = IGNORED
        sample = PixelSample(1)
        sample.add(logits, (float(top), float(left), 4.0, 6.0), truth, 3, 0)
        found, classes, _ = sample.tensors()
        canvas = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)[0]
        full = canvas[:, 4 * top :, 4 * left :][:, 3:16, :24].flatten(1).T
        assert len(found) == 13 * 24
        torch.testing.assert_close(found.sum(0), full.sum(0), atol=1e-4, rtol=1e-4)
        assert torch.equal(classes.sort().values, torch.from_numpy(truth[3:].ravel()).long().sort().values)

    def test_an_image_counts_by_its_labelled_pixels(self):
        """One image is labelled whole and mostly right; of nine a few pixels are labelled, half of them wrongly."""
        rng, pixels, right_pixels, all_pixels = np.random.default_rng(0), PixelSample(10), 0, 0
        logits = torch.stack([torch.full((60, 80), 2.0), torch.zeros(60, 80)])[None]
        for index, (count, right) in enumerate([(60 * 80, 0.95), *[(40, 0.5)] * 9]):
            truth = np.full(60 * 80, IGNORED, np.uint8)
            truth[:count] = rng.random(count) > right
            pixels.add(logits, (0.0, 0.0, 60.0, 80.0), truth.reshape(60, 80), 2, index)
            right_pixels, all_pixels = right_pixels + int((truth == 0).sum()), all_pixels + count
        fitted = fit_temperature(pixels)
        confidence = float(torch.tensor([2.0 / fitted["temperature"], 0.0]).softmax(0)[0])
        assert confidence == pytest.approx(right_pixels / all_pixels, abs=0.001)

    def test_pixels_that_are_all_right_leave_the_confidence_as_it_is(self):
        pixels = PixelSample(1)
        logits = torch.stack([torch.full((20, 20), 0.5), torch.zeros(20, 20)])[None]
        pixels.add(logits, (0.0, 0.0, 20.0, 20.0), np.zeros((20, 20), np.uint8), 2, 0)
        assert fit_temperature(pixels)["temperature"] == 1.0

    def test_without_labelled_pixels_there_is_none(self):
        assert fit_temperature(PixelSample(1)) is None
