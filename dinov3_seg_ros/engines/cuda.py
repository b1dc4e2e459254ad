"""GPU memory, a stream and CUDA graphs, by cuda-python; written for its releases 12.9 and 13."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from cuda.bindings.utils import get_cuda_native_handle  # int(stream) is deprecated since 12.9.1 and 13.0

from dinov3_seg_ros.errors import RuntimeUnavailableError


@dataclass(frozen=True)
class Gpu:
    """What engines depend on: name, and compute capability such as ``8.7``."""

    name: str
    capability: str


def find_gpu() -> Gpu:
    """The GPU that CUDA uses in this thread.

    Raises:
        RuntimeUnavailableError: there is none, or its driver is missing.
    """
    try:
        count = _call(cudart.cudaGetDeviceCount)
    except (RuntimeError, RuntimeUnavailableError) as error:  # without a driver cuda-python raises RuntimeError
        raise RuntimeUnavailableError(f"no GPU can be used: {error}") from error
    if not count:
        raise RuntimeUnavailableError("no GPU can be used: CUDA finds none")
    properties = _call(cudart.cudaGetDeviceProperties, _call(cudart.cudaGetDevice))
    return Gpu(properties.name.split(b"\0")[0].decode(), f"{properties.major}.{properties.minor}")


class Workspace:
    """A stream and the memory that is used on it. What is made here lives until `close`, which frees all of it.

    Attributes:
        handle: of the stream, as TensorRT takes it.
    """

    def __init__(self) -> None:
        self._owned = contextlib.ExitStack()
        # The default stream would make TensorRT wait for the whole device at every run.
        self._stream = _call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self._owned.callback(_call, cudart.cudaStreamDestroy, self._stream)
        self.handle = get_cuda_native_handle(self._stream)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the GPU."""
        address = _call(cudart.cudaMalloc, size)
        self._owned.callback(_call, cudart.cudaFree, address)
        return address

    def pinned(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array in page-locked memory, from and to which copies are fastest. Not to be read after `close`."""
        size = math.prod(shape) * dtype.itemsize
        address = _call(cudart.cudaMallocHost, size)
        self._owned.callback(_call, cudart.cudaFreeHost, address)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

    def to_gpu(self, address: int, array: np.ndarray) -> None:
        """Put a copy of a contiguous array on the stream; the array must not change before `wait`."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(cudart.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, self._stream)

    def from_gpu(self, array: np.ndarray, address: int) -> None:
        """Put a copy into a contiguous array on the stream; the array is filled after `wait`."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(cudart.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, self._stream)

    def wait(self) -> None:
        """Until everything on the stream is done."""
        _call(cudart.cudaStreamSynchronize, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` puts on the stream as a CUDA graph; it is not run.

        Returns:
            Puts all of it on the stream at once. Addresses and shapes are those of the recording.

        Raises:
            RuntimeUnavailableError: it cannot be recorded; the stream can be used as before.
        """
        with contextlib.ExitStack() as recorded:
            # Thread-local: CUDA calls of other threads neither break the recording nor are broken by it.
            mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            _call(cudart.cudaStreamBeginCapture, self._stream, mode)
            try:
                work()
                graph = self._end_capture(recorded)
            except RuntimeUnavailableError:
                with contextlib.suppress(RuntimeUnavailableError):
                    self._end_capture(recorded)
                cudart.cudaGetLastError()  # returns the error once more, and forgets it
                raise
            executable = _call(cudart.cudaGraphInstantiate, graph, 0)
        self._owned.callback(_call, cudart.cudaGraphExecDestroy, executable)
        return lambda: _call(cudart.cudaGraphLaunch, executable, self._stream)

    def close(self) -> None:
        """Wait, then free memory, graphs and stream."""
        with self._owned:
            if self.handle is not None:
                self.handle = None
                self.wait()

    def _end_capture(self, recorded: contextlib.ExitStack) -> Any:
        graph = _call(cudart.cudaStreamEndCapture, self._stream)
        recorded.callback(_call, cudart.cudaGraphDestroy, graph)
        return graph


def _call(function: Callable[..., tuple], *arguments: Any) -> Any:
    """What a function of the CUDA runtime returns after its status.

    Raises:
        RuntimeUnavailableError: the status is an error.
    """
    status, *results = function(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        name, text = cudart.cudaGetErrorName(status)[1], cudart.cudaGetErrorString(status)[1]
        remedy = ""
        if status == cudart.cudaError_t.cudaErrorMemoryAllocation:
            remedy = "; end what else uses the GPU, or take a smaller network size, batch or precision"
        raise RuntimeUnavailableError(f"{function.__name__} failed: {text.decode()} ({name.decode()}){remedy}")
    return results[0] if results else None
