"""Labels images by one trained bundle or by several together, and says how sure it is of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.frames.classes import ClassesSection
from dinov3_seg_ros.frames.value_range import chosen_range
from dinov3_seg_ros.options import ComputeOptions, ValueRange
from dinov3_seg_ros.runtimes.failures import runtime_failures
from dinov3_seg_ros.segmenter import HeadSegmentation, Segmenter
from dinov3_seg_ros.support.errors import BundleError
from dinov3_seg_ros.support.timing import StageTimes
from training.evaluation.inference import AveragingSegmenter, Inference, open_segmenter, sample


class Teacher:
    """Bundles with the same classes, whose probabilities are averaged.

    Balaji Lakshminarayanan, Alexander Pritzel, Charles Blundell: Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles, 2017, arXiv:1612.01474.

    Args:
        bundles: folders, at least one. Backbones, geometries and network sizes may differ.
        inference: the views of each image that each bundle averages.
        compute: how to compute.

    Attributes:
        classes: names and colours.
        value_range: which values of 16-bit images are black and white.

    Raises:
        BundleError: a bundle cannot be loaded, or has other classes than the first.
        SegmentationError: see `open_segmenter`.
    """

    def __init__(
        self, bundles: Sequence[Path], inference: Inference | None = None, compute: ComputeOptions | None = None
    ) -> None:
        loaded = [load_bundle(path) for path in bundles]
        manifests = [bundle.manifest for bundle in loaded]
        self.classes: ClassesSection = manifests[0].classes
        for path, manifest in zip(bundles, manifests, strict=True):
            if manifest.classes.names != self.classes.names:
                raise BundleError(
                    f"{path} has other classes than {bundles[0]}: {manifest.classes.names} and {self.classes.names}; "
                    "teach with bundles that have the same classes in the same order"
                )
        self.value_range: ValueRange = chosen_range(*(manifest.input.value_range for manifest in manifests))
        self._sides = [max(manifest.input.network_size) for manifest in manifests]
        self._segmenters: list[Segmenter | AveragingSegmenter] = [
            open_segmenter(bundle, inference or Inference(), compute) for bundle in loaded
        ]

    def label(self, image: np.ndarray) -> HeadSegmentation:
        """Labels and confidence of an image, (H, W) each, decoded when they are read.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it is not.
            RuntimeFailedError: a runtime failed, such as for want of memory.
        """
        heads = [next(iter(one.segment([image])[0].heads.values())) for one in self._segmenters]
        if len(heads) == 1:
            return heads[0]
        # Fine enough for every network, and no finer than the image.
        scale = min(1.0, max(self._sides) / max(image.shape[:2]))
        height, width = (max(round(side * scale), 1) for side in image.shape[:2])
        with torch.inference_mode(), runtime_failures("averaging the bundles"):
            total = torch.stack([_probabilities(head, (height, width)) for head in heads]).mean(0)
            logits = total.clamp(min=torch.finfo(total.dtype).tiny).log()
        window = (0.0, 0.0, float(height), float(width))
        return HeadSegmentation(logits, image.shape[:2], window, StageTimes())

    def close(self) -> None:
        """Release the models."""
        for segmenter in self._segmenters:
            segmenter.close()


def _probabilities(head: HeadSegmentation, size: tuple[int, int]) -> Tensor:
    """Probabilities (1, C, h, w) on the CPU."""
    logits = torch.as_tensor(head.logits).float().cpu()
    return sample(logits, head.window, size).softmax(1)
