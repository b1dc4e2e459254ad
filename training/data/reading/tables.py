"""Tables of images in Parquet and Arrow files, as Hugging Face's `datasets` writes them; needs pyarrow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinov3_seg_ros.support.errors import DatasetError, ItemError
from dinov3_seg_ros.support.files import cache_folder, replacing_file
from dinov3_seg_ros.support.installation import how_to_install
from training.data.contents import digest_files

try:
    import pyarrow
    import pyarrow.compute
    import pyarrow.ipc
    import pyarrow.parquet
except ImportError:
    pyarrow = None

PARQUET = ".parquet"
ARROW = ".arrow"
_CONTENT, _PATH = "bytes", "path"
_BATCH_ROWS = 64


def is_available() -> bool:
    """Whether pyarrow is installed."""
    return pyarrow is not None


def read_schema(path: Path) -> Any:
    """Names and types of a file's columns, a `pyarrow.Schema`.

    Raises:
        DatasetError: the file cannot be read, or pyarrow is not installed.
    """
    _require(path)
    try:
        return pyarrow.parquet.read_schema(path) if path.suffix == PARQUET else _open_arrow(path).schema
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def holds_pictures(kind: Any) -> bool:
    """Whether a column of a type holds images: structures of ``bytes`` and ``path``."""
    return bool(pyarrow.types.is_struct(kind)) and {_CONTENT, _PATH} <= {field.name for field in kind}


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """All rows of a small Parquet file.

    Raises:
        DatasetError: see `read_schema`.
    """
    _require(path)
    try:
        rows: list[Mapping[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error
    return rows


def picture_paths(path: Path, column: str) -> list[str | None]:
    """The path that each image of a column had when the file was written; None where it had none.

    Raises:
        DatasetError: see `read_schema`.
    """
    paths: list[str | None] = pyarrow.compute.struct_field(_table(path).column(column), _PATH).to_pylist()
    return paths


def read_picture(path: Path, column: str, row: int, size: int = -1) -> bytes:
    """The image file in a row, or its first ``size`` bytes.

    Raises:
        ItemError: there is none.
        DatasetError: see `read_schema`.
    """
    cell = _table(path).column(column)[row]
    content = cell[_CONTENT].as_buffer() if cell.is_valid else None  # of a file in memory: only what is used is read
    if content is not None:
        found: bytes = (content if size < 0 else content.slice(0, min(size, content.size))).to_pybytes()
        return found
    named = cell[_PATH].as_py() if cell.is_valid else None
    try:
        with (path.parent / (named or "")).open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise ItemError(
            f"{path} holds no image in row {row}, column '{column}', but the path '{named}', where none is; save the "
            "data set with its images",
            "unreadable file",
        ) from error


def _table(path: Path) -> Any:
    """The table of a file, opened once in a process while it stays as it is; its rows are read from the disk."""
    _require(path)
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


@functools.lru_cache(maxsize=512)
def _opened(path: Path, _modified: int) -> Any:
    table = _open_arrow(_as_arrow(path) if path.suffix == PARQUET else path).read_all()
    table.validate(full=True)  # damaged offsets would crash the process; the images themselves are not read
    return table


def _open_arrow(path: Path) -> Any:
    """The reader of an Arrow file of either kind; it maps the file into memory."""
    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source)


def _as_arrow(path: Path) -> Path:
    """An Arrow file of the same rows in the user's cache folder, since a row of a Parquet file cannot be read alone."""
    target = cache_folder("parquet") / f"{digest_files(path.parent, [path])[path.name]}{ARROW}"
    if target.exists():
        return target
    rows = pyarrow.parquet.ParquetFile(path)
    try:
        with (
            replacing_file(target) as temporary,
            pyarrow.OSFile(str(temporary), "wb") as sink,
            pyarrow.ipc.new_stream(sink, rows.schema_arrow) as writer,
        ):
            for batch in rows.iter_batches(_BATCH_ROWS):
                writer.write_batch(batch)
    except OSError as error:
        if error.errno is None:  # an error of the file that is read, not of the disk
            raise
        raise DatasetError(
            f"{path} cannot be copied to {target.parent} ({error}); free some space there, or set XDG_CACHE_HOME to "
            "another disk"
        ) from error
    return target


def _require(path: Path) -> None:
    if not is_available():
        raise DatasetError(
            f"{path.name} can only be read with pyarrow: {how_to_install('parquet')}, or export the data set as image "
            "files"
        )


def _unreadable(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} cannot be read ({error}); download or export it anew")
