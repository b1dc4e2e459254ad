"""Content of a data set: caches and resumed trainings recognise it by this, never by paths or time stamps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinov3_seg_ros.support.errors import first_of
from dinov3_seg_ros.support.files import cache_folder, replacing_file, sha256_of_file

_READERS = 8
# A file that changed so recently may change again without another time stamp.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Contents:
    """All that the items of one split are made of.

    Attributes:
        settings: what else decides how items look, such as class names and the labels of mask values; JSON types.
        files: SHA-256 of each file, by its path relative to the data set's root, in the order of the items.
    """

    settings: Mapping[str, Any]
    files: Mapping[str, str]

    def digest(self) -> str:
        """SHA-256 of settings and files."""
        return hashlib.sha256(json.dumps([self.settings, list(self.files.items())]).encode()).hexdigest()

    def changes_since(self, before: Contents) -> str:
        """What differs from an earlier state, for people; empty where nothing does."""
        changes = [f"'{key}' changed" for key in _different(before.settings, self.settings)]
        common = [name for name in before.files if name in self.files]
        changes += _named("removed", [name for name in before.files if name not in self.files])
        changes += _named("added", [name for name in self.files if name not in before.files])
        changes += _named("changed", [name for name in common if before.files[name] != self.files[name]])
        if not changes and list(before.files) != list(self.files):
            changes = ["the order of the images changed"]
        return "; ".join(changes)


def digest_files(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of the content of files, by their path relative to ``root``, in their order.

    This reads every file once, as the first epoch of a training does: COCO's 118,000 training images are 19 GB. The
    user's cache folder remembers each digest together with the file's size and times, so that files that have not been
    touched since are not read again. A file that was touched gets the same digest as before.
    """
    names = {os.path.relpath(path, root): path for path in paths}
    index = cache_folder("file_digests") / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"
    known, now = _read_index(index), time.time_ns()
    with ThreadPoolExecutor(_READERS) as readers:
        entries = dict(zip(names, readers.map(lambda name: _entry(names[name], known.get(name)), names), strict=True))
    settled = {name: entry for name, entry in entries.items() if max(entry[1:3]) < now - _SETTLED_NS}
    if any(known.get(name) != entry for name, entry in settled.items()):
        with contextlib.suppress(OSError), replacing_file(index) as temporary:  # the index only saves time
            temporary.write_text(json.dumps({**known, **settled}), encoding="utf-8")
    return {name: entry[3] for name, entry in entries.items()}


def _entry(path: Path, known: Sequence[Any] | None) -> list[Any]:
    """Size, times of change of content and of attributes (ns), and SHA-256 of a file."""
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return list(known) if known is not None and known[:3] == state else [*state, sha256_of_file(path)]


def _read_index(path: Path) -> dict[str, list[Any]]:
    """Entries of files as they were written; none where there is no index that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(content, dict) and all(isinstance(entry, list) and len(entry) == 4 for entry in content.values())
    return content if whole else {}


def _different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ as JSON, in which tuples are lists."""
    return [key for key in {**before, **now} if json.dumps(before.get(key)) != json.dumps(now.get(key))]


def _named(change: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"{change}: {first_of(names)}"]
