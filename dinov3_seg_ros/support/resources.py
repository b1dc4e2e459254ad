"""The files that come with the package: configuration, launch files, weights of the demo, executables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dinov3_seg_ros.support.errors import SegmentationError

PACKAGE = "dinov3_seg_ros"


def resource_path(name: str) -> Path:
    """Return the path of a file or folder of the package, such as ``config/fastdds.xml``.

    It is searched in the checkout (or editable installation), then in ``share/dinov3_seg_ros`` of each prefix on
    AMENT_PREFIX_PATH and of the Python environment.

    Raises:
        SegmentationError: the installation is incomplete.
    """
    roots = [Path(__file__).resolve().parents[2]]
    roots += [prefix / "share" / PACKAGE for prefix in _prefixes()]
    for root in roots:
        if (root / name).exists():
            return root / name
    raise SegmentationError(
        f"'{name}' of {PACKAGE} was found in none of: {', '.join(map(str, roots))}; install the package again"
    )


def console_script(name: str) -> str:
    """Return the path of one of the package's executables, for launch files.

    colcon puts them into ``lib/dinov3_seg_ros``, where ``ros2 run`` searches; pip into the environment's ``bin``.

    Raises:
        SegmentationError: the package is not installed.
    """
    candidates = [folder / name for prefix in _prefixes() for folder in (prefix / "lib" / PACKAGE, prefix / "bin")]
    for candidate in candidates:
        if candidate.exists():
            return str(candidate)
    raise SegmentationError(
        f"executable '{name}' of {PACKAGE} was found in none of: {', '.join(map(str, candidates))}; "
        "install the package with colcon or pip"
    )


def _prefixes() -> list[Path]:
    """The folders into which packages are installed, in the order of search."""
    ament = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    return [Path(prefix) for prefix in (*ament, sys.prefix) if prefix]
