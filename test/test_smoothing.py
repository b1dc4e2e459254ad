"""Logits smoothed over time, and the motion along which they are carried."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from dinov3_seg_ros.decode import upsample_argmax
from dinov3_seg_ros.frames.motion import MotionEstimator
from dinov3_seg_ros.frames.smoothing import LONGEST_GAP_S, Logits, TemporalSmoother

SIZE = (120, 160)
WHOLE = (0.0, 0.0, 15.0, 20.0)


def texture(seed: int = 0) -> np.ndarray:
    """A picture larger than a frame, with structure of some pixels' size everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80), np.uint8)
    grey = cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)
    return np.repeat(grey[..., None], 3, axis=2)


def view(shift: int, seed: int = 0) -> np.ndarray:
    """A frame of a camera that has moved by so many pixels to the right."""
    return np.ascontiguousarray(texture(seed)[: SIZE[0], shift : shift + SIZE[1]])


def logits_of(values: np.ndarray, window=WHOLE) -> dict[str, Logits]:
    return {"head": Logits(values, window)}


def random_logits(seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=(1, 4, 15, 20))).astype(np.float32)


def labels(found: dict[str, Logits]) -> np.ndarray:
    return np.asarray(upsample_argmax(found["head"].values, SIZE, found["head"].window))[0]


def test_the_flow_leads_back_to_where_the_content_was():
    estimator = MotionEstimator()
    assert estimator.follow(view(0)) is None
    motion = estimator.follow(view(6))
    inner = motion.flow[20:-20, 20:-20]
    assert np.abs(np.median(inner, axis=(0, 1)) - (6, 0)).max() < 0.3
    assert motion.agreement[20:-20, 20:-20].mean() > 0.9
    assert not motion.agreement[:, -3:].any(), "what has just come into view agrees with nothing"
    assert not motion.is_cut


def test_a_pole_moves_by_itself_and_not_with_the_wall_behind_it():
    width, shift = 12, 3
    frames = [view(0) for _ in range(2)]
    for frame, left in zip(frames, (70, 70 + shift), strict=True):
        frame[:, left : left + width] = texture(seed=1)[: SIZE[0], :width]
    estimator = MotionEstimator()
    estimator.follow(frames[0])
    motion = estimator.follow(frames[1])
    middle = 70 + shift + width // 2
    assert np.median(motion.flow[20:-20, middle, 0]) == pytest.approx(-shift, abs=0.75)
    assert np.abs(np.median(motion.flow[20:-20, 20, 0])) < 0.3


def test_another_scene_is_a_cut():
    estimator = MotionEstimator()
    estimator.follow(view(0, seed=0))
    assert estimator.follow(view(0, seed=1)).is_cut


def test_a_first_frame_is_returned_as_it_is():
    given = logits_of(random_logits(0))
    assert TemporalSmoother(0.7).smooth(view(0), 0.0, given) == given


