"""Which images are for training, for validation and for testing."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from dinov3_seg_ros.frames.order import in_order
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.grouping import origins_of
from training.data.reading.paths import split_named
from training.data.reading.protocol import Sample

#: Share of the images that is kept for validation where neither the folder nor the recipe says.
DEFAULT_VAL_FRACTION = 0.2
#: Parts of a cross-validation at most.
MOST_FOLDS = 20

ValFraction: TypeAlias = float | Literal["auto"]


@dataclass(frozen=True)
class Fold:
    """One part of a cross-validation.

    Attributes:
        index: which part is for validation, from 0.
        count: number of parts.
    """

    index: int
    count: int


# A video is cut into so many runs at most, each with so many images for validation at least: where a run ends, images
# of both parts look alike.
_MOST_RUNS = 3
_LEAST_RUN = 10
# On both sides of a run, so many images are left out as its length divided by this; at least one, where others remain.
_RUN_PER_BORDER = 8


def samples_of(
    split: Split,
    samples: Mapping[Split | None, Sequence[Sample]],
    val_fraction: ValFraction,
    group: str = "auto",
    fold: Fold | None = None,
) -> list[Sample]:
    """Samples of one split.

    Args:
        split: which one.
        samples: by the splits that the folder tells apart; under None those of no split.
        val_fraction: share of the training images to keep for validation where the folder has no validation split.
        group: which images stay together then, see `split_samples`.
        fold: divides the images for training and validation anew; those for testing stay what they are.

    Raises:
        DatasetError: there is no such split, or the share is given and not needed.
    """
    named = {name: list(own) for name, own in samples.items() if name is not None and own}
    if fold is not None and split != "test":
        if val_fraction != "auto":
            raise DatasetError("data.folds says which images are for validation: remove data.val_fraction")
        labelled = divided(samples)
        if labelled:
            return fold_samples(labelled, fold, split, group)
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
    return split_samples(pool, DEFAULT_VAL_FRACTION if val_fraction == "auto" else val_fraction, split, group)


def divided(samples: Mapping[Split | None, Sequence[Sample]]) -> list[Sample]:
    """The samples that are divided between training and validation, unless the folder has done so."""
    return [*samples.get("train", ()), *samples.get("val", ())] or list(samples.get(None, ()))


def split_samples(samples: Sequence[Sample], val_fraction: float, split: Split, group: str = "auto") -> list[Sample]:
    """Samples of one split: a share of them, at least one, for validation, and the others for training.

    Versions of one image, and images of one group, stay together. Where one video holds more than half of all images,
    runs of successive frames of every video are kept for validation, and a few frames on both sides of a run are in
    neither part. The split depends on the names of the images alone, so that it is the same on every machine.

    Args:
        samples: all.
        val_fraction: share for validation.
        split: which part to return.
        group: ``auto``: groups by the images' names; ``none``: every image is a group of its own; else the pattern, see
            `grouping.origins_of`.

    Raises:
        DatasetError: no sample is left for training, or the pattern cannot be used.
    """
    held_out, left_out = _held_out(samples, val_fraction, group)
    if split == "train" and len(held_out) + len(left_out) == len(samples):
        raise DatasetError(
            f"data.val_fraction is {val_fraction:g}, which leaves no image of {len(samples)} to train on; lower it, or "
            "add images"
        )
    return _part(samples, split, held_out, left_out)


def fold_samples(samples: Sequence[Sample], fold: Fold, split: Split, group: str = "auto") -> list[Sample]:
    """Samples of one split of a cross-validation.

    Each sample is for validation in one fold, and for training in the others. Groups stay together as in
    `split_samples`; a video that is too large for that is cut into as many runs as there are folds, and a few frames on
    both sides of a run are left out of the training of its fold.

    Args:
        samples: all.
        fold: which one.
        split: ``train`` or ``val``.
        group: see `split_samples`.

    Raises:
        DatasetError: there are fewer images, or groups of the pattern, than folds; or the pattern cannot be used.
    """
    parts = _fold_parts(samples, fold.count, group)
    held_out, left_out = parts[fold.index]
    chosen = _part(samples, split, held_out, left_out)
    if not chosen:
        raise DatasetError(
            f"data.folds is {fold.count}, which leaves fold {fold.index} without {split} images, of {len(samples)}; "
            "lower it, or add images"
        )
    return chosen


def _part(samples: Sequence[Sample], split: Split, held_out: set[int], left_out: set[int]) -> list[Sample]:
    """The samples for training, or those held out for validation; some are in neither part."""
    return [
        sample
        for index, sample in enumerate(samples)
        if (index in held_out) == (split == "val") and index not in left_out
    ]


def _fold_parts(samples: Sequence[Sample], count: int, group: str) -> list[tuple[set[int], set[int]]]:
    """Of each fold, indices of the samples for validation, and of those in neither part."""
    names = _names(samples)
    if group == "none":
        order = sorted(range(len(names)), key=lambda index: _digest(names[index]))
        return [(set(order[fold::count]), set()) for fold in range(count)]
    units = _units(names, group)
    sizes = {name: sum(map(len, own)) for name, own in units.items()}
    if 1 < len(units) < count and group != "auto":
        raise DatasetError(
            f"data.folds is {count}, but data.group makes only {len(units)} groups, which stay whole; lower data.folds"
        )
    fair = len(samples) / count
    # Whole groups go before folds of like size, while every fold gets some.
    largest = fair if len(units) < count else min(2 * fair, len(samples) / 2)
    parts: list[tuple[set[int], set[int]]] = [(set(), set()) for _ in range(count)]
    for name in sorted(units, key=lambda name: (-sizes[name], _digest(name))):
        own = units[name]
        if sizes[name] <= largest or (group != "auto" and len(units) > 1):
            min(parts, key=lambda part: len(part[0]))[0].update(*own)
            continue
        for fold, (chosen, beside) in enumerate(parts):
            start, end = (place * len(own) // count for place in (fold, fold + 1))
            gap = _border(end - start, len(own) - (end - start))
            chosen.update(*own[start:end])
            beside.update(*own[max(start - gap, 0) : start], *own[end : end + gap])
    return parts


def _units(names: Sequence[str], group: str) -> dict[str, list[list[int]]]:
    """By group, the indices of its frames' images, in the order of the frames."""
    groups: dict[str, dict[tuple[str, str], list[int]]] = {}
    for index, origin in enumerate(origins_of(names, None if group == "auto" else group)):
        groups.setdefault(origin.group, {}).setdefault((origin.frame or "", origin.source), []).append(index)
    return {
        name: [frames[place] for place in in_order(sorted(frames), operator.itemgetter(0))]
        for name, frames in groups.items()
    }


