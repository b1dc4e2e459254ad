"""What makes a runtime, what a runtime is, and what it returns. A type checker holds every runtime to these types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import ComputeOptions


class Computation(Protocol):
    """A batch in the backbone and heads. Another thread than the one that started it may ask for the results."""

    def logits(self) -> Mapping[str, Any]:
        """Wait for the end; return the logits (N, C, h, w) float32 by bundle name.

        They are NumPy arrays where `Runtime.logits_device` is ``cpu``, else PyTorch tensors on that device.
        """

    def maps(self) -> dict[str, np.ndarray]:
        """Wait for the end; return the feature maps (N, C_i, h_i, w_i) in host memory, by `bundle.exports.map_name`.

        For comparisons. They are valid until the runtime starts another computation.
        """

    def seconds(self) -> Mapping[str, float]:
        """Wait for the end; return the duration of each step in seconds, by stage (`support.timing.GPU_STAGES`)."""


@dataclass(frozen=True)
class Computed:
    """A `Computation` that was complete when `Runtime.start` returned it.

    Args:
        results: what `logits` returns.
        durations: what `seconds` returns.
        read_maps: returns what `maps` returns.
    """

    results: dict[str, Any]
    durations: dict[str, float]
    read_maps: Callable[[], dict[str, np.ndarray]]

    def logits(self) -> dict[str, Any]:
        """Return the logits; see `Computation.logits`."""
        return self.results

    def maps(self) -> dict[str, np.ndarray]:
        """Return the feature maps; see `Computation.maps`."""
        return self.read_maps()

    def seconds(self) -> dict[str, float]:
        """Return the durations; see `Computation.seconds`."""
        return self.durations


class Runtime(Protocol):
    """One backbone and the heads that share it, ready to run.

    Attributes:
        name: the runtime's name, a key of `choice.RUNTIMES`.
        description: runtime, device and precision, for people.
        device: what computes, as PyTorch names devices: ``cpu``, ``cuda:0``, ``cuda:1``.
        logits_device: where the logits are left, and so where they are decoded; named like ``device``.
        sizes: the network inputs that it takes, as (height, width) in pixels; None for any.
    """

    name: str
    description: str
    device: str
    logits_device: str
    sizes: tuple[tuple[int, int], ...] | None

    def start(self, canvases: np.ndarray, heads: Sequence[str]) -> Computation:
        """Start the backbone and heads on a batch. Where a GPU computes, this need not wait for it.

        Several computations may be in flight at once. They run in order. Upload, computation and download of one
        overlap with those of its neighbours where the runtime can do so.

        Args:
            canvases: network inputs, (N, H, W, 3) uint8 RGB; the caller may change them as soon as this returns.
            heads: bundle names; none runs the backbone alone.
        """

    def close(self) -> None:
        """Release the memory held, the GPU's too. The runtime cannot be used afterwards."""


class RuntimeType(Protocol):
    """What makes a runtime: a class whose instances are `Runtime`, and that tells beforehand what it would run on."""

    def __call__(self, bundles: Sequence[Bundle], options: ComputeOptions) -> Runtime:
        """Load backbone and heads of bundles that can share a pass (`bundle.loading.check_shared_backbone`).

        Raises:
            RuntimeUnavailableError: it has no device or no exports to run.
            BackboneError, BundleError, ExportError: the weights or exports cannot be loaded.
        """

    def find_device(self, bundles: Sequence[Bundle], options: ComputeOptions) -> str:
        """Return the device that the runtime would use: ``cpu``, ``cuda`` or ``cuda:N``. No model is loaded.

        Raises:
            RuntimeUnavailableError: it cannot serve these bundles here, or only with unverified results, which the
                user must choose by naming the runtime; says why.
        """
