"""Distances and clusters of feature vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ITERATIONS = 50
# A row of distances to all other images at a time would be slow, all rows at once too large.
_ROWS = 1024


def squared_distances(one: np.ndarray, other: np.ndarray) -> NDArray[np.float64]:
    """Squared Euclidean distances of the vectors (n, D) and (m, D), (n, m)."""
    lengths = (other.astype(np.float64) ** 2).sum(1)
    found = np.empty((len(one), len(other)))
    for start in range(0, len(one), _ROWS):
        rows = one[start : start + _ROWS].astype(np.float64)
        products = rows @ other.astype(np.float64).T
        found[start : start + _ROWS] = (rows**2).sum(1)[:, None] + lengths - 2 * products
    return np.asarray(np.maximum(found, 0.0))


def k_means(
    features: np.ndarray, count: int, random: np.random.Generator, weights: np.ndarray | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Weighted k-means.

    Stuart P. Lloyd: Least squares quantization in PCM, 1982; starts by David Arthur, Sergei Vassilvitskii: k-means++:
    The Advantages of Careful Seeding, 2007.

    Args:
        features: (n, D).
        count: number of clusters.
        random: source of the first centres.
        weights: (n,), not negative; None: all alike.

    Returns:
        The cluster of each vector (n,), and the centres (count, D). Equal vectors can leave clusters empty.
    """
    given = np.ones(len(features)) if weights is None else weights + 1e-12
    centres = features[_first_centres(features, count, random, given)].astype(np.float64)
    members = np.full(len(features), -1)
    for _ in range(_ITERATIONS):
        nearest = squared_distances(features, centres).argmin(1)
        if (nearest == members).all():
            break
        members = nearest
        sums = np.zeros_like(centres)
        np.add.at(sums, members, features * given[:, None])
        total = np.bincount(members, given, minlength=count)
        centres[total > 0] = sums[total > 0] / total[total > 0, None]
    return members, centres


def _first_centres(
    features: np.ndarray, count: int, random: np.random.Generator, weights: np.ndarray
) -> NDArray[np.intp]:
    """Indices of the first centres, each drawn the likelier the farther it is from those before."""
    chosen: list[int] = []
    distances = np.ones(len(features))
    for _ in range(count):
        chances = distances * weights
        total = chances.sum()
        index = (
            int(random.choice(len(features), p=chances / total)) if total > 0 else int(random.integers(len(features)))
        )
        to_this = squared_distances(features, features[index : index + 1])[:, 0]
        distances = np.minimum(distances, to_this) if chosen else to_this
        chosen.append(index)
    return np.array(chosen)
