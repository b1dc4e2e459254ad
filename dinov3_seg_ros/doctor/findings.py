"""The result of a check, and what several checks share."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dinov3_seg_ros.support.resources import resource_path

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `OK`, `WARNING` or `FAULT`.
        subject: what was checked.
        detail: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    level: str
    subject: str
    detail: str
    remedy: str = ""


def surviving(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check. An error in the check is a finding too, and does not end the others."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(
            FAULT, "doctor", f"{type(error).__name__}: {error}", "correct the faults above, then run the doctor again"
        )


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:  # another process removed it
        return 0


def import_error(module: str) -> str:
    """Return why a module cannot be imported; empty where it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # a broken build fails to load its shared objects
        return str(error)
    return ""


def release(*distributions: str) -> str | None:
    """Return the release of the first of these distributions that is installed; None where none is."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def demo_bundle() -> Path:
    """Return the folder of the demo's bundle."""
    return resource_path("weights/demo")
