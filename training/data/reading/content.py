"""Reads what files hold, and says of what cannot be read where it is."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dinov3_seg_ros.support.errors import DatasetError
from dinov3_seg_ros.support.json_text import parse_json
from dinov3_seg_ros.support.yaml_text import parse_yaml

Content = TypeVar("Content")

#: What reading a file raises whose content has another form than expected.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)

# Regions of one image take more than the module's own limit, 131,072 characters; a C long has 32 bits on some systems.
_LONGEST_CELL = 2**31 - 1


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}; get it anew, or let this user read it") from error


def read_text(path: Path) -> str:
    """Text of a file, UTF-8 with or without a byte order mark.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}; get it anew, or let this user read it") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError: it cannot be read, or is no JSON.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}; export it anew") from error


def read_csv(path: Path) -> list[list[str]]:
    """Rows of a CSV file that are not empty.

    Raises:
        DatasetError: it cannot be read, or is no CSV.
    """
    csv.field_size_limit(_LONGEST_CELL)
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as CSV: {error}; export it anew") from error


def read_csv_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by the names in its first row; a short row lacks the last of them.

    Raises:
        DatasetError: see `read_csv`.
    """
    names, *rows = read_csv(path) or [[]]
    return [dict(zip(names, row, strict=False)) for row in rows]


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        DatasetError: it cannot be read, is no YAML, or has a key twice.
    """
    try:
        return parse_yaml(read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path} cannot be read as YAML: {error}") from error


def read_once(read: Callable[[Path], Content]) -> Callable[[Path], Content]:
    """Let a function read a file once in a process while that file stays as it is."""

    @functools.cache
    def read_version(path: Path, _modified: int) -> Content:
        return read(path)

    @functools.wraps(read)
    def read_or_remember(path: Path) -> Content:
        return read_version(path, path.stat().st_mtime_ns)

    return read_or_remember


@contextlib.contextmanager
def laid_out_like(form: str, path: Path) -> Iterator[None]:
    """Turn what goes wrong in a ``with`` block when a file has another form than it should into a DatasetError."""
    try:
        yield
    except DAMAGED as error:
        raise DatasetError(f"{path} is not laid out like {form} ({error!r}); export it anew") from error


def as_text(value: Any) -> str:
    """The value of a file's key that must be text.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def as_id(value: object) -> str:
    """An id as text: some tools write some of the numbers as text, or with a point, as pandas does."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def check_ids(listed: Iterable[Mapping[str, Any]], what: str) -> None:
    """Raise ValueError where two entries have one ``id``, as in files that were put together without new ids."""
    counts = Counter(as_id(entry["id"]) for entry in listed)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{counts[twice]} {what} have the id {twice}")
