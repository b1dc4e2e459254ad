"""Features of a frozen backbone on disk: computed once for each view of an image, used in every epoch, by every head.

Layout, below the folder that the recipe names::

    <key>/key.json                     what the features are of; its hash is the folder's name
    <key>/<view>/<thousands>/<index>   one sample: safetensors (maps as float16, mask as PNG), then a CRC-32

A sample is written under a temporary name and renamed, and one training at a time fills the caches of a folder, so that
together they keep to its bound. What is absent or damaged is computed again when a training starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import Field
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import Dataset

from dinov3_seg_ros.frames import preprocessing
from dinov3_seg_ros.model import backbone
from dinov3_seg_ros.model.normalise import Normalise
from dinov3_seg_ros.support.errors import DatasetError, RecipeError
from dinov3_seg_ros.support.files import locked, replacing_file, write_json
from training import data as datasets
from training.samples import loader, transforms
from training.samples.loader import AugmentedDataset, BatchLoader, Key
from training.support import randomness
from training.support.output import writing
from training.support.section import Section

#: Canvases (B, H, W, 3) uint8 -> the backbone's maps (B, C, h, w).
Extract: TypeAlias = Callable[[Tensor], list[Tensor]]

KEY_FILE = "key.json"

_FORMAT = 1
_SAMPLES_PER_FOLDER = 1000
_CRC_BYTES = 4
_READERS = 8
_MEASURED_MASKS = 4
# A temporary file of this age belongs to a process that was killed: a sample takes no second to write.
_STALE_SECONDS = 3600
# A file takes whole blocks of the disk.
_BLOCK = 4096
_HEADER = 512


class CacheSettings(Section):
    """Whether, and where, features of a frozen backbone are kept."""

    views: Annotated[int, Field(ge=0)] = 0
    """Augmented views of each training image whose features are kept; epochs take them in turn. They are those of the
    first epochs of a training without a cache. 0: no cache. Without augmentation there is but one view."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """What the views are drawn from; null: the recipe's seed. Trainings that share this share the views."""
    folder: str = "runs/.features"
    """Where caches lie. Processes on several machines need one that they share."""
    max_gb: Annotated[float, Field(gt=0)] = 20.0
    """The most that all caches in this folder may take, 10^9 bytes."""


