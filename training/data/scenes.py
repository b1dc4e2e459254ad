"""The procedural indoor scenes of the demo."""

from __future__ import annotations

import functools
import hashlib
import warnings
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dinov3_seg_ros import scenes
from dinov3_seg_ros.frames.classes import unlabelled_value
from dinov3_seg_ros.support.files import replacing_file
from training.data.base import DataSettings, Split


class ScenesData(DataSettings):
    """Rendered indoor scenes; validation has seeds and textures of its own."""

    name: Literal["scenes"] = "scenes"
    count: Annotated[int, Field(ge=1)] = 2000
    """Number of training scenes."""
    val_count: Annotated[int, Field(ge=1)] = 100
    """Number of validation scenes."""
    size: tuple[int, int] = (480, 640)
    """Height and width of the scenes, pixels."""
    cache: str | None = "runs/.scenes"
    """Folder in which rendered scenes are kept for the next epoch and the next run; null: they are rendered each
    time, as are those for which the disk has no room."""

    def open(self, split: Split) -> ScenesDataset:
        """One split; a scene is rendered when it is first asked for."""
        return ScenesDataset(split, self.count if split == "train" else self.val_count, self.size, self.cache)


class ScenesDataset:
    """See `training.data.base.SegmentationDataset`."""

    def __init__(self, split: Split, count: int, size: tuple[int, int], cache: str | None) -> None:
        self.class_names = list(scenes.CLASS_NAMES)
        self.palette = list(scenes.PALETTE)
        self.ignore_value = unlabelled_value(len(self.class_names))
        self._split, self._count, self._size = split, count, tuple(size)
        self._full = False
        self._folder = None
        if cache is not None:
            height, width = size
            self._folder = Path(cache) / f"{renderer_fingerprint()[:12]}-{height}x{width}" / split

    def __len__(self) -> int:
        return self._count

    def describe(self, index: int) -> str:
        """Split and number of the scene."""
        return f"{self._split} scene {index}"

    def fingerprint(self) -> str:
        """See `SegmentationDataset.fingerprint`."""
        return f"{self._split} scenes of {self._size} by {renderer_fingerprint()}"

    def mask(self, index: int) -> np.ndarray:
        """See `SegmentationDataset.mask`."""
        return self.item(index)[1]

    def item(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationDataset.item`."""
        if self._folder is None:
            return scenes.sample(self._split, index, self._size)
        path = self._folder / f"{index:06d}.npy"
        stacked = _read_cached(path, (*self._size, 4))
        if stacked is None:
            stacked = np.dstack(scenes.sample(self._split, index, self._size))
            self._keep(path, stacked)
        return np.ascontiguousarray(stacked[..., :3]), np.ascontiguousarray(stacked[..., 3])

    def _keep(self, path: Path, stacked: np.ndarray) -> None:
        """Put a scene into the cache, while it takes any."""
        if self._full:
            return
        try:
            with replacing_file(path) as temporary:
                np.save(temporary, stacked)
        except OSError as error:
            # The cache only saves time, and the results may lie on another disk: what was trained so far is worth more.
            self._full = True
            warnings.warn(
                f"no more scenes can be kept in {self._folder} ({error}); those that are not there are rendered each "
                "time. Free some space, or set data.cache to another folder, or to null",
                stacklevel=2,
            )


def _read_cached(path: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The cached scene, or None where there is none that can be read."""
    try:
        stacked = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return stacked if stacked.shape == shape and stacked.dtype == np.uint8 else None


@functools.cache
def renderer_fingerprint() -> str:
    """SHA-256 of the renderer's source: scenes cached by another version of it are not used."""
    digest = hashlib.sha256()
    folder = Path(scenes.__file__).parent
    for source in sorted(folder.rglob("*.py")):
        digest.update(source.relative_to(folder).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()
