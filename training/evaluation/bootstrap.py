"""Scores with intervals: how much they would differ on other images of the same kind.

Images are drawn with replacement, as often as there are images, and the score is computed anew for each draw.
B. Efron, R. Tibshirani: An Introduction to the Bootstrap, 1993.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.support.metrics import mean_of_defined, ratio

#: Share of the draws that lie within an interval.
LEVEL = 0.95


class Intervals(NamedTuple):
    """Ends of the intervals of a score.

    Attributes:
        mean: (2,) of the mean over classes.
        per_class: (2, C).
    """

    mean: NDArray[np.float64]
    per_class: NDArray[np.float64]


class Ratios:
    """A ratio of counts for each class, such as IoU, that can be summed over any choice of images.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        self._parts: list[NDArray[np.int64]] = []
        self._wholes: list[NDArray[np.int64]] = []
        self._none = np.zeros((0, num_classes), np.int64)

    def add(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> None:
        """Add the counts of one image; both (num_classes,)."""
        self._parts.append(part)
        self._wholes.append(whole)

    def add_iou(self, truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> None:
        """Add the intersections and unions of one image, or of any selection of its pixels.

        Args:
            truth, prediction: unsigned integers of one shape. Pixels with a greater true value are ignored.
            num_classes: number of classes.
        """
        labelled = truth < num_classes
        truth, prediction = truth[labelled], np.minimum(prediction[labelled], num_classes)
        true, predicted, correct = (
            np.bincount(ids.ravel(), minlength=num_classes + 1)[:num_classes]
            for ids in (truth, prediction, truth[truth == prediction])
        )
        self.add(correct, true + predicted - correct)

    def per_class(self) -> NDArray[np.float64]:
        """(num_classes,), 0..1, over all images; NaN where a class has no pixel."""
        parts, wholes = (np.sum([self._none.sum(0), *counts], axis=0) for counts in (self._parts, self._wholes))
        return ratio(parts, wholes)

    def mean(self) -> float | None:
        """Mean over the classes that have pixels; None where none has."""
        return mean_of_defined(self.per_class())

    def draws(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The score of each draw: of each class, and last of their mean.

        Args:
            weights: from `draw_images`.

        Returns:
            (draws, num_classes + 1); NaN where a class has no pixel in a draw.
        """
        parts, wholes = (
            weights @ np.concatenate([self._none, np.reshape(counts, (len(counts), self._none.shape[1]))])
            for counts in (self._parts, self._wholes)
        )
        scores = ratio(parts, wholes)
        defined = ~np.isnan(scores)
        means = np.full(len(scores), np.nan)
        np.divide(np.nansum(scores, axis=1), defined.sum(axis=1), out=means, where=defined.any(axis=1))
        return np.column_stack([scores, means])


def draw_images(images: int, draws: int) -> NDArray[np.float64]:
    """How often each draw takes each image, (draws, images); the same for the same numbers, so that scores pair."""
    random = np.random.default_rng(images)
    return random.multinomial(images, np.full(images, 1 / max(images, 1)), size=draws).astype(np.float64)


def intervals(scores: NDArray[np.float64]) -> Intervals:
    """The percentile intervals of the scores of `Ratios.draws`, or of their differences between two models."""
    ends = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    found = np.full((2, scores.shape[1]), np.nan)
    defined = ~np.isnan(scores).all(axis=0)
    if defined.any():
        found[:, defined] = np.nanpercentile(scores[:, defined], ends, axis=0)
    return Intervals(found[:, -1], found[:, :-1])
