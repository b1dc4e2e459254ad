"""Batches of augmented training samples."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from training.datasets import SegmentationDataset
from training.randomness import Purpose, generator
from training.transforms import Augmentation, CanvasSettings, training_canvas


class EpochSampler(Sampler[tuple[int, int]]):
    """Gives (epoch, index) in an order that depends on seed and epoch alone.

    The epoch travels with the index, so that worker processes, which outlive an epoch, need no other news of it.

    Attributes:
        epoch: set it before each pass.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = generator(Purpose.SAMPLE_ORDER, self._seed, self.epoch).permutation(self._count)
        return ((self.epoch, int(index)) for index in order)


class AugmentedDataset(Dataset):
    """Training canvases and masks; each is a pure function of (seed, epoch, index)."""

    def __init__(
        self, data: SegmentationDataset, settings: CanvasSettings, augmentation: Augmentation, seed: int
    ) -> None:
        self._data, self._settings, self._augmentation, self._seed = data, settings, augmentation, seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Canvas (H, W, 3) uint8 and mask (H, W) int32 of (epoch, index)."""
        epoch, index = key
        image, mask = self._data.item(index)
        random = generator(Purpose.AUGMENTATION, self._seed, epoch, index)
        canvas, canvas_mask = training_canvas(image, mask, self._settings, self._augmentation, random)
        return torch.from_numpy(canvas), torch.from_numpy(canvas_mask.astype(np.int32))


def make_loader(dataset: AugmentedDataset, sampler: EpochSampler, batch_size: int, workers: int) -> DataLoader:
    """Batches of canvases (B, H, W, 3) uint8 and masks (B, H, W) int32.

    The last batch of an epoch is dropped when it is incomplete, unless it is the only one: BatchNorm over one or two
    images would disturb training.
    """
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),
        sampler=sampler,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_prepare_worker,
        # A forked worker would inherit the locks of thread pools whose threads it does not have.
        multiprocessing_context="spawn" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _prepare_worker(_worker: int) -> None:
    """Leave the other cores to the network, and Ctrl-C to the training process, which ends its workers."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
