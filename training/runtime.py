"""The model in training as a runtime of the robot's pipeline."""

from __future__ import annotations

import numpy as np
import torch

from training.model import SegmentationModel


class ModelRuntime:
    """The model in training as a `dinov3_seg_ros.runtimes.Runtime`, so that validation takes the robot's path."""

    name = "training"
    description = "the model in training, float32"
    sizes = None

    def __init__(self, model: SegmentationModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self.device = self.logits_device = device.type

    @torch.inference_mode()
    def features(self, canvases: np.ndarray) -> list[torch.Tensor]:
        """See `Runtime.features`."""
        return self._model.features(torch.from_numpy(canvases).to(self._device))

    @torch.inference_mode()
    def logits(self, _bundle_name: str, features: list[torch.Tensor]) -> torch.Tensor:
        """See `Runtime.logits`."""
        return self._model.head(features).float()

    def close(self) -> None:
        """Nothing to release: the model belongs to the training."""
