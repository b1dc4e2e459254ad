"""What the machine has, and how to install what is missing."""

from __future__ import annotations

import ctypes


def how_to_install(extra: str) -> str:
    """Return the command for an extra of this package: from where the README clones it, since PyPI does not have it."""
    return f"pip install './src/dinov3_seg_ros[{extra}]'"


def has_nvidias_driver() -> bool:
    """Whether NVIDIA's driver is installed, which every use of CUDA needs."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
