"""CUDA graphs: the kernels of a module, recorded once and replayed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

import torch
from torch import nn

from dinov3_seg_ros.model.heads.blocks import averaging_matrices_collected

_logger = logging.getLogger("dinov3_seg_ros.runtimes")

#: A tensor, or a list of them.
Output = TypeVar("Output")


def new_event(timed: bool) -> torch.cuda.Event:
    """Return a moment on a queue. A waiting thread sleeps; one that polls would take a core from the robot."""
    return torch.cuda.Event(enable_timing=timed, blocking=True)  # type: ignore[no-untyped-call]  # as below


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a queue of a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # PyTorch annotates no arguments here


class _Recording(NamedTuple):
    """A CUDA graph, the memory that it reads and writes, and what else it reads and so must stay."""

    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    output: object
    positions: list[_ComputedOnce]
    matrices: list[torch.Tensor]


class Recorded(Generic[Output]):
    """A module whose kernels are recorded once for each shape of its inputs, then replayed as one CUDA graph.

    A small network is hundreds of short kernels, which Python starts more slowly than a GPU runs them.

    Args:
        function: the module, or what was compiled of it; takes and returns tensors on the GPU.
        what: the module, for people, such as "backbone".
    """

    # Frame-sized geometries bring ever new shapes, and each recording keeps its own memory.
    _MOST = 8

    def __init__(self, function: Callable[..., Output], what: str) -> None:
        self._function, self._what = function, what
        self._recordings: dict[tuple[torch.Size, ...], _Recording | None] = {}

    def __call__(self, *inputs: torch.Tensor) -> Output:
        """Return what the module returns; the next call with the same shapes overwrites it."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recordings and len(self._recordings) < self._MOST:
            self._recordings[shapes] = self._record(inputs)
        recording = self._recordings.get(shapes)
        if recording is None:
            return self._function(*inputs)
        for place, tensor in zip(recording.inputs, inputs, strict=True):
            place.copy_(tensor)
        recording.graph.replay()
        return cast(Output, recording.output)

    def _record(self, inputs: Sequence[torch.Tensor]) -> _Recording | None:
        """Return None where the module cannot be recorded."""
        try:
            device = inputs[0].device
            places, stream, graph = [tensor.clone() for tensor in inputs], new_stream(device), torch.cuda.CUDAGraph()
            current = torch.cuda.current_stream(device)
            with _positions_computed_once(self._function) as positions, averaging_matrices_collected() as matrices:
                # Libraries choose their kernels and allocate work space in the first runs, which cannot be recorded.
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    for _ in range(3):
                        self._function(*places)
                current.wait_stream(stream)
                # Thread-local: another thread, which decodes the frame before, must not break the recording.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    output = self._function(*places)
        except RuntimeError as error:
            shape = "x".join(map(str, inputs[0].shape))
            _logger.warning("the %s runs without a CUDA graph for %s, somewhat slower: %s", self._what, shape, error)
            return None
        return _Recording(graph, places, output, positions, matrices)


class _ComputedOnce(nn.Module):
    """A module whose first result is returned ever after. For results that depend on the input's shape alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._result: object = None

    def forward(self, images: torch.Tensor) -> object:
        if self._result is None:
            self._result = self._module(images)
        return self._result


#: What transformers calls the module of a DINOv3 ViT that turns patch positions into rotations.
_POSITIONS = "rope_embeddings"


@contextlib.contextmanager
def _positions_computed_once(backbone: Callable[..., object]) -> Iterator[list[_ComputedOnce]]:
    """Compute the position embeddings once, and keep them, while the backbone is recorded.

    transformers caches the patch positions of the last few sizes. A CUDA graph reads fixed addresses, so it must not
    read a tensor that the cache may drop. The caller keeps what this yields as long as the graph. (What is compiled
    computes them itself: PyTorch's compiler sees through that cache.)
    """
    kept: list[tuple[nn.Module, nn.Module]] = []
    modules = list(backbone.modules()) if isinstance(backbone, nn.Module) else []
    try:
        for owner in modules:
            positions = dict(owner.named_children()).get(_POSITIONS)
            if positions is not None:
                setattr(owner, _POSITIONS, _ComputedOnce(positions))
                kept.append((owner, positions))
        yield [getattr(owner, _POSITIONS) for owner, _ in kept]
    finally:
        for owner, positions in kept:
            setattr(owner, _POSITIONS, positions)
