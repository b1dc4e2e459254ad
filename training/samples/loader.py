"""Batches of augmented training samples."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dinov3_seg_ros.options import FRAME_SIZED
from dinov3_seg_ros.support.errors import RecipeError, SegmentationError
from training.data import SegmentationDataset
from training.samples.transforms import Augmentation, CanvasSettings, training_canvas
from training.support.randomness import Purpose, generator

Key: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Batching:
    """How the images of an epoch are shared out.

    What is left over at the end of an epoch is not used: BatchNorm over one or two images would disturb training.

    Attributes:
        count: number of images.
        batch_size: images that go through the network together, over all processes.
        accumulate: batches of one optimizer step.
        steps: optimizer steps of one epoch.
        process, processes: which process this is, of how many; each takes an equal part of every batch.
    """

    count: int
    batch_size: int
    accumulate: int
    steps: int
    process: int = 0
    processes: int = 1


def share_out(count: int, batch_size: int, accumulate: int = 1, process: int = 0, processes: int = 1) -> Batching:
    """Batches of ``batch_size`` images, or of fewer where there are not as many.

    Raises:
        RecipeError: a batch cannot be divided among the processes.
    """
    if batch_size % processes:
        raise RecipeError(
            f"batch_size is {batch_size}, for {processes} processes; it is that of all processes together: make it a "
            "multiple of their number"
        )
    if count < processes:
        raise RecipeError(f"there are {count} training images for {processes} processes; start fewer processes")
    batch_size = min(batch_size, count - count % processes)
    accumulate = min(accumulate, count // batch_size)
    return Batching(count, batch_size, accumulate, count // (batch_size * accumulate), process, processes)


class EpochBatches(Sampler[list[Key]]):
    """Gives one process's part of each batch of an epoch, as keys (epoch, index).

    The order depends on seed and epoch alone, so that an epoch can be entered anywhere, and the batches are the same
    for any number of processes. The epoch travels with the index, so that worker processes, which outlive an epoch,
    need no other news of it.

    Attributes:
        epoch: set it before each pass.
        first_step: optimizer steps of the epoch that are already done.
    """

    def __init__(self, batching: Batching, seed: int) -> None:
        self._batching, self._seed = batching, seed
        self.epoch, self.first_step = 0, 0

    def __len__(self) -> int:
        return (self._batching.steps - self.first_step) * self._batching.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        batching = self._batching
        order = generator(Purpose.SAMPLE_ORDER, self._seed, self.epoch).permutation(batching.count)
        part = batching.batch_size // batching.processes
        for batch in range(self.first_step * batching.accumulate, batching.steps * batching.accumulate):
            start = batch * batching.batch_size + batching.process * part
            yield [(self.epoch, int(index)) for index in order[start : start + part]]


class AugmentedDataset(Dataset):
    """Training canvases and masks; each is a pure function of (seed, epoch, index)."""

    def __init__(
        self, data: SegmentationDataset, settings: CanvasSettings, augmentation: Augmentation, seed: int
    ) -> None:
        self._data, self._settings, self._augmentation, self._seed = data, settings, augmentation, seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """Canvas (H, W, 3) uint8 and mask (H, W) int32 of (epoch, index)."""
        epoch, index = key
        image, mask = self._data.item(index)
        random = generator(Purpose.AUGMENTATION, self._seed, epoch, index)
        canvas, canvas_mask = training_canvas(image, mask, self._settings, self._augmentation, random)
        return torch.from_numpy(canvas), torch.from_numpy(canvas_mask.astype(np.int32))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvases."""
        return self._settings.size

    @property
    def is_random(self) -> bool:
        """Whether an image looks different in different epochs.

        In a geometry that keeps the frame's size, what exceeds the canvas is cropped at random in any case.
        """
        return self._augmentation != Augmentation() or self._settings.geometry in FRAME_SIZED

    def description(self) -> dict[str, Any]:
        """All that the samples depend on, beside code, in the types of JSON."""
        return {
            "canvas": dataclasses.asdict(self._settings),
            "augmentation": self._augmentation.model_dump(mode="json"),
            "seed": self._seed if self.is_random else None,
            "data": self._data.fingerprint(),
            "images": len(self._data),
        }


class BatchLoader:
    """Collated samples of a data set, a batch for each list of keys; may be iterated again and again.

    Args:
        dataset: samples by key.
        batches: lists of keys, anew for each iteration.
        workers: processes that read samples; 0: this one.
    """

    def __init__(self, dataset: Dataset, batches: Iterable[list[Key]], workers: int) -> None:
        self._loader = DataLoader(
            _ErrorsAsSamples(dataset),
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            worker_init_fn=_prepare_worker,
            # A forked worker would inherit the locks of thread pools whose threads it does not have.
            multiprocessing_context="spawn" if workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Any]:
        """Gives the batches.

        Raises:
            SegmentationError: what the data set raised, as it was, whichever process read the sample.
        """
        for batch in self._loader:
            if isinstance(batch, SegmentationError):
                raise batch
            yield batch


class _ErrorsAsSamples(Dataset):
    """What a worker process raises arrives as a traceback; what it gives arrives as it is."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        try:
            return self._dataset[key]
        except SegmentationError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    """The batch, or the first error among its samples."""
    errors = [sample for sample in samples if isinstance(sample, SegmentationError)]
    return errors[0] if errors else default_collate(samples)


def _prepare_worker(_worker: int) -> None:
    """Leave the other cores to the network, and Ctrl-C to the training process, which ends its workers."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
