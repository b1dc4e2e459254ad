"""Which runtime computes the network. Each is one module that satisfies the types in `protocol`.

To add a runtime, write a class that satisfies `RuntimeType` in a module of its own, add an entry to `RUNTIMES` with a
function that imports it, and add its name to `options.RuntimeName`. Modules are imported only when they are needed, so
a robot that uses one runtime does not need the libraries of the others.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import RUNTIME_NAMES, ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Runtime, RuntimeType
from dinov3_seg_ros.support.errors import ParameterError, RuntimeUnavailableError, SegmentationError

_logger = logging.getLogger("dinov3_seg_ros.runtimes")


class _Entry(NamedTuple):
    """How a runtime is imported, and the command that installs what it needs."""

    load: Callable[[], RuntimeType]
    installation: str


def _load_tensorrt() -> RuntimeType:
    from dinov3_seg_ros.runtimes.tensorrt.runtime import TensorRTRuntime

    return TensorRTRuntime


def _load_onnx() -> RuntimeType:
    from dinov3_seg_ros.runtimes.onnx import OnnxRuntime

    return OnnxRuntime


def _load_torch() -> RuntimeType:
    from dinov3_seg_ros.runtimes.pytorch import PyTorchRuntime

    # The runtime imports these only when it loads a model.
    for needed in ("transformers", "safetensors"):
        if importlib.util.find_spec(needed) is None:
            raise ModuleNotFoundError(f"No module named '{needed}'")
    return PyTorchRuntime


#: By name; of two runtimes that use the same kind of device, the faster comes first.
RUNTIMES = {
    "tensorrt": _Entry(_load_tensorrt, "pip install 'dinov3_seg_ros[gpu]'"),
    "onnx": _Entry(_load_onnx, "pip install 'dinov3_seg_ros[cpu]'"),
    "torch": _Entry(_load_torch, "pip install 'dinov3_seg_ros[torch]', with Python 3.11 or newer"),
}


class _NotInstalledError(RuntimeUnavailableError):
    """The library of a runtime cannot be imported."""


def open_runtime(
    bundles: Sequence[Bundle], options: ComputeOptions, avoid: Mapping[str, str] | None = None
) -> tuple[Runtime, str]:
    """Load bundles into the runtime that ``options.runtime`` names, or for ``auto`` into the fastest that can run here.

    Args:
        bundles: at least one; they must be able to share a backbone pass.
        options: how to compute.
        avoid: runtimes that ``auto`` passes over, with the reason for each.

    Returns:
        The runtime, and why it is this one, for people.

    Raises:
        RuntimeUnavailableError: the runtime is not installed, or has no exports or no device to run.
        BackboneError, BundleError, ExportError: the weights or exports cannot be loaded.
    """
    if options.runtime == "auto":
        return _open_fastest(bundles, options, dict(avoid or {}))
    return _runtime_type(options.runtime)(bundles, options), "asked for"


def _open_fastest(bundles: Sequence[Bundle], options: ComputeOptions, failed: dict[str, str]) -> tuple[Runtime, str]:
    """Load bundles into the runtime that `choose_runtime` names; where it cannot load them, into the next best.

    Takes, returns and raises what `open_runtime` does; the error of several runtimes names the reason of each.
    """
    while True:
        name, reason = choose_runtime(bundles, options, failed)
        try:
            return _runtime_type(name)(bundles, options), reason
        except ParameterError:  # an option that the user must correct
            raise
        except SegmentationError as error:
            # Keep the text only: the error's traceback would keep what was loaded so far, in GPU memory too.
            failed[name] = str(error)
            _logger.warning("the %s runtime cannot load the bundle; the next best is tried: %s", name, error)


def choose_runtime(
    bundles: Sequence[Bundle], options: ComputeOptions, failed: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Name the runtime that is probably the fastest here, and say why: one that uses a GPU, else the first that runs.

    Args:
        bundles: what the runtime is to serve; no model is loaded.
        options: how to compute.
        failed: runtimes that are skipped, with the reason for each.

    Raises:
        RuntimeUnavailableError: no runtime can serve these bundles; gives the reason for each.
    """
    devices: dict[str, str] = {}
    reasons = dict(failed or {})
    missing: list[str] = []
    for name in [name for name in RUNTIMES if name not in reasons]:
        if name == "torch" and devices and _torch_has_no_gpu():
            devices[name] = "cpu"
            continue
        try:
            devices[name] = _runtime_type(name).find_device(bundles, options)
        except RuntimeUnavailableError as error:
            reasons[name] = str(error)
            if isinstance(error, _NotInstalledError):
                missing.append(name)
    if not devices:
        raise RuntimeUnavailableError("no runtime can be used: " + "; ".join(reasons.values()))
    best = next((name for name, device in devices.items() if device != "cpu"), next(iter(devices)))
    others = [f"{name} is not installed" if name in missing else f"{name}: {why}" for name, why in reasons.items()]
    others += [f"{name} would run on the {device.upper()}" for name, device in devices.items() if name != best]
    return best, f"{best} is the fastest that can run here on the {devices[best].upper()} ({'; '.join(others)})"


def _torch_has_no_gpu() -> bool:
    """Whether PyTorch, which takes seconds to import, is there and can have no GPU: neither driver is installed."""
    if "torch" in sys.modules or importlib.util.find_spec("torch") is None or os.path.exists("/dev/kfd"):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


def available_runtimes() -> dict[str, str | None]:
    """Return, for every runtime name but ``auto``, None when it can be used, else the reason why not."""
    reasons: dict[str, str | None] = {}
    for name in RUNTIME_NAMES[1:]:
        try:
            _runtime_type(name)
            reasons[name] = None
        except RuntimeUnavailableError as error:
            reasons[name] = str(error)
    return reasons


def _runtime_type(name: str) -> RuntimeType:
    entry = RUNTIMES[name]
    try:
        return entry.load()
    except (ImportError, OSError) as error:  # a broken build of a library fails to load its shared objects
        raise _NotInstalledError(
            f"runtime '{name}' is not installed ({error}); install it into the environment that runs the node: "
            f"{entry.installation}"
        ) from error
