"""A folder that this user may not look into, such as another user's home; also where tests run as root."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest


def make_closed_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that refuses to tell what it holds, and to take anything."""
    stat, access, scandir = os.stat, os.access, os.scandir

    def stat_outside(path, *arguments, **options):
        if folder in Path(os.fsdecode(path)).parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return stat(path, *arguments, **options)

    def scan_others(path="."):
        if not isinstance(path, int) and Path(os.fsdecode(path)) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    folder.mkdir()
    monkeypatch.setattr(os, "stat", stat_outside)
    monkeypatch.setattr(os, "scandir", scan_others)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    return folder
