"""What every runtime is, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.options import ComputeOptions


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

    def __init__(self, bundles: Sequence[Bundle], options: ComputeOptions) -> None:
        """Load backbone and heads of bundles that can share a pass (`bundle.check_shared_backbone`)."""

    @classmethod
    def find_device(cls, bundles: Sequence[Bundle], options: ComputeOptions) -> str:
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
