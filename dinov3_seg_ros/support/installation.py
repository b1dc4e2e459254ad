"""How to install what is missing."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """Return the command for an extra of this package: from where the README clones it, since PyPI does not have it."""
    return f"pip install './src/dinov3_seg_ros[{extra}]'"
