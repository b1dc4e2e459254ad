"""Writing results: holds a folder that is free, and turns failures into one clear message."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dinov3_seg_ros.support.command_line import CommandParser
from dinov3_seg_ros.support.errors import OutputError
from dinov3_seg_ros.support.files import locked


def add_output(parser: CommandParser, default: str) -> None:
    """Add the folder that a command writes to; see `new_folder`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(default),
        metavar="FOLDER",
        help="must be new or empty (default: %(default)s)",
    )


def check_free(folder: Path, option: str) -> None:
    """Raise OutputError unless ``folder`` does not exist or is empty; ``option`` is where the user chooses another."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} exists already and is not an empty folder; nothing in it was touched. Choose another with "
            f"{option}, or remove it"
        )


@contextlib.contextmanager
def only_writer(folder: Path, option: str = "--output") -> Iterator[None]:
    """Hold a folder for one command, which makes it. Folders that were made and stay empty are removed.

    Args:
        folder: may exist.
        option: where the user chooses another folder.

    Raises:
        OutputError: another process holds the folder, or it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder):
            real = Path(os.path.realpath(folder))
            made = [path for path in (real, *real.parents) if not path.exists()]
            real.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(real, wait=False))
            except BlockingIOError as error:
                raise OutputError(
                    f"another process writes to {folder}; wait for its end, or choose another with {option}"
                ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it holds something
                for path in made:
                    path.rmdir()


@contextlib.contextmanager
def new_folder(folder: Path, option: str = "--output") -> Iterator[None]:
    """Hold a folder that must be new or empty for one command, see `only_writer`.

    Raises:
        OutputError: it holds something; or see `only_writer`.
    """
    check_free(folder, option)
    with only_writer(folder, option):
        check_free(folder, option)  # another process may have ended meanwhile
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn failures to write ``path`` into an OutputError; the writer must replace ``path`` atomically."""
    existed = os.path.exists(path)
    try:
        yield
    except (OSError, SafetensorError) as error:
        unchanged = "; its earlier content is unchanged" if existed else ""
        raise OutputError(
            f"{path} cannot be written ({error}){unchanged}. Free some space, or choose another folder"
        ) from error


def save_with_torch(content: Any, path: Path) -> None:
    """Write a file with `torch.save`, not atomically.

    Raises:
        OSError: the file cannot be written; torch itself would raise RuntimeError for a full disk.
    """
    import torch

    with open(path, "wb") as handle:
        try:
            torch.save(content, handle)
        except RuntimeError as error:
            raise OSError(str(error)) from error
