"""Hugging Face's image folder: metadata.jsonl (or .csv, .parquet) names the mask of each image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.json_text import parse_json
from training.data.base import Split
from training.data.classes.lists import find_classes
from training.data.reading import tables
from training.data.reading.content import as_text, laid_out_like, read_csv_table, read_text
from training.data.reading.pairing import role_of_words
from training.data.reading.paths import parent, split_of
from training.data.reading.protocol import Format, LabelledFolder, Match, Patterns, Sample, Sure, read_mask_file
from training.data.reading.tree import Tree

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
        found = _columns(tree, tree.named(*_FILES))
        return Match(Sure.CERTAINLY, f"{found.file} names a mask for each image in {found.mask}") if found else None

    def open(self, tree: Tree, patterns: Patterns) -> LabelledFolder:
        """See `Format.open`."""
        samples: dict[Split | None, list[Sample]] = {}
        files = tree.named(*_FILES)
        of_all = _columns(tree, files)
        if of_all is None:
            raise DatasetError(f"{tree.root} holds no metadata.jsonl that names a mask for each image")
        for name in files:
            rows, own = _rows(tree, name), _columns(tree, [name])
            found = of_all if own is None or (of_all.is_sure and not own.is_sure) else own
            columns = (found.image, found.mask)
            if not any(isinstance(row, Mapping) and row.keys() >= {*columns} for row in rows):
                continue  # it describes something else
            for row in rows:
                with laid_out_like("an image folder's metadata", tree.path(name)):
                    paths = [f"{parent(name)}/{as_text(row[column])}".strip("/") for column in columns]
                image, mask = (tree.path(tree.image_at(path) or path) for path in paths)
                samples.setdefault(split_of(name) or split_of(paths[0]), []).append(Sample(image, mask))
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
    lines = read_text(tree.path(name)).split("\n")  # texts in JSON may hold other ends of lines
    try:
        return [parse_json(line) for line in lines if line.strip()]
    except ValueError as error:
        raise DatasetError(f"{tree.path(name)} cannot be read as lines of JSON: {error}") from error


class _Columns(NamedTuple):
    """The columns of images and of masks, and the file of metadata that tells them."""

    file: str
    image: str
    mask: str

    @property
    def is_sure(self) -> bool:
        """Whether the column of masks is called so."""
        return role_of_words(self.mask) == "mask"


def _columns(tree: Tree, files: Iterable[str]) -> _Columns | None:
    """The columns of files of metadata, by a row whose two files are here; columns that are called masks go first."""
    found = None
    for name in files:
        for row in _rows(tree, name):
            columns = _columns_of(tree, name, row)
            if columns is not None and columns.is_sure:
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
