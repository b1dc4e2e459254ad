"""The result of a check, and what several checks share."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dinov3_seg_ros.support.resources import resource_path

OK, WARNING, FAULT = "ok", "warning", "fault"
#: How to get the libraries that the system does not bring.
ENVIRONMENT = "activate the environment of docs/install.md"


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


def surviving(checks: Iterable[Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    """The findings of some checks. An error in a check is a finding too, and does not end the others.

    A module that is missing is told once. No remedy is a pip that the system forbids.
    """
    faults: list[str] = []
    for check in checks:
        try:
            for finding in check():
                if finding.level == FAULT:
                    faults.append(finding.detail)
                if finding.level != OK and _forbids_pip():
                    remedy = re.sub(r"pip install ('.*?'|\w+)", ENVIRONMENT, finding.remedy)
                    finding = replace(finding, remedy=remedy)
                yield finding
        except Exception as error:
            if isinstance(error, ImportError) and any(str(error) in fault for fault in faults):
                continue
            faults.append(f"{type(error).__name__}: {error}")
            yield Finding(FAULT, "doctor", faults[-1], "correct the faults above, then run the doctor again")


def _forbids_pip() -> bool:
    """Whether this is a system's Python into which pip does not install (PEP 668)."""
    marker = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    return sys.prefix == sys.base_prefix and marker.exists()


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
