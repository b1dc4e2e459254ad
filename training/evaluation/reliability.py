"""Whether confidence means what it says: calibration error, reliability diagram, mIoU against coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov3_seg_ros.support.metrics import mean_of_defined, ratio

_LEVELS = 256  # confidence is uint8
#: Of confidence, in which it is compared with the accuracy.
BINS = 15
_COVERAGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


class Reliability:
    """Confidence against correctness over all labelled pixels of a data set.

    Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Q. Weinberger: On Calibration of Modern Neural Networks, 2017,
    arXiv:1706.04599.

    Args:
        num_classes: number of classes. True values from it on are ignored pixels.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # By confidence and class: correct, true and predicted pixels.
        self._correct, self._true, self._predicted = (np.zeros((_LEVELS, num_classes), np.int64) for _ in range(3))

    def update(self, truth: np.ndarray, prediction: np.ndarray, confidence: np.ndarray) -> None:
        """Count one image.

        Args:
            truth, prediction: (H, W) class ids.
            confidence: (H, W) uint8, round(255 * probability of the predicted class).
        """
        labelled = truth < self.num_classes
        truth, prediction, confidence = truth[labelled], prediction[labelled], confidence[labelled]
        for counts, ids, chosen in (
            (self._true, truth, None),
            (self._predicted, prediction, prediction < self.num_classes),
            (self._correct, truth, truth == prediction),
        ):
            level, ids = (confidence, ids) if chosen is None else (confidence[chosen], ids[chosen])
            pairs = level.astype(np.int64) * self.num_classes + ids
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)

    def diagram(self) -> list[dict[str, float]]:
        """The reliability diagram: mean confidence and accuracy in each of 15 equal bins, 0..1, that has pixels."""
        levels = np.arange(_LEVELS) / (_LEVELS - 1)
        pixels, correct = self._true.sum(1), self._correct.sum(1)
        bins = np.minimum((levels * BINS).astype(int), BINS - 1)
        of_bin, right, sure = (
            np.bincount(bins, values, minlength=BINS) for values in (pixels, correct, pixels * levels)
        )
        total = max(int(pixels.sum()), 1)
        return [
            {"confidence": sure[i] / of_bin[i], "accuracy": right[i] / of_bin[i], "share": of_bin[i] / total}
            for i in np.flatnonzero(of_bin)
        ]

    def error(self) -> float | None:
        """The expected calibration error: mean distance of confidence and accuracy over the pixels, 0..1."""
        bins = self.diagram()
        return sum(b["share"] * abs(b["confidence"] - b["accuracy"]) for b in bins) if bins else None

    def coverage(self) -> list[dict[str, float | None]]:
        """MIoU of the most confident pixels, for falling shares of them.

        Returns:
            For each point the smallest confidence that is kept (``threshold``), the share of pixels that have it
            (``coverage``), both 0..1, and ``miou`` over these pixels; None where no pixel is left.
        """
        correct, true, predicted = (self._kept(counts) for counts in (self._correct, self._true, self._predicted))
        kept = ratio(true.sum(1), np.full(_LEVELS, self._true.sum()))
        points: list[dict[str, float | None]] = []
        for coverage in _COVERAGES:
            enough = np.flatnonzero(kept >= coverage)
            if not enough.size:
                continue
            level = int(enough[-1])
            iou = ratio(correct[level], true[level] + predicted[level] - correct[level])
            threshold = level / (_LEVELS - 1)
            points.append({"threshold": threshold, "coverage": float(kept[level]), "miou": mean_of_defined(iou)})
        return points

    def summary(self) -> dict[str, Any]:
        """``ece``, ``reliability`` and ``miou_at_coverage``; see `error`, `diagram` and `coverage`."""
        return {"ece": self.error(), "reliability": self.diagram(), "miou_at_coverage": self.coverage()}

    @staticmethod
    def _kept(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts of the pixels of each level and of all above it."""
        return counts[::-1].cumsum(0)[::-1]
