"""Which images are for training, for validation and for testing."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.reading import Sample

#: Share of the images that is kept for validation where neither the folder nor the recipe says.
DEFAULT_VAL_FRACTION = 0.2

ValFraction: TypeAlias = float | Literal["auto"]


def samples_of(
    split: Split, samples: Mapping[Split | None, Sequence[Sample]], val_fraction: ValFraction
) -> list[Sample]:
    """Samples of one split.

    Args:
        split: which one.
        samples: by the splits that the folder tells apart; under None those of no split.
        val_fraction: share of the training images to keep for validation where the folder has no validation split.

    Raises:
        DatasetError: there is no such split, or the share is given and not needed.
    """
    named = {name: list(own) for name, own in samples.items() if name is not None and own}
    if "val" in named and val_fraction != "auto":
        raise DatasetError(
            "the folder has a validation split of its own: remove data.val_fraction, which is for folders without one"
        )
    if split in named and (split != "train" or "val" in named):
        return named[split]
    pool = named.get("train", list(samples.get(None, ())))
    if split == "test" or "val" in named or not pool:
        known = ", ".join(named) or "none"
        raise DatasetError(f"the folder has no {split} split; its splits are: {known}")
    return split_samples(pool, DEFAULT_VAL_FRACTION if val_fraction == "auto" else val_fraction, split)


def split_samples(samples: Sequence[Sample], val_fraction: float, split: Split) -> list[Sample]:
    """Samples of one split: a share of them, at least one, for validation, and the others for training.

    The split depends on the names of the images alone, so that it is the same on every machine.

    Raises:
        DatasetError: no sample is left for training.
    """
    names = [sample.image.stem for sample in samples]
    if len(set(names)) < len(names):  # sequences that count from 1, or a folder for each image
        top = os.path.commonpath([sample.image.parent for sample in samples])
        names = [sample.image.relative_to(top).with_suffix("").as_posix() for sample in samples]
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    by_hash = [sample for _, sample in sorted(zip(digests, samples, strict=True), key=operator.itemgetter(0))]
    held_out = {sample.image for sample in by_hash[: max(1, round(len(samples) * val_fraction))]}
    if split == "train" and len(held_out) == len(samples):
        raise DatasetError(
            f"data.val_fraction is {val_fraction:g}, which leaves no image of {len(samples)} to train on; lower it, or "
            "add images"
        )
    return [sample for sample in samples if (sample.image in held_out) == (split == "val")]