def _held_out(samples: Sequence[Sample], val_fraction: float, group: str) -> tuple[set[int], set[int]]:
    """Indices of the samples for validation, and of those in neither part."""
    names, wanted = _names(samples), max(1, round(len(samples) * val_fraction))
    if group == "none":
        return set(sorted(range(len(names)), key=lambda index: _digest(names[index]))[:wanted]), set()
    units = _units(names, group)
    sizes = {name: sum(map(len, own)) for name, own in units.items()}
    if max(sizes.values()) > len(samples) / 2 and (group == "auto" or len(units) == 1):
        # Whole groups would be too coarse: take the same share of each, from its frames in their order.
        parts = [_runs(own, val_fraction) for own in units.values()]
        chosen, borders = ({index for part in parts for index in part[which]} for which in (0, 1))
        return (chosen, borders) if chosen else (set(max(units.values(), key=len)[-1]), set())
    held_out: set[int] = set()
    for name in sorted(units, key=_digest):
        if len(held_out) + sizes[name] / 2 <= wanted:
            held_out.update(*units[name])
    if not held_out:
        smallest = min(units, key=lambda name: (sizes[name], _digest(name)))
        held_out.update(*units[smallest])
    return held_out, set()


def _runs(units: Sequence[Sequence[int]], val_fraction: float) -> tuple[list[int], list[int]]:
    """Indices in runs of successive units, spread over all, that make up a share of them; and those beside the runs."""
    wanted = round(len(units) * val_fraction)
    runs = max(1, min(_MOST_RUNS, wanted // _LEAST_RUN))
    gap = _border(wanted // runs, len(units) - wanted)
    chosen: set[int] = set()
    beside: set[int] = set()
    for run in range(runs):
        end = (run + 1) * len(units) // runs
        start = end - (wanted * (run + 1) // runs - wanted * run // runs)
        chosen.update(range(start, end))
        beside.update(range(max(start - gap, 0), min(end + gap, len(units))))
    return [i for place in chosen for i in units[place]], [i for place in beside - chosen for i in units[place]]


def _border(run: int, others: int) -> int:
    """How many units are left out on each side of a run, of so many others in all."""
    is_enough = run > 0 and others > 2
    return max(run // _RUN_PER_BORDER, 1 if is_enough else 0)


def _names(samples: Sequence[Sample]) -> list[str]:
    """Paths of the images without folders of splits, below the folder that they have in common, without suffix.

    A video that was divided between such folders is one video all the same.
    """
    folders = [Path(*(part for part in sample.image.parent.parts if not split_named(part))) for sample in samples]
    top = os.path.commonpath(folders)
    named = zip(folders, samples, strict=True)
    return [(folder.relative_to(top) / sample.image.stem).as_posix() for folder, sample in named]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
