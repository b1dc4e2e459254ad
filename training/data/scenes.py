"""The data set of synthetic indoor scenes (`dinov3_seg_ros.scenes`), on which the demo trains."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dinov3_seg_ros import scenes
from dinov3_seg_ros.frames.classes import MaskValues, unlabelled_value
from dinov3_seg_ros.support.files import replacing_file
from training.data.base import DataSettings, Split
from training.data.contents import Contents
from training.support.section import Folder


class ScenesData(DataSettings):
    """Rendered indoor scenes; validation scenes have other seeds and textures than training scenes."""

    name: Literal["scenes"] = "scenes"
    count: Annotated[int, Field(ge=1)] = 2000
    """Number of training scenes."""
    val_count: Annotated[int, Field(ge=1)] = 100
    """Number of validation scenes."""
    size: tuple[int, int] = (480, 640)
    """Height and width of the scenes, pixels."""
    cache: Folder | None = "runs/.scenes"
    """Folder that keeps rendered scenes for the next epoch and the next run; null: scenes are rendered each time, as
    they are when the disk is full."""

    def open(self, split: Split) -> ScenesDataset:
        """One split; a scene is rendered when it is first asked for."""
        return ScenesDataset(split, self.count if split == "train" else self.val_count, self.size, self.cache)


class ScenesDataset:
    """Scenes of one split; see `training.data.base.SegmentationDataset`.

    Args:
        split: see `ScenesData.open`.
        count: number of scenes.
        size: (height, width) of the scenes, pixels.
        cache: folder that keeps rendered scenes, or None.
    """

    def __init__(self, split: Split, count: int, size: tuple[int, int], cache: str | None) -> None:
        self.class_names = list(scenes.CLASS_NAMES)
        self.palette = list(scenes.PALETTE)
        self.ignore_value = unlabelled_value(len(self.class_names))
        self.mask_values: MaskValues | None = None
        self._split, self._count, self._size = split, count, size
        self._full = False
        self._folder: Path | None = None
        if cache is not None:
            height, width = size
            self._folder = Path(cache) / f"{scenes.RENDERER_VERSION}-{height}x{width}" / split

    def __len__(self) -> int:
        return self._count

    def describe(self, index: int) -> str:
        """Split and number of the scene."""
        return f"{self._split} scene {index}"

    def contents(self) -> Contents:
        """See `SegmentationDataset.contents`; scenes follow from these settings alone."""
        settings = {
            "renderer": scenes.RENDERER_VERSION,
            "split": self._split,
            "count": self._count,
            "size": self._size,
        }
        return Contents(settings, {})

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
        """Write a scene to the cache, unless the cache failed before."""
        if self._full:
            return
        try:
            with replacing_file(path) as temporary:
                np.save(temporary, stacked)
        except OSError as error:
            # The cache only saves time, and the results may lie on another disk: the training so far is worth more.
            self._full = True
            warnings.warn(
                f"{self._folder} cannot keep more scenes ({error}); scenes that it lacks are rendered each time. Free "
                "some space, or set data.cache to another folder, or to null",
                stacklevel=2,
            )


def _read_cached(path: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The cached scene, (H, W, 4) uint8: RGB and mask; None where it is absent or damaged."""
    try:
        stacked = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return stacked if stacked.shape == shape and stacked.dtype == np.uint8 else None
