"""Guards what numba keeps of the kernel on disk.

numba writes its files without syncing them, and loads them unchecked: one that a power cut has damaged would end every
process that loads it, at every start. So their SHA-256 are kept beside them.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from dinov3_seg_ros.support.files import locked_if_possible, sha256_of_file, write_json

_logger = logging.getLogger(__name__)

_RECORD_FILE = "decode_part.sha256.json"


class KernelCache:
    """The files of the kernel in a folder of numba's cache, of all types and releases of Python.

    Args:
        folder: of the cache; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._record = folder, folder / _RECORD_FILE

    def remove_damaged(self) -> None:
        """Delete the files that are not as they were recorded.

        Raises:
            OSError: they cannot be deleted.
        """
        if not self._files():
            return
        with self._locked():
            recorded = self._read_record()
            damaged = [path for path in self._files() if recorded.get(path.name) != sha256_of_file(path)]
            for path in damaged:
                path.unlink(missing_ok=True)
        if damaged and recorded:
            _logger.warning("the compiled decode in %s is damaged or unfinished; it is compiled anew", self._folder)

    def record(self) -> None:
        """Keep the SHA-256 of the files as they are; where that fails, the next start compiles the kernel again."""
        with contextlib.suppress(OSError), self._locked():
            write_json(self._record, {path.name: sha256_of_file(path) for path in self._files()})

    def _files(self) -> list[Path]:
        return [*self._folder.glob("entry.make_decode_part*.nb[ic]")]

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked_if_possible(self._record.with_suffix(".lock"))

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}
