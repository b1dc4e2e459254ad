"""The feature caches of a training's stages, and how they are filled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from rich.console import Console

from dinov3_seg_ros.bundle.manifest import Manifest
from training.data import SegmentationDataset
from training.loop.model import SegmentationModel
from training.loop.parts import make_cache
from training.loop.stages import Stage
from training.samples.cache_filling import Compute, fill_caches
from training.samples.feature_cache import FeatureCache


class StageCaches:
    """The cache of each stage's features; stages whose samples are the same have caches of one folder.

    Args:
        stages: of the training.
        data: the training split.
        digest: of its content.
        manifest: describes the frozen backbone, its input and the head.
        model: computes the features.
        accelerator: of this process.

    Attributes:
        by_stage: the caches, in the order of the stages.
        batch_size: images of one pass through the backbone.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        data: SegmentationDataset,
        digest: str,
        manifest: Manifest,
        model: SegmentationModel,
        accelerator: Accelerator,
    ) -> None:
        self.by_stage: list[FeatureCache] = [make_cache(stage.recipe, data, digest, manifest) for stage in stages]
        self.batch_size = stages[0].batching.batch_size // stages[0].batching.processes
        self._recipe, self._model, self._accelerator = stages[0].recipe, model, accelerator

    def extract(self, canvases: torch.Tensor) -> list[torch.Tensor]:
        """The backbone's maps (B, C, h, w) of canvases (B, H, W, 3) uint8 RGB."""
        with torch.inference_mode(), self._accelerator.autocast():
            return self._model.features(canvases.to(self._accelerator.device))

    def fill(self, console: Console, compute: Compute | None = None) -> None:
        """Compute what is absent; see `cache_filling.fill_caches`."""
        recipe, workers = self._recipe, self._recipe.worker_count
        fill_caches(
            self.by_stage, recipe.cache, self.extract, self.batch_size, workers, self._accelerator, console, compute
        )
