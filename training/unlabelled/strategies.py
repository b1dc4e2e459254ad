"""Which images to label next: each strategy is a function from a `Pool` to choices, with a name in `STRATEGIES`.

All are deterministic for a seed. Distances are Euclidean, between the features of `Pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from dinov3_seg_ros.support.errors import ParameterError, nearest
from training.unlabelled.coverage import Coverage
from training.unlabelled.k_means import k_means, squared_distances

if TYPE_CHECKING:
    from training.unlabelled.description import Pool

#: Stands for `CLASS_COVERAGE` with a head. Without one it stands for `COVERAGE` where there are target images, and for
#: `TYPICAL` where there are none: the best of what docs/few_labels.md compares.
AUTO = "auto"
CLASS_COVERAGE, COVERAGE, TYPICAL = "class_coverage", "coverage", "typical"

# Of Guy Hacohen et al. (see `_typical`).
_NEIGHBOURS = 20
# Bounds the memory of distances to all images of a cluster.
_ROWS = 1024
# Of Fedor Zhdanov (see `_uncertain_clusters`): so many times as many images are preselected.
_PRESELECTED = 10


class Choice(NamedTuple):
    """An image that was chosen.

    Attributes:
        image: its index in the pool.
        score: of the strategy, at the time of the choice; larger is better.
        why: for people.
    """

    image: int
    score: float
    why: str


Choose: TypeAlias = "Callable[[Pool, int, np.random.Generator], list[Choice]]"


class Strategy(NamedTuple):
    """A strategy.

    Attributes:
        choose: chooses at most so many images that have no labels.
        needs_head: whether it reads what a head says.
        uses_target: whether it reads what target images show.
    """

    choose: Choose
    needs_head: bool
    uses_target: bool = False


def choose(strategy: str, pool: Pool, count: int, seed: int = 0) -> list[Choice]:
    """Choose images without labels, the most useful first.

    Args:
        strategy: a key of `STRATEGIES`, or `AUTO`.
        pool: all images.
        count: how many to choose; all where there are fewer.
        seed: of all random numbers.

    Raises:
        ParameterError: there is no such strategy, it needs a head, or it has no use for the target images.
    """
    name = resolved(strategy, pool.regions is not None, bool(pool.target.any()))
    count = min(count, len(pool.candidates))
    return STRATEGIES[name].choose(pool, count, np.random.default_rng(seed))[:count] if count else []


def resolved(strategy: str, has_head: bool, has_target: bool) -> str:
    """The name of the strategy that a name stands for.

    Raises:
        ParameterError: there is no such strategy, it needs a head, or it has no use for target images.
    """
    if strategy == AUTO:
        return CLASS_COVERAGE if has_head else COVERAGE if has_target else TYPICAL
    if strategy not in STRATEGIES:
        raise ParameterError(
            f"there is no strategy '{strategy}'{nearest(strategy, STRATEGIES)}; they are: {AUTO}, "
            f"{', '.join(STRATEGIES)}"
        )
    if STRATEGIES[strategy].needs_head and not has_head:
        without = ", ".join(name for name, kind in STRATEGIES.items() if not kind.needs_head)
        raise ParameterError(f"the strategy '{strategy}' needs a bundle; with a backbone alone there are: {without}")
    if has_target and not STRATEGIES[strategy].uses_target:
        able = " and ".join(name for name, kind in STRATEGIES.items() if kind.uses_target)
        raise ParameterError(f"the strategy '{strategy}' has no use for target images; these have: {able}")
    return strategy


def _random(pool: Pool, count: int, random: np.random.Generator) -> list[Choice]:
    """Any images, all alike: what the others are measured against."""
    return [Choice(int(index), 0.0, "at random") for index in random.permutation(pool.candidates)[:count]]


def _margin(pool: Pool, count: int, _random: np.random.Generator) -> list[Choice]:
    """The images whose pixels have two likely classes: the smallest margin between the two best.

    Tobias Scheffer, Christian Decomain, Stefan Wrobel: Active hidden Markov models for information extraction, 2001.
    """
    assert pool.margin is not None  # `resolved` asks for a head
    return _most(pool, pool.margin, count, "uncertain between two classes")


def _entropy(pool: Pool, count: int, _random: np.random.Generator) -> list[Choice]:
    """The images whose pixels have the largest entropy.

    Burr Settles: Active Learning Literature Survey, 2009, section 3.1.
    """
    assert pool.entropy is not None  # `resolved` asks for a head
    return _most(pool, pool.entropy, count, "uncertain among all classes")


def _k_center(pool: Pool, count: int, _random: np.random.Generator) -> list[Choice]:
    """The image that lies farthest from all labelled and chosen ones, again and again.

    Ozan Sener, Silvio Savarese: Active Learning for Convolutional Neural Networks: A Core-Set Approach, 2018,
    arXiv:1708.00489 (its greedy form, by Teofilo Gonzalez: Clustering to minimize the maximum intercluster distance,
    1985).
    """
    return _farthest(pool, count, np.ones(len(pool.features)), "unlike all others")


def _uncertain_k_center(pool: Pool, count: int, _random: np.random.Generator) -> list[Choice]:
    """As k_center, with each distance multiplied by the image's uncertainty.

    Uncertain and diverse at once, as k-means++ on gradients is in Jordan T. Ash, Chicheng Zhang, Akshay
    Krishnamurthy, John Langford, Alekh Agarwal: Deep Batch Active Learning by Diverse, Uncertain Gradient Lower
    Bounds, 2020, arXiv:1906.03671.
    """
    assert pool.margin is not None  # `resolved` asks for a head
    return _farthest(pool, count, pool.margin.astype(np.float64), "uncertain and unlike all others")


def _typical(pool: Pool, count: int, random: np.random.Generator) -> list[Choice]:
    """The most typical image of each cluster that has no label yet, the largest clusters first.

    Guy Hacohen, Avihu Dekel, Daphna Weinshall: Active Learning on a Budget: Opposite Strategies Suit High and Low
    Budgets, 2022, arXiv:2202.02794 (TypiClust).
    """
    clusters = count + int(pool.labelled.sum())
    members, _ = k_means(pool.features, clusters, random)
    sizes = np.bincount(members, minlength=clusters)
    taken = np.bincount(members[pool.labelled], minlength=clusters)
    chosen: list[Choice] = []
    free = ~pool.labelled
    while len(chosen) < count:
        has_free = np.bincount(members[free], minlength=clusters) > 0
        # The least labelled first, of these the largest.
        cluster = min(np.flatnonzero(has_free), key=lambda one: (taken[one], -sizes[one], one))
        own = np.flatnonzero(members == cluster)
        typicality = _typicality(pool.features[own])
        place = max((i for i in range(len(own)) if free[own[i]]), key=lambda i: (typicality[i], -i))
        chosen.append(Choice(int(own[place]), float(typicality[place]), f"typical of {len(own)} similar images"))
        free[own[place]] = False
        taken[cluster] += 1
    return chosen


def _uncertain_clusters(pool: Pool, count: int, random: np.random.Generator) -> list[Choice]:
    """Of the most uncertain images, the middle one of each cluster, in which uncertain images weigh more.

    Fedor Zhdanov: Diverse mini-batch Active Learning, 2019, arXiv:1901.05954.
    """
    assert pool.margin is not None  # `resolved` asks for a head
    best = [choice.image for choice in _most(pool, pool.margin, _PRESELECTED * count, "")]
    features, weights = pool.features[best], pool.margin[best].astype(np.float64)
    members, centres = k_means(features, count, random, weights)
    distances = squared_distances(features, centres)
    chosen = []
    for cluster in range(count):
        own = np.flatnonzero(members == cluster)
        if len(own):
            place = own[distances[own, cluster].argmin()]
            why = f"the middle of {len(own)} similar uncertain images"
            chosen.append(Choice(best[place], float(weights[own].sum()), why))
    chosen.sort(key=lambda choice: (-choice.score, choice.image))
    taken = {choice.image for choice in chosen}
    rest = [choice for choice in _margin(pool, len(pool.features), random) if choice.image not in taken]
    return chosen + rest  # equal images make empty clusters


def _coverage(pool: Pool, count: int, _random: np.random.Generator) -> list[Choice]:
    """The images to which all others, or all target images, are most similar: greedy facility location.

    Kai Wei, Rishabh Iyer, Jeff Bilmes: Submodularity in Data Subset Selection and Active Learning, 2015.
    """
    weights = pool.to_cover / pool.to_cover.sum()
    coverage = Coverage(pool.features[None], weights[None], np.ones((1, len(weights))), pool.candidates)
    found = coverage.choose(np.flatnonzero(pool.labelled), count)
    why = f"like many {'target' if pool.target.any() else 'unlabelled'} images"
    return [Choice(index, float(gains.sum()), why) for index, gains in found]


def _class_coverage(pool: Pool, count: int, _random: np.random.Generator) -> list[Choice]:
    """The images whose regions resemble most of what is uncertain of each class; every class weighs the same.

    Where there are target images, what is uncertain in them counts, and nothing else.

    Facility location as in `_coverage`, on the regions that the head takes for each class. The weights of a class's
    regions are their uncertain pixels and have the same sum for each class, since mIoU is a mean over classes: the
    few pixels of a rare class count as much as the road. An image covers a class the more, the more it has of it.
    """
    regions = pool.regions
    assert regions is not None  # `resolved` asks for a head
    weights = np.where(pool.to_cover, regions.doubts.astype(np.float64), 0.0)
    sums = weights.sum(1, keepdims=True)
    weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0) / len(weights)
    usual = regions.shares[:, pool.to_cover].mean(1, keepdims=True)
    presence = regions.shares / np.maximum(regions.shares + usual, 1e-12)
    coverage = Coverage(regions.features, weights, presence, pool.candidates)
    found = coverage.choose(np.flatnonzero(pool.labelled), count)
    return [Choice(index, float(gains.sum()), f"covers {_two_best(gains, regions.names)}") for index, gains in found]


def _most(pool: Pool, scores: np.ndarray, count: int, why: str) -> list[Choice]:
    ranked = sorted(pool.candidates.tolist(), key=lambda index: (-scores[index], index))
    return [Choice(index, float(scores[index]), why) for index in ranked[:count]]


def _farthest(pool: Pool, count: int, weights: np.ndarray, why: str) -> list[Choice]:
    """Greedy farthest-first traversal by weighted distances; without labels, from the image nearest to the middle."""
    features, free = pool.features, ~pool.labelled
    if pool.labelled.any():
        distance = np.sqrt(squared_distances(features, features[pool.labelled]).min(1))
    else:
        middle = np.sqrt(squared_distances(features, features.mean(0, keepdims=True))[:, 0])
        distance = np.full(len(features), middle.max() + 1) - middle
    chosen: list[Choice] = []
    for _ in range(count):
        scores = np.where(free, distance * weights, -1.0)
        index = int(scores.argmax())
        to_this = np.sqrt(squared_distances(features, features[index : index + 1])[:, 0])
        first = not chosen and not pool.labelled.any()
        score = 0.0 if first else float(scores[index])
        chosen.append(Choice(index, score, "near the middle of all images" if first else why))
        distance = to_this if first else np.minimum(distance, to_this)
        free[index] = False
    return chosen


def _typicality(features: np.ndarray) -> np.ndarray:
    """The inverse of the mean distance to the nearest neighbours, (n,)."""
    if len(features) == 1:
        return np.ones(1)
    found = np.empty(len(features))
    for start in range(0, len(features), _ROWS):  # a cluster may hold all images
        distances = np.sort(squared_distances(features[start : start + _ROWS], features), axis=1)
        nearest_ones = np.sqrt(distances[:, 1 : _NEIGHBOURS + 1])
        found[start : start + _ROWS] = 1 / np.maximum(nearest_ones.mean(1), 1e-12)
    return found


def _two_best(gains: np.ndarray, names: Sequence[str]) -> str:
    return " and ".join(names[index] for index in np.argsort(-gains, kind="stable")[:2])


#: Every strategy by its name.
STRATEGIES: dict[str, Strategy] = {
    CLASS_COVERAGE: Strategy(_class_coverage, needs_head=True, uses_target=True),
    "uncertain_k_center": Strategy(_uncertain_k_center, needs_head=True),
    "uncertain_clusters": Strategy(_uncertain_clusters, needs_head=True),
    "margin": Strategy(_margin, needs_head=True),
    "entropy": Strategy(_entropy, needs_head=True),
    COVERAGE: Strategy(_coverage, needs_head=False, uses_target=True),
    TYPICAL: Strategy(_typical, needs_head=False),
    "k_center": Strategy(_k_center, needs_head=False),
    "random": Strategy(_random, needs_head=False),
}
