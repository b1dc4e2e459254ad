"""Features of a frozen backbone on disk: computed once for each view of an image, read in every epoch, by every head.

Layout, below the folder that the recipe names::

    <key>/key.json                     what the features are of; its hash is the folder's name
    <key>/<view>/<thousands>/<index>   one sample: safetensors (maps as float16, mask as PNG), then a CRC-32

A sample holds its canvas too, as PNG, once an image-guided head was trained on it. Other heads read the same samples.

The key is made of content: the files of the data set, the backbone's weights, the settings of the samples, and the
versions of how samples are made and stored. Paths, time stamps, source text and the versions of libraries are no part
of it: whether the installed libraries still compute the same is found out by computing one stored sample again.

A sample is written under a temporary name and renamed. `cache_filling` computes absent and damaged samples.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import Dataset

from dinov3_seg_ros.support.errors import DatasetError, RecipeError
from dinov3_seg_ros.support.files import replacing_file, sha256_of_json, write_json
from training.samples.loader import AugmentedDataset, BatchLoader, Key
from training.support.section import Folder, Section
from training.support.writing import writing

#: From canvases (B, H, W, 3) uint8 RGB to the backbone's maps (B, C, h, w).
Extract: TypeAlias = Callable[[Tensor], list[Tensor]]

KEY_FILE = "key.json"

#: Version of the files. Raise it when their layout changes.
FORMAT_VERSION = 1
#: Number of hexadecimal digits in the name of a cache.
KEY_LENGTH = 16
_SAMPLES_PER_FOLDER = 1000
_CRC_BYTES = 4
_READERS = 8
_MEASURED_SAMPLES = 4
# Fast to write; the size hardly differs.
_FAST_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)
#: Suffix of an outdated cache while it is removed.
DISCARDED = ".discarded"
# Largest distance of two maps of one sample, as a share of their length. For a ViT-S+/16, bf16 in place of fp32 makes
# 0.004 of it, and another normalisation 0.76.
_SAME_FEATURES = 0.05
# A file takes whole blocks of the disk.
_BLOCK = 4096
_HEADER = 512


class CacheSettings(Section):
    """Whether, and where, features of a frozen backbone are kept on disk."""

    views: Annotated[int, Field(ge=0)] = 0
    """Number of augmented views of each training image whose features are kept; epochs take them in turn. They are the
    views of the first epochs of a training without a cache. 0: no cache. Without augmentation there is one view."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the views; null: the recipe's seed. Trainings with the same seed here share the views."""
    folder: Folder = "runs/.features"
    """Folder of the caches. Processes on several machines need a shared one."""
    max_gb: Annotated[float, Field(gt=0)] = 20.0
    """The most that all caches in this folder may take, 10^9 bytes."""


class _Sample(NamedTuple):
    """What is stored of one sample; without its canvas where no image-guided head asked for it."""

    maps: list[Tensor]
    mask: Tensor
    canvas: Tensor | None