@pytest.mark.parametrize(
    "seconds_of",
    [
        pytest.param(lambda frame: frame / 10, id="good stamps"),
        pytest.param(lambda frame: frame // 2 / 10, id="each stamp twice"),
        pytest.param(lambda frame: 5.0, id="one stamp"),
    ],
)
def test_undecided_pixels_of_a_still_picture_keep_their_labels(seconds_of):
    rng = np.random.default_rng(5)
    truth = random_logits(0)
    smoother, single, smoothed = TemporalSmoother(0.7), [], []
    for frame in range(12):
        noisy = truth + 0.5 * rng.normal(size=truth.shape).astype(np.float32)
        single.append(labels(logits_of(noisy)))
        smoothed.append(labels(smoother.smooth(view(0), seconds_of(frame), logits_of(noisy))))

    def changes(masks):
        return np.mean([(one != two).mean() for one, two in itertools.pairwise(masks[4:])])

    right = labels(logits_of(truth))
    assert changes(smoothed) < 0.5 * changes(single)
    assert (smoothed[-1] == right).mean() > (single[-1] == right).mean()


def test_logits_move_with_the_picture():
    smoother = TemporalSmoother(0.9)
    first = np.zeros((1, 2, 15, 20), np.float32)
    first[0, 1, :, 10] = 8.0  # a column of class 1, from pixel 80 on
    smoother.smooth(view(0), 0.0, logits_of(first))
    found = smoother.smooth(view(6), 0.1, logits_of(np.zeros_like(first)))
    columns = np.flatnonzero(labels(found)[60])
    assert abs(columns.mean() - (84 - 6)) < 1.5


def test_a_window_with_padding_moves_logits_by_the_same_pixels():
    padded, smoother = (2.0, 3.0, 10.0, 14.0), TemporalSmoother(0.9)
    first = np.zeros((1, 2, 15, 20), np.float32)
    first[0, 1, :, 10] = 8.0
    before = labels(smoother.smooth(view(0), 0.0, logits_of(first, padded)))
    found = labels(smoother.smooth(view(6), 0.1, logits_of(np.zeros_like(first), padded)))
    moved = np.flatnonzero(before[60]).mean() - np.flatnonzero(found[60]).mean()
    assert abs(moved - 6) < 1.5


@pytest.mark.parametrize(
    ("image", "seconds", "window"),
    [
        pytest.param(view(0), 0.1 + LONGEST_GAP_S + 0.01, WHOLE, id="a gap in the stamps"),
        pytest.param(view(0), 0.05, WHOLE, id="a step back in time"),
        pytest.param(view(0, seed=1), 0.2, WHOLE, id="a cut"),
        pytest.param(view(0)[:100], 0.2, WHOLE, id="another size of the frame"),
        pytest.param(cv2.resize(view(0), (320, 240)), 0.2, WHOLE, id="a larger frame of the same shape"),
        pytest.param(view(0), 0.2, (0.0, 0.0, 10.0, 20.0), id="another window"),
    ],
)
def test_nothing_is_carried_over(image, seconds, window):
    smoother = TemporalSmoother(0.7)
    for frame in range(2):
        smoother.smooth(view(0), frame / 10, logits_of(random_logits(frame)))
    given = logits_of(random_logits(7), window)
    found = smoother.smooth(image, seconds, given)
    assert (labels(found) == labels(given)).all()


def test_frames_that_come_after_a_gap_are_counted_until_one_comes_in_time():
    smoother = TemporalSmoother(0.7)
    counts = []
    for seconds in (0.0, 0.6, 1.2, 1.7, 2.3):
        smoother.smooth(view(0), seconds, logits_of(random_logits(0)))
        counts.append(smoother.gaps)
    assert counts == [1, 2, 3, 0, 1]


def test_the_frame_before_counts_by_the_square_of_how_well_the_pictures_agree():
    before, after = view(0) // 2, view(0) // 2 + 15  # of 30, at which they agree by exp(-1)
    smoother = TemporalSmoother(0.8)
    smoother.smooth(before, 0.0, logits_of(np.ones((1, 2, 15, 20), np.float32)))
    found = smoother.smooth(after, 0.1, logits_of(np.zeros((1, 2, 15, 20), np.float32)))
    share = np.median(found["head"].values)
    assert share == pytest.approx(0.8 * np.exp(-2 * 0.5**2), abs=0.05)


def test_after_a_cut_the_new_scene_is_smoothed():
    smoother = TemporalSmoother(0.7)
    smoother.smooth(view(0), 0.0, logits_of(random_logits(0)))
    smoother.smooth(view(0, seed=1), 0.1, logits_of(random_logits(1)))
    found = smoother.smooth(view(0, seed=1), 0.2, logits_of(random_logits(2)))
    np.testing.assert_array_less(np.abs(found["head"].values).mean(), np.abs(random_logits(2)).mean())


def test_a_head_that_was_off_for_a_frame_starts_anew():
    smoother = TemporalSmoother(0.7)
    smoother.smooth(view(0), 0.0, logits_of(random_logits(0)))
    smoother.smooth(view(0), 0.1, {})
    given = logits_of(random_logits(1))
    found = smoother.smooth(view(0), 0.2, given)
    assert (labels(found) == labels(given)).all()


def test_frames_too_small_for_motion_are_returned_as_they_are():
    smoother = TemporalSmoother(0.7)
    for frame in range(3):
        given = logits_of(random_logits(frame))
        assert smoother.smooth(view(0)[:20, :20], frame / 10, given) == given


def test_logits_given_are_not_changed():
    smoother = TemporalSmoother(0.7)
    for frame in range(3):
        given = random_logits(frame)
        smoother.smooth(view(0), frame / 10, logits_of(given))
        np.testing.assert_array_equal(given, random_logits(frame))


def test_many_classes_are_kept_at_the_resolution_of_the_network():
    smoother = TemporalSmoother(0.7)
    many = np.zeros((1, 134, 90, 120), np.float32)
    for frame in range(2):
        found = smoother.smooth(view(0), frame / 10, logits_of(many, (0.0, 0.0, 90.0, 120.0)))
    assert found["head"].values.shape == many.shape
