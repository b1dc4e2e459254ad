"""All scores of an evaluation, accumulated image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.support.metrics import ConfusionMatrix, by_name
from training.evaluation.bootstrap import Intervals, Ratios, draw_images, intervals
from training.evaluation.boundary import boundary_counts
from training.evaluation.regions import near_boundary, thin
from training.evaluation.reliability import Reliability

#: Widths of the bands around true boundaries, pixels.
BOUNDARY_PIXELS = (1, 3, 5)
# The scores that tables show, and their titles.
_TITLES = {
    "miou": "mIoU",
    "macc": "mAcc",
    "aacc": "aAcc",
    "boundary_miou": "boundary mIoU",
    "boundary_miou_3px": "mIoU within 3 px of boundaries",
    "thin_recall": "recall of thin objects",
    "ece": "ECE",
    "flicker": "flicker",
}


class Scores:
    """Scores of a model on a data set.

    Args:
        names: of the classes.
        boundary_width: width of the bands that boundary IoU compares, as a share of the image's diagonal.
        thin_width: objects narrower than this share of the image's diagonal are thin.

    Attributes:
        matrix: counts of all pixels.
    """

    def __init__(self, names: Sequence[str], boundary_width: float, thin_width: float) -> None:
        self._names, self._boundary_width, self._thin_width = list(names), boundary_width, thin_width
        count = len(self._names)
        self.matrix, self._reliability = ConfusionMatrix(count), Reliability(count)
        self._images = 0
        # Means over classes by their names in the summary; the names of the classes' own scores follow from them.
        self._ratios = {name: Ratios(count) for name in ("miou", "boundary_miou", "thin_recall", *_bands().values())}

    def update(self, truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray) -> None:
        """Count one image.

        Args:
            truth, prediction: (H, W) class ids.
            confidence: (H, W) uint8, round(255 * probability).

        Raises:
            ImageError: the arrays differ in size.
        """
        count = len(self._names)
        self._images += 1
        self.matrix.update(truth, prediction)
        self._reliability.update(truth, prediction, confidence)
        self._ratios["miou"].add_iou(truth, prediction, count)
        self._ratios["boundary_miou"].add(*boundary_counts(truth, prediction, count, self._boundary_width))
        for pixels, name in _bands().items():
            near = near_boundary(truth, count, pixels)
            self._ratios[name].add_iou(truth[near], prediction[near], count)
        radius = max(round(self._thin_width * float(np.hypot(*truth.shape)) / 2), 1)
        narrow = truth[thin_pixels := thin(truth, count, radius)]
        found = narrow[narrow == prediction[thin_pixels]]
        self._ratios["thin_recall"].add(*(np.bincount(ids, minlength=count)[:count] for ids in (found, narrow)))

    def summary(self, draws: int = 0) -> dict[str, Any]:
        """All scores by name, for JSON; fractions 0..1, None where undefined.

        Args:
            draws: of the bootstrap. Above 0, ``*_interval`` stands beside each score that is summed over images.
        """
        summary: dict[str, Any] = self.matrix.summary(self._names)
        for name, ratios in self._ratios.items():
            summary[name], summary[per_class_name(name)] = ratios.mean(), by_name(self._names, ratios.per_class())
        if draws and self._images:
            for name, scores in self.draws(draws).items():
                summary |= self._intervals_by_name(name, intervals(scores))
        return {**summary, **self._reliability.summary()}

    def draws(self, count: int) -> dict[str, NDArray[np.float64]]:
        """Scores of random draws of the images, by name; see `bootstrap.Ratios.draws`."""
        weights = draw_images(self._images, count)
        return {name: ratios.draws(weights) for name, ratios in self._ratios.items()}

    def differences(self, other: Scores, draws: int) -> dict[str, Any]:
        """These scores minus those of another model on the same images in the same order.

        Returns:
            By name the difference, and as ``*_interval`` its interval, where ``draws`` is above 0.
        """
        found: dict[str, Any] = {}
        pairs: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        if draws and self._images:
            theirs = other.draws(draws)
            pairs = {name: (scores, theirs[name]) for name, scores in self.draws(draws).items()}
        for name, ratios in self._ratios.items():
            one, two = ratios.mean(), other._ratios[name].mean()
            found[name] = None if one is None or two is None else one - two
            per_class = ratios.per_class() - other._ratios[name].per_class()
            found[per_class_name(name)] = by_name(self._names, per_class)
            if name in pairs:
                found |= self._intervals_by_name(name, intervals(pairs[name][0] - pairs[name][1]))
        return found

    def _intervals_by_name(self, name: str, found: Intervals) -> dict[str, Any]:
        ends = [None if np.isnan(end[0]) else end.tolist() for end in found.per_class.T]
        return {
            f"{name}_interval": None if np.isnan(found.mean[0]) else found.mean.tolist(),
            f"{per_class_name(name)}_interval": dict(zip(self._names, ends, strict=True)),
        }


def per_class_name(name: str) -> str:
    """The name of the scores of the classes whose mean has a name: ``per_class_iou`` of ``miou``."""
    return f"per_class_{name.replace('miou', 'iou')}"


def titles(scores: Mapping[str, Any]) -> dict[str, str]:
    """The names and titles of those scores that tables show; of flicker only where it was measured."""
    measured = scores.get("flicker") is not None
    return {name: title for name, title in _TITLES.items() if name in scores and (measured or name != "flicker")}


def per_class_title(name: str) -> str:
    """The title of the scores of the classes, as for `per_class_name`."""
    return _TITLES[name].replace("mIoU", "IoU")


def _bands() -> dict[int, str]:
    return {pixels: f"boundary_miou_{pixels}px" for pixels in BOUNDARY_PIXELS}
