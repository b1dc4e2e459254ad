"""Execution providers that are packages of their own, beside the plain ``onnxruntime`` (1.24 and newer).

Such a package is a module ``onnxruntime_ep_...`` that names its library and its providers. ONNX Runtime loads the
library, and then lists the devices that each provider can use.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import pkgutil
from types import ModuleType
from typing import Any

import onnxruntime as ort

from dinov3_seg_ros.support.errors import one_line

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

_PREFIX = "onnxruntime_ep_"
#: A library that only NVIDIA's driver has: a machine without it has no such GPU, of which nobody need be warned.
NVIDIAS_DRIVER = "libcuda.so"
#: The environment variable that, set to ``off``, keeps all such packages from being loaded: one may crash a process.
SWITCH = "DINOV3_SEG_ROS_PLUGINS"


def register() -> dict[str, str]:
    """Load the libraries of all such packages, once in this process.

    Returns:
        Name of each provider that a package brings -> why it cannot be used; empty where its library was loaded.
    """
    return {} if os.environ.get(SWITCH) == "off" else _register_all()


@functools.cache
def _register_all() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules() if module.name.startswith(_PREFIX)):
        try:
            package = importlib.import_module(name)
            found.update(dict.fromkeys(package.get_ep_names(), _register(package)))
        except Exception as error:  # packages of any origin, which load native libraries
            found[name] = f"the package cannot be used: {one_line(error)}"
    for provider, reason in found.items():
        if reason:
            level = logging.INFO if NVIDIAS_DRIVER in reason else logging.WARNING
            _logger.log(level, "%s is not used: %s", provider, reason)
    return found


def devices() -> list[Any]:
    """Return ONNX Runtime's devices (``OrtEpDevice``) of providers that are packages of their own, in its order."""
    names = {name for name, reason in register().items() if not reason}
    return [device for device in ort.get_ep_devices() if device.ep_name in names] if names else []


def _register(package: ModuleType) -> str:
    """Load the library of a package; return why not, or an empty text."""
    if not hasattr(ort, "register_execution_provider_library"):
        return f"ONNX Runtime {ort.__version__} takes no such packages; install onnxruntime 1.24 or newer"
    name = package.get_ep_name()
    try:
        ort.register_execution_provider_library(name, package.get_library_path())
    except Exception as error:  # ONNX Runtime's errors have no common base but Exception
        said = one_line(error)
        if NVIDIAS_DRIVER in said:
            return f"this machine has no driver of NVIDIA ({NVIDIAS_DRIVER})"
        if "already registered" not in said.lower():
            return said
    return ""
