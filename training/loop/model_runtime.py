"""The model in training as a runtime of the robot's segmenter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dinov3_seg_ros.runtimes.protocol import Computed
from training.loop.model import SegmentationModel


class ModelRuntime:
    """The model in training as a `runtimes.protocol.Runtime`, so that validation takes the robot's path.

    Args:
        model: backbone and head.
        device: where they are.
    """

    name = "training"
    description = "the model in training, float32"
    sizes: tuple[tuple[int, int], ...] | None = None

    def __init__(self, model: SegmentationModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self.device = self.logits_device = str(device)

    @torch.inference_mode()
    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computed:
        """Run the model; every head is the model's. See `runtimes.protocol.Runtime.start`."""
        images = self._model.normalise(torch.from_numpy(canvases).to(self._device))
        maps = self._model.backbone(images)
        return Computed({name: self._model.head(maps, images).float() for name in heads}, {}, dict)

    def close(self) -> None:
        """Release nothing: the model belongs to the training."""
