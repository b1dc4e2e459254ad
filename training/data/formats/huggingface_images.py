"""Hugging Face's image folder: metadata.jsonl (or .csv, .parquet) names the mask of each image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from dinov3_seg_ros.support.errors import DatasetError
from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.reading import tables
from training.data.reading.pairing import role_of_words
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, read_mask_file
from training.data.reading.tree import Tree, as_text, laid_out_like, parent, read_csv_table, read_text, split_of

_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_IMAGE = "file_name"
_IMAGE_COLUMNS = (_IMAGE, "image_file_name", "image")


class HuggingFaceImages(Format):
    """``train/metadata.jsonl`` with ``file_name`` and a column that names the mask, such as ``mask_file_name``.

    Names stand in id2label.json or in another list of classes.
    """

    name = "huggingface_images"

    def detect(self, tree: Tree) -> Match | None:
        """See `Format.detect`."""
        found = _columns(tree)
        return Match(Sure.CERTAINLY, f"{found.file} names a mask for each image in {found.mask}") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        samples: dict[Split | None, list[Sample]] = {}
        found = _columns(tree)
        if found is None:
            raise DatasetError(f"{tree.root} holds no metadata.jsonl that names a mask for each image")
        columns = (found.image, found.mask)
        for name in tree.named(*_FILES):
            rows = _rows(tree, name)
            if not any(isinstance(row, Mapping) and row.keys() >= {*columns} for row in rows):
                continue  # it describes something else
            for row in rows:
                with laid_out_like("an image folder's metadata", tree.path(name)):
                    files = [f"{parent(name)}/{as_text(row[column])}".strip("/") for column in columns]
                image, mask = (tree.path(tree.image_at(file) or file) for file in files)
                samples.setdefault(split_of(name) or split_of(files[0]), []).append(Sample(image, mask))
        return LabelledFolder(find_classes(tree), samples, read_mask_file, masks=True)


def _rows(tree: Tree, name: str) -> list[Mapping[str, Any]]:
    """The rows of a file of metadata, which other tools may have written.

    Raises:
        DatasetError: it cannot be read.
    """
    if name.endswith(tables.PARQUET):
        return tables.read_rows(tree.path(name))
    if name.endswith(".csv"):
        return list(read_csv_table(tree.path(name)))
    lines = read_text(tree.path(name)).splitlines()
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise DatasetError(f"{tree.path(name)} cannot be read as lines of JSON: {error}") from error


class _Columns(NamedTuple):
    """The columns of images and of masks, and the file of metadata that tells them."""

    file: str
    image: str
    mask: str


def _columns(tree: Tree) -> _Columns | None:
    """The columns of all metadata, by a row whose two files are here; columns that are called masks go first."""
    found = None
    for name in tree.named(*_FILES):
        for row in _rows(tree, name):
            columns = _columns_of(tree, name, row)
            if columns is not None and role_of_words(columns.mask) == "mask":
                return columns
            found = found or columns
    return found


def _columns_of(tree: Tree, name: str, row: object) -> _Columns | None:
    """The columns of a row that name an image and another picture that are here."""
    if not isinstance(row, Mapping):
        return None
    files = [key for key, value in row.items() if isinstance(value, str)]
    existing = [key for key in files if tree.image_at(f"{parent(name)}/{row[key]}".strip("/"))]
    image = next((key for key in _IMAGE_COLUMNS if key in existing), None)
    others = [key for key in existing if key != image and role_of_words(key) != "other"]
    mask = min(others, key=lambda key: role_of_words(key) != "mask", default=None)
    return None if image is None or mask is None else _Columns(name, image, mask)