class FeatureCache(Dataset[tuple[list[Tensor], Tensor]]):
    """Training samples by (draw, index), with the backbone's features in place of canvases, or beside them.

    Args:
        settings: with at least one view.
        description: all that the features depend on beside the samples' settings, such as the identity of the backbone
            and the digest of the data set; JSON types; becomes part of key.json.
        samples: canvases and masks by (view, index).
        map_shapes: (C, h, w) of each map.
        with_canvases: whether samples have their canvases too, for an image-guided head.

    Attributes:
        folder: folder of the samples.
        views: number of views of each image.
    """

    def __init__(
        self,
        settings: CacheSettings,
        description: dict[str, Any],
        samples: AugmentedDataset,
        map_shapes: Sequence[tuple[int, int, int]],
        with_canvases: bool = False,
    ) -> None:
        self._with_canvases = with_canvases
        self._samples, self._shapes = samples, [tuple(shape) for shape in map_shapes]
        self.views = settings.views if samples.is_random else 1
        self._description = {
            "format": FORMAT_VERSION,
            "samples": samples.description(),
            "maps": self._shapes,
            **description,
        }
        self.folder = Path(settings.folder) / sha256_of_json(self._description)[:KEY_LENGTH]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: Key) -> tuple[list[Tensor], Tensor]:
        """Maps (C, h, w) float16, with canvases also the canvas (H, W, 3) uint8; and mask (H, W) int32.

        Args:
            key: number of the draw, and index.

        Raises:
            DatasetError: the sample is absent or damaged.
        """
        draw, index = key
        sample = self._load((draw % self.views, index))
        if sample is None or not self._is_complete(sample):
            path = self._path((draw % self.views, index))
            raise DatasetError(f"{path} is absent or damaged; start again with --resume to compute it again")
        return [*sample.maps, *([] if sample.canvas is None else [sample.canvas])], sample.mask

    def is_outdated(self, extract: Extract) -> bool:
        """Whether a stored sample differs from the same sample computed now; False where none is stored.

        The first stored sample is compared, since all were computed by one version of the libraries.
        """
        stored = next((key for key in self._keys() if _read(self._path(key)) is not None), None)
        if stored is None:
            return False
        sample = self._load(stored)
        if sample is None:  # whole, but of other content than this cache writes
            return True
        canvas, mask = self._samples[stored]
        if not torch.equal(sample.mask, mask) or not (sample.canvas is None or torch.equal(sample.canvas, canvas)):
            return True
        computed = [feature_map[0].float().cpu() for feature_map in extract(canvas[None])]
        return any(
            before.shape != now.shape or not (before.float() - now).norm() <= _SAME_FEATURES * now.norm()
            for before, now in zip(sample.maps, computed, strict=True)
        )

    def discard(self) -> None:
        """Remove all samples. The folder is renamed first, so that old and new samples never mix."""
        aside = self.folder.with_name(f".{self.folder.name}{DISCARDED}")
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def missing(self, process: int = 0, processes: int = 1) -> list[Key]:
        """Keys (view, index) of absent, damaged and incomplete samples in one process's equal share of all."""
        keys = self._keys()[process::processes]
        with ThreadPoolExecutor(_READERS) as readers:
            samples = readers.map(self._load, keys)
            return [
                key
                for key, sample in zip(keys, samples, strict=True)
                if sample is None or not self._is_complete(sample)
            ]

    def sample_bytes(self) -> int:
        """About how much of the disk one sample takes, bytes."""
        indices = np.linspace(0, len(self) - 1, min(_MEASURED_SAMPLES, len(self))).round().astype(int).tolist()
        pictures = []
        for index in indices:
            canvas, mask = self._samples[0, index]
            pictures.append(len(_png(mask)) + (len(_png_of_canvas(canvas)) if self._with_canvases else 0))
        maps = sum(2 * math.prod(shape) for shape in self._shapes)
        return -(-(maps + max(pictures) + _HEADER) // _BLOCK) * _BLOCK

    def fill(self, keys: Sequence[Key], extract: Extract, batch_size: int, workers: int) -> Iterator[int]:
        """Compute and write samples; yields the number of samples of each batch once they are written.

        Args:
            keys: samples (view, index) to compute.
            extract: the backbone.
            batch_size, workers: of the loader.

        Raises:
            RecipeError: a feature is too large for float16.
            OutputError: the cache cannot be written.
            DatasetError: an image cannot be read.
        """
        batches = [list(keys[start : start + batch_size]) for start in range(0, len(keys), batch_size)]
        with writing(self.folder):
            write_json(self.folder / KEY_FILE, self._description)
        for batch, (canvases, masks) in zip(batches, BatchLoader(self._samples, batches, workers), strict=True):
            maps = self._maps(batch, canvases, extract)
            with writing(self.folder):
                for row, key in enumerate(batch):
                    self._write(key, maps[row], masks[row], canvases[row])
            yield len(batch)

    def _maps(self, batch: Sequence[Key], canvases: Tensor, extract: Extract) -> list[list[Tensor]]:
        """The maps of each sample of a batch: those on disk where only the canvas is missing, else computed."""
        samples = [self._load(key) for key in batch]
        rows = [row for row, sample in enumerate(samples) if sample is None]
        maps = [sample.maps if sample is not None else [] for sample in samples]
        if not rows:
            return maps
        computed = [feature_map.to("cpu", torch.float16) for feature_map in extract(canvases[rows])]
        if not all(feature_map.isfinite().all() for feature_map in computed):
            raise RecipeError(
                "the backbone gives features that are too large for float16; set cache.views to 0, or "
                "backbone.feature_norm to final"
            )
        for place, row in enumerate(rows):
            maps[row] = [feature_map[place] for feature_map in computed]
        return maps

    def _write(self, key: Key, maps: Sequence[Tensor], mask: Tensor, canvas: Tensor) -> None:
        tensors = {f"map_{number}": feature_map.contiguous() for number, feature_map in enumerate(maps)}
        tensors["mask"] = torch.from_numpy(_png(mask))
        if self._with_canvases:
            tensors["canvas"] = torch.from_numpy(_png_of_canvas(canvas))
        content = save(tensors)
        # Not flushed to the disk: a sample that a power cut damages is found and computed again.
        with replacing_file(self._path(key), durable=False) as temporary:
            temporary.write_bytes(content + _crc(content))

    def _load(self, key: Key) -> _Sample | None:
        """The sample of (view, index), or None where it is absent or damaged, or has other content than is written."""
        try:
            tensors = load(_read(self._path(key)) or b"")
            maps = [tensors[f"map_{number}"] for number in range(len(self._shapes))]
            canvas = None
            if "canvas" in tensors and self._with_canvases:
                canvas = torch.from_numpy(cv2.cvtColor(_decoded(tensors["canvas"]), cv2.COLOR_BGR2RGB))
            return _Sample(maps, torch.from_numpy(_decoded(tensors["mask"]).astype(np.int32)), canvas)
        except (SafetensorError, KeyError, ValueError, cv2.error):
            return None

    def _is_complete(self, sample: _Sample) -> bool:
        return sample.canvas is not None or not self._with_canvases

    def _keys(self) -> list[Key]:
        return [(view, index) for view in range(self.views) for index in range(len(self))]

    def _path(self, key: Key) -> Path:
        view, index = key
        return self.folder / f"{view:03d}" / f"{index // _SAMPLES_PER_FOLDER:04d}" / f"{index:07d}"


def _read(path: Path) -> bytes | None:
    """Content of a sample's file, or None where the file is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    content, checksum = content[:-_CRC_BYTES], content[-_CRC_BYTES:]
    return content if _crc(content) == checksum else None


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "little")


def _png_of_canvas(canvas: Tensor) -> np.ndarray:
    """Encode a canvas (H, W, 3) uint8 RGB as PNG, without loss; the bytes, uint8."""
    return cv2.imencode(".png", cv2.cvtColor(canvas.numpy(), cv2.COLOR_RGB2BGR), _FAST_PNG)[1].ravel()


def _decoded(png: Tensor) -> np.ndarray:
    """The pixels of a PNG, given as its bytes; BGR where it has colours.

    Raises:
        ValueError: it is no PNG.
    """
    pixels = cv2.imdecode(png.numpy(), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("no PNG")
    return pixels


def _png(mask: Tensor) -> np.ndarray:
    """Encode a mask (H, W) of values below 65536 as PNG; the bytes, uint8."""
    values = mask.numpy()
    return cv2.imencode(".png", values.astype(np.uint8 if values.max() <= 255 else np.uint16))[1].ravel()
