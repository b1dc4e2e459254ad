"""What the machine has, and how to install what is missing."""

from __future__ import annotations

import ctypes
import os

from dinov3_seg_ros.support.resources import PACKAGE


def how_to_install(extra: str) -> str:
    """Return the command for an extra of this package, which PyPI does not have: in the checkout or in a workspace."""
    in_checkout = os.path.isfile("setup.py") and os.path.isdir(PACKAGE)
    source = "." if in_checkout else f"./src/{PACKAGE}"
    return f"pip install '{source}[{extra}]'"


def has_nvidias_driver() -> bool:
    """Whether NVIDIA's driver is installed, which every use of CUDA needs."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
