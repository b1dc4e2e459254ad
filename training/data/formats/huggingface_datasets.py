"""Data sets of Hugging Face's `datasets`: Parquet files, and the folders of save_to_disk."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

from dinov3_seg_ros.frames.image_files import MaskPixels, StoredImage, read_mask
from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.reading import tables
from training.data.reading.pairing import role_of_words
from training.data.reading.paths import split_named, split_of, stem
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure
from training.data.reading.tree import Tree

# What `datasets` keeps beside the data of its own.
_CACHES = "cache-"


class HuggingFaceDatasets(Format):
    """``data/train-00000-of-00001.parquet``, or ``train/data-00000-of-00001.arrow``, with columns of images and masks.

    ``data.images`` and ``data.masks`` name the columns where their own names do not tell. Names of the classes stand in
    id2label.json or in another list of classes.
    """

    name = "huggingface_datasets"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        names = _tables(tree)
        if not names:
            return None
        if not tables.is_available():
            return None if tree.images else Match(Sure.PROBABLY, f"{names[0]} is a table")
        images, masks = _roles(tables.read_schema(tree.path(names[0])))
        if not images or not masks:
            return None
        return Match(Sure.CERTAINLY, f"{names[0]} has the columns {images[0]} and {masks[0]}")

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        samples: dict[Split | None, list[Sample]] = {}
        column_of: dict[str, str] = {}
        rows_in: Counter[Path] = Counter()
        for name in _tables(tree):
            path = tree.path(name)
            images, masks = _chosen(tables.read_schema(path), patterns, path)
            column_of[str(path)] = masks
            folder = path.parent / path.stem.partition("-")[0]  # the same for all parts of a split
            for row, image in enumerate(_names(path, images, rows_in[folder])):
                content = functools.partial(tables.read_picture, path, images, row)
                samples.setdefault(_split(name), []).append(Sample(folder / image, path, row, content))
                rows_in[folder] += 1
        if not samples:
            raise DatasetError(f"{tree.root} holds no table of images (.parquet, .arrow)")
        return LabelledFolder(find_classes(tree), samples, _Masks(column_of), masks=True)


class _Masks:
    """Reads the mask in a row; the entry of a sample is its number."""

    def __init__(self, column_of: dict[str, str]) -> None:
        self._column_of = column_of

    def __call__(self, sample: Sample) -> MaskPixels:
        path, column = sample.labels, self._column_of[str(sample.labels)]
        content = tables.read_picture(path, column, sample.entry)
        return read_mask(StoredImage(content, f"{column} of {sample.image}"))


def _tables(tree: Tree) -> list[str]:
    return [
        name
        for name in tree.with_suffix(tables.PARQUET, tables.ARROW)
        if not name.rpartition("/")[2].startswith((_CACHES, "metadata."))
    ]


def _roles(schema: Any) -> tuple[list[str], list[str]]:
    """Columns of images, the likeliest first, and of masks."""
    role_of = {field.name: role_of_words(field.name) for field in schema if tables.holds_pictures(field.type)}
    masks = [name for name, role in role_of.items() if role == "mask"]
    images = [name for name, role in role_of.items() if role in ("image", None)]
    return sorted(images, key=lambda name: role_of[name] != "image"), masks


def _chosen(schema: Any, patterns: Patterns, path: Path) -> tuple[str, str]:
    """The column of images and that of masks."""
    columns = [field.name for field in schema if tables.holds_pictures(field.type)]
    for key, column in patterns._asdict().items():
        if column is not None and column not in columns:
            raise DatasetError(f"data.{key} is '{column}', but the columns of images in {path} are: {columns}")
    images, masks = _roles(schema)
    image, mask = patterns.images or next(iter(images), None), patterns.masks or next(iter(masks), None)
    if image is None or mask is None or (patterns.masks is None and len(masks) > 1):
        raise DatasetError(
            f"{path} has the columns of images {columns}; set data.images and data.masks to the names of two of them"
        )
    return image, mask


def _names(path: Path, column: str, first: int) -> list[str]:
    """A name for each row: its image's own file name, or its number, from ``first`` on."""
    names = [Path(named).name if named else "" for named in tables.picture_paths(path, column)]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{row:06d}" for row in range(first, first + len(names))]


def _split(name: str) -> Split | None:
    """Parquet files are named by their split, such as train-00000-of-00001; those of save_to_disk by their folder."""
    return split_named(stem(name.rpartition("/")[2]).partition("-")[0]) or split_of(name)
