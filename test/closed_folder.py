"""A folder that this user may not look into, such as another user's home; also where tests run as root."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest


def make_closed_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that refuses to tell what it holds, and to take anything."""
    stat, access = os.stat, os.access

    def stat_outside(path, *arguments, **options):
        if folder in Path(os.fsdecode(path)).parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return stat(path, *arguments, **options)

    folder.mkdir()
    monkeypatch.setattr(os, "stat", stat_outside)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    return folder
