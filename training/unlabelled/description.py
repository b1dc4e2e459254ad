"""What a network's look at an image says of it in a few numbers, by which images are compared and chosen.

An image is described as a whole, by the mean of its features, and region by region: a region is all of an image that
the head takes for one class, each pixel as much as it is probable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.unlabelled.network import Look

# Regions are compared in so many random directions of each map, which keeps most distances within 10 %. That suffices
# to tell kinds of things apart; W. B. Johnson, J. Lindenstrauss: Extensions of Lipschitz mappings into a Hilbert space,
# 1984, says how many directions keep all distances within a bound.
_DIRECTIONS = 64
_SEED = 0


@dataclass(frozen=True)
class Description:
    """One image.

    Attributes:
        features: mean of each map, (C_i,) float32.
        margin: mean over the pixels of 1 - (probability of the likeliest class - that of the second), 0..1.
        entropy: mean entropy of the pixels' probabilities, as a share of the largest possible, 0..1.
        regions: mean features of each class, (K, R_i) float32 for each map, with R_i <= 64 random directions.
        shares: share of the image that each class has, (K,) float32.
        doubts: the part of these shares that is uncertain by its margin, (K,) float32.

    All but ``features`` are None without a head.
    """

    features: tuple[np.ndarray, ...]
    margin: float | None = None
    entropy: float | None = None
    regions: tuple[np.ndarray, ...] | None = None
    shares: np.ndarray | None = None
    doubts: np.ndarray | None = None


@torch.inference_mode()
def describe(look: Look) -> Description:
    """Describe an image by what a network sees in it."""
    features = tuple(_array(found.mean((1, 2))) for found in look.maps)
    if look.logits is None:
        return Description(features)
    probabilities = look.logits.softmax(0)
    classes = len(probabilities)
    doubt = torch.zeros_like(probabilities[0])
    if classes > 1:
        first, second = probabilities.topk(2, dim=0).values
        doubt = 1 - (first - second)
    entropy = -(probabilities * probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()).sum(0).mean()
    return Description(
        features,
        float(doubt.mean()),
        float(entropy) / float(np.log(max(classes, 2))),
        tuple(_array(_regions(found, probabilities)) for found in look.maps),
        _array(probabilities.mean((1, 2))),
        _array((probabilities * doubt).mean((1, 2))),
    )


def _regions(found: Tensor, probabilities: Tensor) -> Tensor:
    """Mean features of each class in random directions, (K, R)."""
    grid = (found.shape[1], found.shape[2])
    weights = F.adaptive_avg_pool2d(probabilities[None], grid)[0].flatten(1)
    means: Tensor = (weights @ found.flatten(1).T) / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return means if found.shape[0] <= _DIRECTIONS else means @ _directions(found.shape[0]).to(means)


def _directions(channels: int) -> Tensor:
    random = torch.Generator().manual_seed(_SEED)
    directions: Tensor = torch.randn(channels, _DIRECTIONS, generator=random) / _DIRECTIONS**0.5
    return directions


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


@dataclass(frozen=True)
class Regions:
    """The regions of all images of a `Pool`, by class.

    Attributes:
        names: of the K classes.
        features: (K, N, R) float32.
        shares, doubts: (K, N) float32, see `Description`.
    """

    names: Sequence[str]
    features: np.ndarray
    shares: np.ndarray
    doubts: np.ndarray


@dataclass(frozen=True)
class Pool:
    """Images to choose among, images that have labels already, and target images.

    Target images show where the head will be used. They are looked at, and never chosen.

    Attributes:
        features: (N, D) float32; every map has the same weight in their distances.
        labelled, target: (N,) bool; an image is one of these or neither.
        margin, entropy: (N,) float32, see `Description`; None without a head.
        regions: None without a head.
    """

    features: np.ndarray
    labelled: np.ndarray
    target: np.ndarray
    margin: np.ndarray | None = None
    entropy: np.ndarray | None = None
    regions: Regions | None = None

    @property
    def candidates(self) -> np.ndarray:
        """Indices of the images that may be chosen."""
        return np.flatnonzero(~self.labelled & ~self.target)

    @property
    def to_cover(self) -> np.ndarray:
        """Which images those with labels have to resemble: the target's, or all without labels, (N,) bool."""
        return self.target if self.target.any() else ~self.labelled


def make_pool(
    descriptions: Sequence[Description],
    labelled: Sequence[bool] | np.ndarray,
    names: Sequence[str] = (),
    target: Sequence[bool] | np.ndarray | None = None,
) -> Pool:
    """Put descriptions side by side.

    Args:
        descriptions: of all images, by one network.
        labelled: which of them have labels.
        names: of the head's classes.
        target: which of them are target images; None: none.
    """
    features = _joined([np.stack(found) for found in zip(*(d.features for d in descriptions), strict=True)])
    is_labelled = np.asarray(labelled, bool)
    is_target = np.zeros_like(is_labelled) if target is None else np.asarray(target, bool)
    if descriptions[0].regions is None:
        return Pool(features, is_labelled, is_target)
    maps = zip(*(d.regions or () for d in descriptions), strict=True)
    shares, doubts = (np.stack([getattr(d, name) for d in descriptions], 1) for name in ("shares", "doubts"))
    regions = Regions(names, _joined([np.stack(found, 1) for found in maps]), shares, doubts)
    margin, entropy = (np.array([getattr(d, name) for d in descriptions], np.float32) for name in ("margin", "entropy"))
    return Pool(features, is_labelled, is_target, margin, entropy, regions)


def _joined(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The features (..., C_i) of several maps behind one another, each with mean 0 and mean squared length 1."""
    parts = []
    for found in maps:
        flat = found.reshape(-1, found.shape[-1])
        centred = found - flat.mean(0)
        length = float(np.sqrt((centred**2).sum(-1).mean()))
        parts.append(centred / length if length > 0 else centred)
    return np.concatenate(parts, -1).astype(np.float32)
