"""The temperature of a head: fitted on held-out images, then folded into its last weights.

It is the one at which the mean confidence equals the accuracy: Lucas Clarté, Bruno Loureiro, Florent Krzakala, Lenka
Zdeborová: Expectation consistency for calibration of neural networks, 2023, arXiv:2303.02644. The more usual one, which
makes the true classes most likely (Guo et al. 2017, arXiv:1706.04599), weighs the pixels with a confident error most,
and can make the confidence of all the others wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.inference import Window
from training.evaluation.reliability import BINS

#: Enough for one number; 150 classes then take 120 MB.
MOST_PIXELS = 200_000
_LARGEST = math.log(20.0)
_STEPS = 40


class PixelSample:
    """Logits of some labelled pixels of held-out images, evenly spread over the images.

    Each stands for as many pixels of its image as the labelled ones are more than those that were taken.

    Args:
        images: how many will be added.
    """

    def __init__(self, images: int) -> None:
        self._of_each = max(MOST_PIXELS // max(images, 1), 1)
        self._logits: list[Tensor] = []
        self._truth: list[Tensor] = []
        self._weights: list[Tensor] = []

    def add(self, logits: Tensor, window: Window, truth: np.ndarray, num_classes: int, index: int) -> None:
        """Sample one image.

        Args:
            logits: (1, C, h, w) float, before the upsampling.
            window: the part of them that the image covers, in cells; see `decode.upsample_argmax`.
            truth: (H, W) class ids; values from ``num_classes`` on are ignored.
            num_classes: number of classes.
            index: of the image; decides which pixels.
        """
        rows, columns = np.nonzero(truth < num_classes)
        if not len(rows):
            return
        chosen = np.random.default_rng(index).choice(len(rows), min(self._of_each, len(rows)), replace=False)
        weights = torch.full((len(chosen),), len(rows) / len(chosen), dtype=torch.float64)
        rows, columns = rows[chosen], columns[chosen]
        top, left, height, width = window
        y = ((torch.from_numpy(rows) + 0.5) * (height / truth.shape[0]) + top) * (2 / logits.shape[-2]) - 1
        x = ((torch.from_numpy(columns) + 0.5) * (width / truth.shape[1]) + left) * (2 / logits.shape[-1]) - 1
        grid = torch.stack([x, y], dim=-1)[None, None].to(logits)
        with torch.inference_mode():
            pixels = F.grid_sample(logits, grid, padding_mode="border", align_corners=False)
        self._logits.append(pixels[0, :, 0].T.cpu())
        self._truth.append(torch.from_numpy(truth[rows, columns].astype(np.int64)))
        self._weights.append(weights)

    @classmethod
    def joined(cls, samples: Sequence[PixelSample]) -> PixelSample:
        """All pixels of several samples."""
        whole = cls(len(samples))
        for sample in samples:
            whole._logits += sample._logits
            whole._truth += sample._truth
            whole._weights += sample._weights
        return whole

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, C), true classes (N,) int64 and weights (N,) float64 of all pixels; N may be 0."""
        if not self._logits:
            return torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        return torch.cat(self._logits), torch.cat(self._truth), torch.cat(self._weights)


def fit_temperature(pixels: PixelSample) -> dict[str, Any] | None:
    """Find the temperature at which the mean confidence is the share of right pixels.

    The mean confidence falls as the temperature rises, so that there is one such temperature, which is bisected.

    Returns:
        ``temperature``, within 1/20 and 20, or 1 where every pixel is right, which no temperature explains;
        ``pixels``, ``ece_before`` and ``ece`` of these pixels, 0..1. None where there are no pixels, or their logits
        are not finite.
    """
    logits, truth, weights = pixels.tensors()
    if not len(truth) or not logits.isfinite().all():
        return None
    weights = weights / weights.sum()
    right = logits.argmax(1) == truth
    accuracy = float(weights @ right.double())
    low, high = -_LARGEST, _LARGEST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        confidence = float(weights @ (logits / math.exp(middle)).softmax(1).amax(1).double())
        low, high = (middle, high) if confidence > accuracy else (low, middle)
    temperature = 1.0 if right.all() else math.exp((low + high) / 2)
    before, after = (_calibration_error((logits / t).softmax(1), truth, weights) for t in (1.0, temperature))
    return {"temperature": temperature, "pixels": len(truth), "ece_before": before, "ece": after}


def _calibration_error(probabilities: Tensor, truth: Tensor, weights: Tensor) -> float:
    """Expected calibration error of pixels whose weights add up to 1."""
    confidence, labels = probabilities.max(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, weights * (confidence.double() - (labels == truth).double()))
    return float(gaps.abs().sum())
