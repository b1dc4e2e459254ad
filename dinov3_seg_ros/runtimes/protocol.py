"""What makes a runtime, what a runtime is, and what it returns. A type checker holds every runtime to these types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dinov3_seg_ros.bundle.loading import Bundle
from dinov3_seg_ros.bundle.onnx_folder import Graphs
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.support.errors import DisagreementError, ImageError


class Computation(Protocol):
    """A batch in the backbone and heads. Another thread than the one that started it may ask for the results."""

    def logits(self) -> Mapping[str, Any]:
        """Wait for the end; return the logits (N, C, h, w) float32 by bundle name.

        They are NumPy arrays where `Runtime.logits_device` is ``cpu``, else PyTorch tensors on that device.
        """

    def maps(self) -> dict[str, np.ndarray]:
        """Wait for the end; return feature maps (N, C_i, h_i, w_i) in host memory, by `bundle.onnx_folder.map_name`.

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
        device: what computes: ``cpu``, ``cuda:0`` and ``cuda:1`` as CUDA numbers them, ``gpu:0`` and ``npu:0`` as ONNX
            Runtime lists them.
        logits_device: where the logits are left, and so where they are decoded; ``cpu`` or as PyTorch names devices.
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


class OpenedRuntime(Runtime, Protocol):
    """A runtime that was opened from a `Candidate`, to be compared with the model before it serves."""

    def refuse(self, error: DisagreementError) -> bool:
        """Close, and forget what is kept on disk for this runtime: it does not compute what the model computes.

        Args:
            error: what `gate` found.

        Returns:
            Whether it was read from such a store, so that opening it anew may help.
        """


@dataclass(frozen=True)
class Candidate:
    """One way to compute bundles on this machine; nothing is loaded yet.

    Attributes:
        runtime: the runtime's name, a key of `choice.RUNTIMES`.
        device: what would compute; see `Runtime.device`.
        precision: to compute in.
        label: what tells it from all others, for people and as a key.
        open: loads backbone and heads. Raises RuntimeUnavailableError, BackboneError, BundleError or ExportError.
        graphs: the exports that it runs; None where it runs the model itself.
        is_as_exported: whether the exporter ran the same graphs in the same way, though on another machine.
        is_measured_only: whether only a measurement or the user chooses it.
    """

    runtime: str
    device: str
    precision: str
    label: str
    open: Callable[[], OpenedRuntime]
    graphs: Graphs | None = None
    is_as_exported: bool = False
    is_measured_only: bool = False


class RuntimeType(Protocol):
    """What makes a runtime: a class that tells beforehand what it would run on."""

    def candidates(self, bundles: Sequence[Bundle], options: ComputeOptions) -> Sequence[Candidate]:
        """Return the ways to compute bundles that can share a pass, best first; at least one. No model is loaded.

        Raises:
            RuntimeUnavailableError: it cannot serve these bundles here; says why.
        """


def check_canvas_size(size: tuple[int, int], sizes: Collection[tuple[int, int]], what: str) -> None:
    """Refuse network inputs that a runtime does not take.

    Args:
        size: theirs, (height, width) in pixels.
        sizes: that it takes.
        what: it has one of for each size, in a word.

    Raises:
        ImageError: it has none for this size.
    """
    if size not in sizes:
        raise ImageError(
            f"there is no {what} for network inputs of {size[0]}x{size[1]} pixels; there are: {sizes_in_words(sizes)}"
        )


def sizes_in_words(sizes: Iterable[tuple[int, int]]) -> str:
    """List sizes, (height, width) in pixels, for a message."""
    return ", ".join(f"{height}x{width}" for height, width in sizes)
