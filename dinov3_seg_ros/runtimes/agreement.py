"""How far computed arrays are from their references, and how far they may be. Needs NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Threshold:
    """What a graph must reach.

    Attributes:
        cosine: the least cosine of features and of logits, on every image.
        labels: the least share of equal labels, 0..1, among the pixels of all images together. On a single image, such
            as an even grey, two classes may be equally probable everywhere, and then the smallest difference decides.
        confidence: the largest mean difference of confidence where labels are equal, in levels of 0..255.
    """

    cosine: float
    labels: float
    confidence: float


#: By precision. float32 results differ only in the order of sums, the others also in what their formats can hold.
THRESHOLDS = {
    "fp32": Threshold(0.99999, 0.9995, 0.5),
    "fp16": Threshold(0.999, 0.995, 2.0),
    "bf16": Threshold(0.99, 0.97, 8.0),
    "int8": Threshold(0.98, 0.95, 10.0),
    "int8_qdq": Threshold(0.98, 0.95, 10.0),
}


class Difference:
    """How far arrays are from their references, over all pairs compared so far.

    Attributes:
        cosine: the smallest cosine of an array and its reference; -1 where a value is not finite.
        max_abs: the largest difference of two elements; infinite where a value is not finite.
    """

    def __init__(self) -> None:
        self.cosine, self.max_abs = 1.0, 0.0

    def update(self, reference: np.ndarray, found: np.ndarray) -> None:
        """Compare one array with its reference. A value that is not finite counts as the worst difference."""
        a, b = reference.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            self.cosine, self.max_abs = -1.0, float("inf")
            return
        scale = np.linalg.norm(a) * np.linalg.norm(b)
        self.cosine = min(self.cosine, float(a @ b / scale) if scale else float(np.array_equal(a, b)))
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max()))

    def record(self) -> dict[str, float]:
        """Return both figures, rounded for the report."""
        return {"cosine": round(self.cosine, 7), "max_abs": float(f"{self.max_abs:.4g}")}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the cosine of two arrays; -1 where a value is not finite."""
    difference = Difference()
    difference.update(one, other)
    return difference.cosine
