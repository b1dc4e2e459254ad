"""What computes the network: one module for each inference runtime, behind one small protocol.

To add a runtime: implement `Runtime` in a module of its own and add one line to `RUNTIMES`. Modules are imported
only when asked for, so that a robot that runs one runtime needs no other installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dinov3_seg_ros.artefacts import PRECISIONS
from dinov3_seg_ros.bundle import Bundle
from dinov3_seg_ros.errors import ParameterError, RuntimeUnavailableError, SegmentationError

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

# Name -> module, class, what it imports only once it loads a model, and what installs all that; of two that use the
# same kind of device, the faster first.
RUNTIMES = {
    "tensorrt": ("dinov3_seg_ros.runtimes.tensorrt", "TensorRTRuntime", (), "pip install 'dinov3_seg_ros[gpu]'"),
    "onnx": ("dinov3_seg_ros.runtimes.onnx", "OnnxRuntime", (), "pip install 'dinov3_seg_ros[cpu]'"),
    "torch": (
        "dinov3_seg_ros.runtimes.pytorch",
        "PyTorchRuntime",
        ("transformers", "safetensors"),
        "pip install 'dinov3_seg_ros[torch]', with Python 3.11 or newer",
    ),
}
#: What the node's parameter and the Segmenter accept.
RUNTIME_NAMES = ("auto", *RUNTIMES)
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime computes.

    Attributes:
        device: one of `DEVICES`.
        precision: ``auto`` (the fastest that has been verified), or one of `artefacts.PRECISIONS`.
        network_size: (height, width) of the canvases, pixels; None: of every size there are graphs for.
        max_batch: the most canvases in one pass; TensorRT's engines are built and its memory is taken for so many.
        threads: CPU threads for one operator; 0: one for each core.
        providers: ONNX Runtime's execution providers, best first; empty: by ``device``.
        compile: let torch.compile fuse the PyTorch runtime's operators; the first frames take minutes.
        cuda_graphs: let the PyTorch runtime record the backbone as a CUDA graph, on a GPU.
    """

    device: str = "auto"
    precision: str = "auto"
    network_size: tuple[int, int] | None = None
    max_batch: int = 1
    threads: int = 0
    providers: tuple[str, ...] = ()
    compile: bool = False
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ParameterError(f"unknown device '{self.device}'; use one of: {', '.join(DEVICES)}")
        if self.max_batch < 1:
            raise ParameterError(f"max_batch must be at least 1; got {self.max_batch}")
        if self.precision not in ("auto", *PRECISIONS):
            raise ParameterError(f"unknown precision '{self.precision}'; use auto or one of: {', '.join(PRECISIONS)}")
        if self.threads < 0:
            raise ParameterError(f"threads is {self.threads}; use 0 for one thread per core, or a positive number")


class Computation(Protocol):
    """A batch on its way through the backbone and heads. It may be asked from another thread than started it."""

    def logits(self) -> dict[str, Any]:
        """Wait for the end: (N, C, h, w) float32 by the bundle's name, a NumPy array, or a tensor on a GPU."""

    def maps(self) -> dict[str, np.ndarray]:
        """Wait for the end: the feature maps (N, C_i, h_i, w_i) in the host's memory, by `artefacts.map_name`.

        For comparisons; only until the runtime starts another computation.
        """

    def seconds(self) -> dict[str, float]:
        """Wait for the end: how long each step took, by stage (`timing.GPU_STAGES`)."""


@dataclass(frozen=True)
class Computed:
    """A `Computation` that ended before it was handed out.

    Args:
        results: what `logits` gives.
        durations: what `seconds` gives.
        read_maps: gives what `maps` gives.
    """

    results: dict[str, Any]
    durations: dict[str, float]
    read_maps: Callable[[], dict[str, np.ndarray]]

    def logits(self) -> dict[str, Any]:
        """See `Computation.logits`."""
        return self.results

    def maps(self) -> dict[str, np.ndarray]:
        """See `Computation.maps`."""
        return self.read_maps()

    def seconds(self) -> dict[str, float]:
        """See `Computation.seconds`."""
        return self.durations


class Runtime(Protocol):
    """One backbone and the heads that share it, ready to run.

    Attributes:
        name: the runtime's name, a key of `RUNTIMES`.
        description: runtime, device and precision, for people.
        device: what computes, ``cpu`` or ``cuda``.
        logits_device: where the logits are left, and so decoded: ``cpu`` or ``cuda``.
        sizes: (height, width) of the canvases it can take; None for any.
    """

    name: str
    description: str
    device: str
    logits_device: str
    sizes: tuple[tuple[int, int], ...] | None

    def __init__(self, bundles: Sequence[Bundle], options: RuntimeOptions) -> None:
        """Load backbone and heads of bundles that can share a pass (`bundle.check_shared_backbone`)."""

    @classmethod
    def find_device(cls, bundles: Sequence[Bundle], options: RuntimeOptions) -> str:
        """The device that it would use, ``cpu`` or ``cuda``; nothing is loaded.

        Raises:
            RuntimeUnavailableError: it cannot serve these bundles here, or only unverified, which is for the user to
                choose by its name; says why.
        """

    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computation:
        """Put the backbone and heads to work on a batch. Where a GPU computes this need not wait for it.

        Several computations may be under way at once; they are done in order, and upload, computation and download of
        one overlap with those of its neighbours where the runtime can.

        Args:
            canvases: (N, H, W, 3) uint8 RGB; may be changed as soon as this returns.
            heads: the bundles' names, none for the backbone alone.
        """

    def close(self) -> None:
        """Release the memory held, the device's too. The runtime cannot be used afterwards."""


class _NotInstalledError(RuntimeUnavailableError):
    """The library of a runtime cannot be imported."""


def open_runtime(name: str, bundles: Sequence[Bundle], options: RuntimeOptions | None = None) -> Runtime:
    """Load bundles into the named runtime; ``auto`` takes the one that `open_fastest` finds.

    Args:
        name: one of `RUNTIME_NAMES`.
        bundles: at least one; they must be able to share a backbone pass.
        options: how to compute.

    Raises:
        ParameterError: unknown name, or an option that the runtime does not know.
        RuntimeUnavailableError: it is not installed, or has no graphs or no device to run.
        BackboneError, BundleError, ExportError: the weights or graphs cannot be loaded.
    """
    options = options or RuntimeOptions()
    if name == "auto":
        return open_fastest(bundles, options)[0]
    return _runtime_class(name)(bundles, options)


def open_fastest(bundles: Sequence[Bundle], options: RuntimeOptions) -> tuple[Runtime, str]:
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
    bundles: Sequence[Bundle], options: RuntimeOptions, failed: Mapping[str, str] | None = None
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
