"""Validation of the model in training, along the path of the robot's frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.metrics import ConfusionMatrix
from training.data import SegmentationDataset
from training.evaluation.inference import sample
from training.evaluation.temperature import PixelSample, fit_temperature
from training.loop.model import SegmentationModel
from training.loop.model_runtime import ModelRuntime
from training.losses import WeightedSum
from training.reports.pictures import prediction_row

_PICTURED = 6


class Validation:
    """Scores and loss of the model in training on a data set; each image is one view, as on the robot.

    Args:
        model: the network that trains.
        data: the validation split.
        loss: loss to report beside the scores.
        accelerator: divides the images among its processes.
    """

    def __init__(
        self, model: SegmentationModel, data: SegmentationDataset, loss: WeightedSum, accelerator: Accelerator
    ) -> None:
        self._model, self._data, self._loss, self._accelerator = model, data, loss, accelerator

    def run(self, bundle: Bundle, indices: Sequence[int]) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Validate on some items.

        Args:
            bundle: describes the model; it need not be on disk.
            indices: indices of the items.

        Returns:
            ``val_loss``, the result of `ConfusionMatrix.summary`, and ``calibration``, that of
            `temperature.fit_temperature`, over all processes; and rows of `pictures.prediction_row` for some items of
            this process.

        Raises:
            DatasetError: an item cannot be read.
        """
        data, accelerator = self._data, self._accelerator
        own = list(indices)[accelerator.process_index :: accelerator.num_processes]
        pictured = {own[place] for place in np.linspace(0, len(own) - 1, _PICTURED).round().astype(int)} if own else ()
        matrix, rows = ConfusionMatrix(len(data.class_names)), []
        losses = torch.zeros(2, len(self._loss.losses), device=accelerator.device, dtype=torch.float64)
        pixels = PixelSample(len(indices))
        self._model.eval()
        segmenter = Segmenter([bundle], ModelRuntime(self._model, accelerator.device))
        with _without_tf32():
            for index in own:
                image, truth = data.item(index)
                head = segmenter.segment([image])[0].heads[bundle.manifest.name]
                matrix.update(truth, head.labels)
                pixels.add(head.logits, head.window, truth, len(data.class_names), index)
                losses += self._sums_and_counts(head.logits, head.window, truth, bundle.manifest.input.network_size)
                if index in pictured:
                    rows.append(prediction_row(image, truth, head.labels, data.palette))
        counts = torch.from_numpy(matrix.counts).to(accelerator.device)
        matrix.counts = accelerator.reduce(counts, "sum").cpu().numpy()
        loss = float(self._loss.mean(*accelerator.reduce(losses, "sum")))
        calibration = fit_temperature(PixelSample.joined(gather_object([pixels])))
        return {"val_loss": loss, **matrix.summary(data.class_names), "calibration": calibration}, rows

    @torch.inference_mode()
    def _sums_and_counts(
        self,
        logits: torch.Tensor,
        window: tuple[float, float, float, float],
        truth: np.ndarray,
        largest: tuple[int, int],
    ) -> torch.Tensor:
        """Sum and count of each loss, (2, number of losses), at the smaller of the truth's and the network's size."""
        size = (min(truth.shape[0], largest[0]), min(truth.shape[1], largest[1]))
        mask = cv2.resize(truth, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        target = torch.from_numpy(mask.astype(np.int64))[None].to(logits.device)
        ignored = self._data.ignore_value
        sums = self._loss.sums(sample(logits, window, size), target, ignored)
        return torch.stack([sums, self._loss.counts(target, ignored)])


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Compute convolutions in float32: on a GPU, PyTorch gives them 10 bits of mantissa, as suits a training step."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
