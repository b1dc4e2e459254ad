"""What execution providers compile of a graph, kept on disk for later starts.

Each session has a folder in `store_folder`, named by the SHA-256 of all that the compiled graph depends on. The
provider writes into it whatever it likes; `RECORD_FILE` holds the SHA-256 of each file. A provider is never given a
file that differs from its record: some load a damaged one without a word, or crash.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dinov3_seg_ros.support.files import (
    cache_folder,
    locked,
    locked_if_possible,
    sha256_of_file,
    sha256_of_json,
    write_json,
)

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

RECORD_FILE = "record.json"


def store_folder() -> Path:
    """Where compiled graphs are kept: the folder ``graphs`` of the user's caches."""
    return cache_folder("graphs")


class GraphCache:
    """The folder of one compiled graph.

    Args:
        built_for: all that the compiled graph depends on.
        grows: whether the provider changes files that it wrote at earlier starts.

    Attributes:
        folder: where the provider reads and writes; None while it may not, and where the store cannot be written.
        was_found: whether the folder had content when it was opened.
    """

    def __init__(self, built_for: Mapping[str, Any], grows: bool = False) -> None:
        self._path, self._built_for = store_folder() / sha256_of_json(built_for), dict(built_for)
        self._grows = grows
        self.folder: Path | None = None
        self.was_found = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[Path | None]:
        """Yield the folder with whole files only, and afterwards record those that are new.

        Another process that wants the same graph waits meanwhile, so that one compiles it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._path.with_suffix(".lock")))
                if not self._is_whole():
                    shutil.rmtree(self._path, ignore_errors=True)
                self._path.mkdir(parents=True, exist_ok=True)
                self.folder, self.was_found = self._path, bool(self._files())
            except OSError as error:
                _logger.warning("the graph is compiled at each start: %s cannot be written: %s", self._path, error)
            yield self.folder
            if self.folder is not None:
                self._record(self._digests())

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Record what the provider writes while the session is released within, and has written since it was opened.

        A file that was recorded before and differs now was damaged meanwhile, unless the provider changes its files.
        Then nothing is recorded, and the next start compiles the graph anew.
        """
        with locked_if_possible(self._path.with_suffix(".lock")):
            yield
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # another process has removed it
                recorded, found = self._read_record()["files"], self._digests()
                is_whole = all(found.get(name, digest) == digest for name, digest in recorded.items())
                if self.folder is not None and (is_whole or self._grows):
                    self._record(found)

    def remove(self) -> None:
        """Delete what is kept."""
        with locked_if_possible(self._path.with_suffix(".lock")):
            self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        self.folder = None

    def _record(self, files: Mapping[str, str]) -> None:
        try:
            write_json(self._path / RECORD_FILE, {"built_for": self._built_for, "files": dict(files)})
        except OSError as error:
            _logger.warning("the compiled graph is not kept: %s cannot be written: %s", self._path, error)
            self._remove()

    def _read_record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self._path / RECORD_FILE).read_text(encoding="utf-8"))
        return record

    def _is_whole(self) -> bool:
        """Whether every file is as it was recorded; true of a folder that is not there."""
        if not self._path.exists():
            return True
        try:
            record = self._read_record()
            if (record["built_for"], record["files"]) == (self._built_for, self._digests()):
                return True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        _logger.warning("%s is damaged or was left unfinished; the graph is compiled anew", self._path)
        return False

    def _digests(self) -> dict[str, str]:
        return {name: sha256_of_file(path) for name, path in self._files().items()}

    def _files(self) -> dict[str, Path]:
        if not self._path.is_dir():
            return {}
        paths = (path for path in sorted(self._path.rglob("*")) if path.is_file() and path.name != RECORD_FILE)
        return {path.relative_to(self._path).as_posix(): path for path in paths}
