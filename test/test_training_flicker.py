"""The measure of how much labels flicker."""

from __future__ import annotations

import numpy as np
import pytest
from test_smoothing import SIZE, view

from training.evaluation.flicker import Flicker


def noise(share: float, seed: int) -> np.ndarray:
    """Labels of two classes, of which a share of the pixels is turned round."""
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 80:] = 1
    turned = np.random.default_rng(seed).random(SIZE) < share
    return np.where(turned, 1 - mask, mask)


def test_without_two_frames_to_compare_there_is_no_flicker():
    flicker = Flicker()
    assert flicker.share() is None
    flicker.update(view(0), noise(0, 0))
    flicker.update(view(0, seed=1), noise(0, 0))  # a cut
    assert flicker.share() is None


@pytest.mark.parametrize(("shift", "enlarged"), [(0, 1), (8, 1), (8, 8)])
def test_labels_that_move_with_the_picture_do_not_flicker(shift, enlarged):
    flicker, wide = Flicker(), np.tile(np.arange(10, dtype=np.uint8).repeat(32), (SIZE[0], 1))
    for frame in range(3):
        start = shift * frame
        pictures = view(start), wide[:, start : start + SIZE[1]]
        image, labels = (np.repeat(np.repeat(picture, enlarged, 0), enlarged, 1) for picture in pictures)
        flicker.update(image, labels)
    assert flicker.share() < 0.01


def test_labels_that_change_on_a_still_picture_flicker():
    flicker = Flicker()
    for frame in range(4):
        flicker.update(view(0), noise(0.1, frame))
    assert flicker.share() == pytest.approx(2 * 0.1 * 0.9, abs=0.01)


def test_pixels_whose_truth_changes_or_is_unknown_do_not_count():
    flicker, truth = Flicker(), np.zeros(SIZE, np.uint8)
    changed, unknown = truth.copy(), np.full(SIZE, 255, np.uint8)
    changed[:60] = 1
    flicker.update(view(0), truth, truth)
    flicker.update(view(0), changed, changed)
    assert flicker.share() == 0
    flicker.update(view(0), truth, unknown)
    assert flicker.share() == 0
