"""Batches of augmented training samples, the same for any number of processes and workers."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
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
from training.samples.transforms import SAMPLES_VERSION, Augmentation, CanvasSettings, training_canvas
from training.support.randomness import Purpose, generator

# Number of the draw and index of the image. The number is that of the epoch, but where an image is drawn several times
# in an epoch: then each draw has a number, and so random changes, of its own.
Key: TypeAlias = tuple[int, int]

# From one draw to the next in an epoch. More than there are epochs, and prime, so that with cached features too each
# draw is another view, whatever their number.
_NEXT_DRAW = 1_000_003


@dataclass(frozen=True)
class Batching:
    """How the images of an epoch are divided into batches.

    The last images of an epoch that fill no batch are skipped: BatchNorm over one or two images would disturb training.

    Attributes:
        count: number of images.
        batch_size: images of one batch, over all processes.
        accumulate: batches of one optimizer step.
        steps: optimizer steps of one epoch.
        process, processes: index and number of processes; each takes an equal part of every batch.
    """

    count: int
    batch_size: int
    accumulate: int
    steps: int
    process: int = 0
    processes: int = 1


def share_out(count: int, batch_size: int, accumulate: int = 1, process: int = 0, processes: int = 1) -> Batching:
    """Divide images into batches of ``batch_size``, or of fewer where there are fewer images.

    Raises:
        RecipeError: a batch cannot be divided among the processes.
    """
    if batch_size % processes:
        raise RecipeError(
            f"batch_size is {batch_size}, for {processes} processes; it counts the images of all processes: make it a "
            "multiple of their number"
        )
    if count < processes:
        raise RecipeError(f"there are {count} training images for {processes} processes; start fewer processes")
    batch_size = min(batch_size, count - count % processes)
    accumulate = min(accumulate, count // batch_size)
    return Batching(count, batch_size, accumulate, count // (batch_size * accumulate), process, processes)


def repeat_factors(pixels: np.ndarray, threshold: float) -> np.ndarray:
    """How often each image is drawn, so that rare classes are seen: sqrt(threshold / share) of its rarest class.

    The share of a class is that of the images which show it. An image without a class rarer than ``threshold`` has
    factor 1. This is the repeat factor sampling of Agrim Gupta, Piotr Dollár, Ross Girshick: LVIS: A Dataset for Large
    Vocabulary Instance Segmentation, 2019, arXiv:1908.03195.

    Args:
        pixels: number of pixels of each class in each image, (images, classes).
        threshold: share of images, 0..1; 0 makes every factor 1.

    Returns:
        (images,) float64, at least 1.
    """
    shown = pixels > 0
    shares = shown.mean(0)
    factors = np.sqrt(threshold / np.maximum(shares, 1 / len(pixels)))
    return np.asarray(np.where(shown, factors, 1).max(1, initial=1))


class EpochBatches(Sampler[list[Key]]):
    """Yields one process's part of each batch of an epoch, as keys (draw, index).

    The order depends on seed and epoch alone, so that an epoch can be entered anywhere, and the batches are the same
    for any number of processes. Each key carries the draw, which is the epoch where no image is repeated, because
    worker processes outlive an epoch and learn of it in no other way.

    Args:
        batching: how the epoch is divided.
        seed: of the order.
        factors: how often each image is drawn, (images,), at least 1; see `repeat_factors`. Fractions are rounded up or
            down at random. An epoch has as many samples as without repeats, so that it then leaves out other images.

    Attributes:
        epoch: set it before each pass.
        first_step: optimizer steps of the epoch that are done already.
    """

    def __init__(self, batching: Batching, seed: int, factors: np.ndarray | None = None) -> None:
        self._batching, self._seed, self._factors = batching, seed, factors
        self.epoch, self.first_step = 0, 0

    def __len__(self) -> int:
        return (self._batching.steps - self.first_step) * self._batching.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        batching = self._batching
        keys = self._draws(generator(Purpose.SAMPLE_ORDER, self._seed, self.epoch))
        part = batching.batch_size // batching.processes
        for batch in range(self.first_step * batching.accumulate, batching.steps * batching.accumulate):
            start = batch * batching.batch_size + batching.process * part
            yield keys[start : start + part]

    def _draws(self, random: np.random.Generator) -> list[Key]:
        """Keys of the epoch, in the order of its batches."""
        times = np.ones(self._batching.count, int)
        if self._factors is not None:
            times = np.floor(self._factors + random.random(len(times))).astype(int)
        keys = [(self.epoch + n * _NEXT_DRAW, index) for index, count in enumerate(times) for n in range(count)]
        return [keys[place] for place in random.permutation(len(keys))[: self._batching.count]]


class AugmentedDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Training canvases and masks; each is a pure function of (seed, draw, index).

    Args:
        data: images and masks.
        settings: how an image is laid on the canvas, the network input (H, W, 3) uint8 RGB.
        augmentation: random changes.
        seed: of all random numbers.
    """

    def __init__(
        self, data: SegmentationDataset, settings: CanvasSettings, augmentation: Augmentation, seed: int
    ) -> None:
        self._data, self._settings, self._augmentation, self._seed = data, settings, augmentation, seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """Canvas (H, W, 3) uint8 and mask (H, W) int32 of (draw, index)."""
        draw, index = key
        image, mask = self._data.item(index)
        random = generator(Purpose.AUGMENTATION, self._seed, draw, index)
        canvas, canvas_mask = training_canvas(image, mask, self._settings, self._augmentation, random)
        return torch.from_numpy(canvas), torch.from_numpy(canvas_mask.astype(np.int32))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the canvases."""
        return self._settings.size

    @property
    def is_random(self) -> bool:
        """Whether an image looks different in different draws.

        A geometry that keeps the frame's size crops a frame larger than the canvas at random in any case.
        """
        return self._augmentation != Augmentation() or self._settings.geometry in FRAME_SIZED

    def description(self) -> dict[str, Any]:
        """All that the samples depend on beside the content of the data set, in JSON types."""
        return {
            "version": SAMPLES_VERSION,
            "canvas": dataclasses.asdict(self._settings),
            "augmentation": self._augmentation.model_dump(mode="json"),
            "seed": self._seed if self.is_random else None,
            "images": len(self._data),
        }


class BatchLoader:
    """Collated samples of a data set, a batch for each list of keys; may be iterated several times.

    Args:
        dataset: samples by key.
        batches: lists of keys, read anew for each iteration.
        workers: processes that read samples; 0: this one.
    """

    def __init__(self, dataset: Dataset[Any], batches: Iterable[list[Key]], workers: int) -> None:
        self._loader = DataLoader(
            _ErrorsAsSamples(dataset),
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            worker_init_fn=_prepare_worker,
            # A forked worker would inherit locks of thread pools without their threads.
            multiprocessing_context="spawn" if workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            SegmentationError: the data set's own error, whichever process read the sample.
            RecipeError: a process that reads samples has ended.
        """
        try:
            with _ctrl_c_for_this_process():
                batches = iter(self._loader)
            for batch in batches:
                if isinstance(batch, SegmentationError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RecipeError(
                f"a process that loads data has ended ({str(error).partition('. ')[0]}). If an error of its own stands "
                "above: a program that starts a training needs `if __name__ == '__main__':` before that. Else it "
                "lacked memory, or shared memory in /dev/shm, of which a container has little unless it is started "
                "with --shm-size; lower workers, 0 needs none"
            ) from error


class _ErrorsAsSamples(Dataset[Any]):
    """Returns errors as samples: an error raised in a worker process would arrive as text with a traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        try:
            return self._dataset[key]
        except SegmentationError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    """Stack samples to a batch, or return the first error among them."""
    errors = [sample for sample in samples if isinstance(sample, SegmentationError)]
    return errors[0] if errors else default_collate(samples)


@contextlib.contextmanager
def _ctrl_c_for_this_process() -> Iterator[None]:
    """Let processes that start within the ``with`` block ignore Ctrl-C, which a terminal sends to all.

    `_prepare_worker` would come too late: a process imports for seconds before it is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _prepare_worker(_worker: int) -> None:
    """Use one core, since the network needs the others, and leave Ctrl-C to the training process."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
