"""What computes the network: one module for each inference runtime, behind one small protocol.

To add a runtime: implement `Runtime` in a module of its own and add one line to `RUNTIMES`. Modules are imported
only when asked for, so that a robot that runs one runtime needs no other installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import RUNTIME_NAMES, ComputeOptions
from dinov3_seg_ros.runtimes.protocol import Runtime
from dinov3_seg_ros.support.errors import ParameterError, RuntimeUnavailableError, SegmentationError

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

# Name -> module, class, what it imports only once it loads a model, and what installs all that; of two that use the
# same kind of device, the faster first.
RUNTIMES = {
    "tensorrt": ("dinov3_seg_ros.runtimes.tensorrt.runtime", "TensorRTRuntime", (), "pip install 'dinov3_seg_ros[gpu]'"),
    "onnx": ("dinov3_seg_ros.runtimes.onnx", "OnnxRuntime", (), "pip install 'dinov3_seg_ros[cpu]'"),
    "torch": (
        "dinov3_seg_ros.runtimes.pytorch",
        "PyTorchRuntime",
        ("transformers", "safetensors"),
        "pip install 'dinov3_seg_ros[torch]', with Python 3.11 or newer",
    ),
}


class _NotInstalledError(RuntimeUnavailableError):
    """The library of a runtime cannot be imported."""


def open_runtime(bundles: Sequence[Bundle], options: ComputeOptions) -> tuple[Runtime, str]:
    """Load bundles into the runtime that ``options.runtime`` names, or for ``auto`` into the fastest that can run here.

    Args:
        bundles: at least one; they must be able to share a backbone pass.
        options: how to compute.

    Returns:
        The runtime, and why it is this one, for people.

    Raises:
        RuntimeUnavailableError: it is not installed, or has no exports or no device to run.
        BackboneError, BundleError, ExportError: the weights or exports cannot be loaded.
    """
    if options.runtime == "auto":
        return _open_fastest(bundles, options)
    return _runtime_class(options.runtime)(bundles, options), "asked for"


def _open_fastest(bundles: Sequence[Bundle], options: ComputeOptions) -> tuple[Runtime, str]:
    """Load bundles into the runtime that `choose_runtime` names; where it cannot load them, into the next best.

    Args:
        bundles: at least one; they must be able to share a backbone pass.
        options: how to compute.

    Returns:
        The runtime, and why it is this one, for people.

    Raises:
        ParameterError: an option that the runtime does not know.
        RuntimeUnavailableError: none can serve these bundles; says why, for each.
    """
    failed: dict[str, str] = {}
    while True:
        name, reason = choose_runtime(bundles, options, failed)
        try:
            return _runtime_class(name)(bundles, options), reason
        except ParameterError:  # the user's to correct
            raise
        except SegmentationError as error:
            # In words only: the error itself would keep what was loaded so far, in a GPU's memory too.
            failed[name] = str(error)
            _logger.warning("the %s runtime cannot load the bundle; the next best is tried: %s", name, error)


def choose_runtime(
    bundles: Sequence[Bundle], options: ComputeOptions, failed: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """The runtime that is probably the fastest here, and why: one that uses a GPU, else the first of `RUNTIMES`.

    Args:
        bundles: what it is to serve; nothing of them is loaded.
        options: how to compute.
        failed: runtimes that are passed over -> why.

    Raises:
        RuntimeUnavailableError: none can serve these bundles; says why, for each.
    """
    devices, errors = {}, dict(failed or {})
    for name in [name for name in RUNTIMES if name not in errors]:
        try:
            devices[name] = _runtime_class(name).find_device(bundles, options)
        except RuntimeUnavailableError as error:
            errors[name] = error
    if not devices:
        raise RuntimeUnavailableError("no runtime can be used: " + "; ".join(map(str, errors.values())))
    best = next((name for name, device in devices.items() if device == "cuda"), next(iter(devices)))
    others = [
        f"{name} is not installed" if isinstance(error, _NotInstalledError) else f"{name}: {error}"
        for name, error in errors.items()
    ]
    others += [f"{name} would run on the {device.upper()}" for name, device in devices.items() if name != best]
    return best, f"{best} is the fastest that can run here on the {devices[best].upper()} ({'; '.join(others)})"


def available_runtimes() -> dict[str, str | None]:
    """Every runtime name but ``auto`` -> None when it can be used, else the reason why not."""
    reasons: dict[str, str | None] = {}
    for name in RUNTIME_NAMES[1:]:
        try:
            _runtime_class(name)
            reasons[name] = None
        except RuntimeUnavailableError as error:
            reasons[name] = str(error)
    return reasons


def _runtime_class(name: str) -> type[Runtime]:
    if name not in RUNTIME_NAMES:
        raise ParameterError(f"unknown runtime '{name}'; use one of: {', '.join(RUNTIME_NAMES)}")
    module, attribute, needed_later, installation = RUNTIMES[name]
    try:
        runtime = getattr(importlib.import_module(module), attribute)
        for needed in needed_later:
            if importlib.util.find_spec(needed) is None:
                raise ModuleNotFoundError(f"No module named '{needed}'")
        return runtime
    except (ImportError, OSError) as error:  # a broken build of a library fails to load its shared objects
        raise _NotInstalledError(
            f"runtime '{name}' is not installed ({error}); install it into the environment that runs the node: "
            f"{installation}"
        ) from error
