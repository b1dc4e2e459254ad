"""Greedy facility location: the images that cover best what all images show, in one space or in one for each class."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.unlabelled.k_means import squared_distances

# Bounds the memory of the first round: images times candidates.
_CELLS = 4_000_000


class Coverage:
    """How much a set of images covers all images, summed over groups.

    In each group an image covers another one by their similarity, exp(-d^2 / width), times its own presence; of all
    images in the set the best counts. So the sum has diminishing returns (it is submodular), and the greedy choice
    reaches at least 63 % of the best possible: G. L. Nemhauser, L. A. Wolsey, M. L. Fisher: An analysis of
    approximations for maximizing submodular set functions, 1978. Candidates are evaluated anew only while their last
    gain is the largest: Michel Minoux: Accelerated greedy algorithms for maximizing submodular set functions, 1978.

    The width is the mean d^2 of two images that are to be covered, or of one of them and the candidate nearest to it if
    that is larger. So candidates that are all far away are still told apart.

    Args:
        features: (G, N, D) of each image in each group.
        weights: (G, N) of the images that are to be covered.
        presence: (G, N), 0..1, how much each image covers.
        candidates: indices of the images that may be chosen.
    """

    def __init__(
        self, features: np.ndarray, weights: np.ndarray, presence: np.ndarray, candidates: NDArray[np.intp]
    ) -> None:
        self._features, self._presence, self._candidates = features, presence, candidates
        # Only these can gain; with a target they are few.
        covered = np.flatnonzero(weights.any(axis=0))
        self._to_cover, self._weights = features[:, covered], weights[:, covered]
        self._widths = [
            max(_mean_squared_distance(own, weight), _mean_to_nearest(own, weight, candidates)) or 1.0
            for own, weight in zip(features, weights, strict=True)
        ]
        self._covered = np.zeros(self._weights.shape)

    def choose(self, present: Sequence[int] | np.ndarray, count: int) -> list[tuple[int, NDArray[np.float64]]]:
        """Choose candidates one by one.

        Args:
            present: indices of the images that are in the set already.
            count: how many to choose, at most as many as there are candidates.

        Returns:
            The index of each, and by how much it raised the coverage of each group, (G,).
        """
        for index in present:
            self._add(int(index))
        heap = [(-gain, int(index)) for gain, index in zip(self._first_gains(), self._candidates, strict=True)]
        heapq.heapify(heap)
        chosen: list[tuple[int, NDArray[np.float64]]] = []
        while len(chosen) < count:
            _, index = heapq.heappop(heap)
            gains = self._gains(index)
            # Rounding must not make two candidates wait for each other.
            if heap and gains.sum() < -heap[0][0] - 1e-12:
                heapq.heappush(heap, (-float(gains.sum()), index))
                continue
            self._add(index)
            chosen.append((index, gains))
        return chosen

    def _values(self, group: int, columns: np.ndarray) -> NDArray[np.float64]:
        """How much some images cover each that is to be covered in a group, (images to cover, columns)."""
        distances = squared_distances(self._to_cover[group], self._features[group, columns])
        similar = np.exp(-distances / self._widths[group])
        return np.asarray(similar * self._presence[group, columns])

    def _gains(self, index: int) -> NDArray[np.float64]:
        column = np.array([index])
        return np.array(
            [
                float(self._weights[group] @ np.maximum(self._values(group, column)[:, 0] - self._covered[group], 0))
                for group in range(len(self._features))
            ]
        )

    def _first_gains(self) -> NDArray[np.float64]:
        """The gain of each candidate over all groups."""
        candidates = self._candidates
        found = np.zeros(len(candidates))
        step = max(_CELLS // max(self._to_cover.shape[1], 1), 1)
        for group in range(len(self._features)):
            for start in range(0, len(candidates), step):
                values = self._values(group, candidates[start : start + step])
                more = np.maximum(values - self._covered[group][:, None], 0)
                found[start : start + step] += self._weights[group] @ more
        return found

    def _add(self, index: int) -> None:
        column = np.array([index])
        for group in range(len(self._features)):
            np.maximum(self._covered[group], self._values(group, column)[:, 0], out=self._covered[group])


def _mean_squared_distance(features: np.ndarray, weights: np.ndarray) -> float:
    """Of any two images, drawn by their weights; 0 where all are equal."""
    total = float(weights.sum())
    if total <= 0:
        return 0.0
    shares = weights / total
    middle = shares @ features
    found = 2 * float(shares @ ((features - middle) ** 2).sum(1))
    return found if found > 1e-12 else 0.0


def _mean_to_nearest(features: np.ndarray, weights: np.ndarray, candidates: NDArray[np.intp]) -> float:
    """Of an image that is drawn by the weights to its nearest candidate; 0 where all are candidates."""
    others = np.setdiff1d(np.flatnonzero(weights), candidates)
    total, found = float(weights.sum()), 0.0
    step = max(_CELLS // max(len(candidates), 1), 1)
    for start in range(0, len(others), step):
        rows = others[start : start + step]
        distances = squared_distances(features[rows], features[candidates]).min(1)
        found += float(weights[rows] @ distances) / total
    return found
