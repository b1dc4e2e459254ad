"""What computes the network: one module for each inference runtime, behind one small protocol.

To add a runtime: implement `Runtime` in a module of its own and add one line to `RUNTIMES`. Modules are imported
only when asked for, so that a robot that runs one runtime needs no other installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dinov3_seg_ros.bundle import Bundle
from dinov3_seg_ros.errors import ParameterError, RuntimeUnavailableError

# Name -> module, class, and the extra that installs it, in the order in which "auto" tries them.
RUNTIMES = {
    "torch": ("dinov3_seg_ros.runtimes.pytorch", "PyTorchRuntime", "torch"),
}
#: What the node's parameter and the Segmenter accept.
RUNTIME_NAMES = ("auto", "torch", "onnx", "tensorrt")


class Runtime(Protocol):
    """One backbone and the heads that share it, ready to run.

    Attributes:
        name: the runtime's name, a key of `RUNTIMES`.
        description: runtime, device and precision, for people.
    """

    name: str
    description: str

    def __init__(self, bundles: Sequence[Bundle], device: str) -> None:
        """Load backbone and heads of bundles that can share a pass (`bundle.check_shared_backbone`)."""

    def features(self, canvases: np.ndarray) -> Any:
        """Run the backbone, and wait for it.

        Args:
            canvases: (N, H, W, 3) uint8 RGB.

        Returns:
            The runtime's own form of the feature maps, wherever they were computed.
        """

    def logits(self, bundle_name: str, features: Any) -> Any:
        """Run one head, and wait for it: (N, C, h, w) float32, a NumPy array or a tensor on the runtime's device."""

    def close(self) -> None:
        """Release the memory held, the device's too. The runtime cannot be used afterwards."""


def open_runtime(name: str, bundles: Sequence[Bundle], device: str = "auto") -> Runtime:
    """Load bundles into the named runtime; ``auto`` takes the first that is installed.

    Args:
        name: one of `RUNTIME_NAMES`.
        bundles: at least one; they must be able to share a backbone pass.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ParameterError: unknown name.
        RuntimeUnavailableError: it is not installed, or not part of this release.
        BackboneError, BundleError: the weights cannot be loaded.
    """
    if name not in RUNTIME_NAMES:
        raise ParameterError(f"unknown runtime '{name}'; use one of: {', '.join(RUNTIME_NAMES)}")
    if name != "auto":
        return _runtime_class(name)(bundles, device)
    reasons = []
    for candidate in RUNTIMES:
        try:
            return _runtime_class(candidate)(bundles, device)
        except RuntimeUnavailableError as error:
            reasons.append(str(error))
    raise RuntimeUnavailableError("no runtime can be used: " + "; ".join(reasons))


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
    if name not in RUNTIMES:
        raise RuntimeUnavailableError(
            f"runtime '{name}' is not part of this release; set runtime to one of: {', '.join(RUNTIMES)}, auto"
        )
    module, attribute, extra = RUNTIMES[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, OSError) as error:  # a broken build of a library fails to load its shared objects
        raise RuntimeUnavailableError(
            f"runtime '{name}' is not installed ({error}); install it into the environment that runs the node: "
            f"pip install 'dinov3_seg_ros[{extra}]'"
        ) from error