class FeatureCache(Dataset):
    """Training samples by (epoch, index), with the backbone's features in place of canvases.

    Args:
        settings: with at least one view.
        description: all that the features depend on beside samples and code; becomes part of key.json.
        samples: canvases and masks by (view, index).
        map_shapes: (C, h, w) of each map.

    Attributes:
        folder: where the samples lie.
        views: of each image.
    """

    def __init__(
        self,
        settings: CacheSettings,
        description: dict[str, Any],
        samples: AugmentedDataset,
        map_shapes: Sequence[tuple[int, int, int]],
    ) -> None:
        self._samples, self._shapes = samples, [tuple(shape) for shape in map_shapes]
        self.views = settings.views if samples.is_random else 1
        self._description = {
            "format": _FORMAT,
            "code": _code_fingerprint(),
            "samples": samples.description(),
            "maps": self._shapes,
            **description,
        }
        key = hashlib.sha256(json.dumps(self._description, sort_keys=True).encode()).hexdigest()
        self.folder = Path(settings.folder) / key[:16]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: Key) -> tuple[list[Tensor], Tensor]:
        """Maps (C, h, w) float16, and mask (H, W) int32, of (epoch, index).

        Raises:
            DatasetError: they are not there, or damaged.
        """
        epoch, index = key
        path = self._path((epoch % self.views, index))
        content = _read(path)
        try:
            tensors = load(content)
            maps = [tensors[f"map_{number}"] for number in range(len(self._shapes))]
            mask = cv2.imdecode(tensors["mask"].numpy(), cv2.IMREAD_UNCHANGED)
        except (SafetensorError, KeyError, TypeError, cv2.error) as error:
            raise DatasetError(
                f"{path} is absent or damaged; start again with --resume, and it will be computed again"
            ) from error
        return maps, torch.from_numpy(mask.astype(np.int32))

    def missing(self, process: int = 0, processes: int = 1) -> list[Key]:
        """Samples (view, index) that are absent or damaged, of one process's equal share of all."""
        keys = [(view, index) for view in range(self.views) for index in range(len(self))][process::processes]
        with ThreadPoolExecutor(_READERS) as readers:
            contents = readers.map(lambda key: _read(self._path(key)) is not None, keys)
            return [key for key, there in zip(keys, contents, strict=True) if not there]

    def sample_bytes(self) -> int:
        """About how much of the disk one sample takes."""
        indices = np.linspace(0, len(self) - 1, min(_MEASURED_MASKS, len(self))).round().astype(int).tolist()
        masks = [len(_png(self._samples[0, index][1])) for index in indices]
        maps = sum(2 * math.prod(shape) for shape in self._shapes)
        return -(-(maps + max(masks) + _HEADER) // _BLOCK) * _BLOCK

    def fill(self, keys: Sequence[Key], extract: Extract, batch_size: int, workers: int) -> Iterator[int]:
        """Compute and write samples; gives the number of each batch's when they are written.

        Args:
            keys: which samples (view, index).
            extract: the backbone.
            batch_size, workers: of the loader.

        Raises:
            RecipeError: a feature exceeds what float16 can hold.
            OutputError: the cache cannot be written.
            DatasetError: an image cannot be read.
        """
        batches = [list(keys[start : start + batch_size]) for start in range(0, len(keys), batch_size)]
        with writing(self.folder):
            write_json(self.folder / KEY_FILE, self._description)
        for batch, (canvases, masks) in zip(batches, BatchLoader(self._samples, batches, workers), strict=True):
            maps = [feature_map.to("cpu", torch.float16) for feature_map in extract(canvases)]
            if not all(feature_map.isfinite().all() for feature_map in maps):
                raise RecipeError(
                    "the backbone gives features that float16 cannot hold; set cache.views to 0, or backbone."
                    "feature_norm to final"
                )
            with writing(self.folder):
                for row, key in enumerate(batch):
                    self._write(key, [feature_map[row] for feature_map in maps], masks[row])
            yield len(batch)

    def _write(self, key: Key, maps: Sequence[Tensor], mask: Tensor) -> None:
        tensors = {f"map_{number}": feature_map.contiguous() for number, feature_map in enumerate(maps)}
        content = save({**tensors, "mask": torch.from_numpy(_png(mask))})
        # Not flushed to the disk: what a power cut damages is found and computed again.
        with replacing_file(self._path(key), durable=False) as temporary:
            temporary.write_bytes(content + _crc(content))

    def _path(self, key: Key) -> Path:
        view, index = key
        return self.folder / f"{view:03d}" / f"{index // _SAMPLES_PER_FOLDER:04d}" / f"{index:07d}"


def fill_caches(
    caches: Sequence[FeatureCache],
    settings: CacheSettings,
    extract: Extract,
    batch_size: int,
    workers: int,
    accelerator: Accelerator,
    console: Console,
) -> None:
    """Compute what the caches lack, each process its share; says beforehand how much of the disk they take.

    Args:
        caches: those of one training.
        settings: names their folder and its bound.
        extract, batch_size, workers: see `FeatureCache.fill`.
        accelerator: of the processes that share the work.
        console: for people.

    Raises:
        RecipeError: the bound or the disk is too small; nothing has been computed.
        RecipeError, OutputError, DatasetError: see `FeatureCache.fill`.
    """
    caches = list({cache.folder: cache for cache in caches}.values())
    samples = sum(len(cache) * cache.views for cache in caches)
    if not sum(map(len, _missing(caches, accelerator)[1])):
        console.print(f"feature cache: all {samples} samples are there", soft_wrap=True)
        return
    folder = Path(settings.folder)
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(_alone_in(folder, console))
            _remove_stale(folder)
        accelerator.wait_for_everyone()
        # Another training may have computed some of them meanwhile.
        own, everybodys = _missing(caches, accelerator)
        lacking = sum(map(len, everybodys))
        needed = sum(len(keys) * cache.sample_bytes() for cache, keys in zip(caches, everybodys, strict=True))
        present = _check_room(settings, needed)
        console.print(
            f"feature cache: {lacking} of {samples} samples to compute, {_gb(needed)}; all caches in {folder} "
            f"take {_gb(present)} so far, at most {settings.max_gb:g} GB",
            soft_wrap=True,
        )
        accelerator.wait_for_everyone()  # until all have looked how full the disk is
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("computing features", total=sum(map(len, own)))
            for cache, keys in zip(caches, own, strict=True):
                for count in cache.fill(keys, extract, batch_size, workers):
                    progress.advance(task, count)
        accelerator.wait_for_everyone()


def _missing(caches: Sequence[FeatureCache], accelerator: Accelerator) -> tuple[list[list[Key]], list[list[Key]]]:
    """What each cache lacks: of this process's share, and of all processes' together."""
    own = [cache.missing(accelerator.process_index, accelerator.num_processes) for cache in caches]
    return own, [gather_object(keys) for keys in own]


@contextlib.contextmanager
def _alone_in(folder: Path, console: Console) -> Iterator[None]:
    """Hold the lock of a folder of caches, once every other training has let go of it."""
    with writing(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(locked(folder, wait=False))
        except BlockingIOError:
            console.print(f"feature cache: another training is filling {folder}; waiting for it", soft_wrap=True)
            stack.enter_context(locked(folder))
        held = stack.pop_all()
    with held:
        yield


def _check_room(settings: CacheSettings, needed: int) -> int:
    """How many bytes the folder's caches take already; RecipeError where ``needed`` more are too many."""
    folder = Path(settings.folder)
    present = _size_of(folder)
    if needed and present + needed > settings.max_gb * 1e9:
        raise RecipeError(
            f"the feature cache needs {_gb(needed)} and {folder} holds {_gb(present)} already, together more than "
            f"cache.max_gb = {settings.max_gb:g}; raise it (and start again with --resume), lower cache.views, or "
            f"remove caches that are no longer needed (the {KEY_FILE} of each says what it is of)"
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise RecipeError(
            f"the feature cache needs {_gb(needed)} and the disk of {folder} has {_gb(free)} left; lower cache.views, "
            "or set cache.folder to one on another disk"
        )
    return present


def _size_of(folder: Path) -> int:
    """Bytes of all files in a folder, whatever comes and goes meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += Path(place, name).stat().st_size
    return size


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left; nothing else, since the user chooses the folder and may keep more in it."""
    oldest = time.time() - _STALE_SECONDS
    for key in folder.glob(f"*/{KEY_FILE}"):
        for path in key.parent.glob("[0-9][0-9][0-9]/[0-9][0-9][0-9][0-9]/.[0-9]*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _read(path: Path) -> bytes | None:
    """A sample's content, or None where it is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    content, checksum = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
    return content if _crc(content) == checksum else None


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "little")


def _png(mask: Tensor) -> np.ndarray:
    """A mask (H, W) of values below 65536, as the bytes of a PNG, uint8."""
    values = mask.numpy()
    return cv2.imencode(".png", values.astype(np.uint8 if values.max() <= 255 else np.uint16))[1].ravel()


def _code_fingerprint() -> str:
    """SHA-256 of the code that makes canvases, masks and features: what another version of it made is not used."""
    sources = [inspect.getsource(part) for part in (preprocessing, backbone, Normalise, transforms, loader, randomness)]
    sources += [path.read_text(encoding="utf-8") for path in sorted(Path(datasets.__file__).parent.rglob("*.py"))]
    versions = [importlib.metadata.version(package) for package in ("torch", "transformers")]
    return hashlib.sha256("".join([*sources, *versions]).encode()).hexdigest()
