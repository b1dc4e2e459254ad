"""GPU memory, streams, events and CUDA graphs, by cuda-python; written for its releases 12.9 and 13."""

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

from dinov3_seg_ros.support.errors import RuntimeUnavailableError


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
    """Memory, streams and events on a GPU. What is made here lives until `close`, which frees all of it."""

    def __init__(self) -> None:
        self._owned = contextlib.ExitStack()
        self._streams: list[Stream] = []

    def stream(self) -> Stream:
        """A queue of its own."""
        # The default stream would make TensorRT wait for the whole device at every run.
        handle = _call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self._owned.callback(_call, cudart.cudaStreamDestroy, handle)
        self._streams.append(Stream(handle, self._owned))
        return self._streams[-1]

    def event(self) -> Event:
        """A moment that no stream has come to yet."""
        # Who waits for it sleeps: a thread that asks again and again would take a core from the robot.
        handle = _call(cudart.cudaEventCreateWithFlags, cudart.cudaEventBlockingSync)
        self._owned.callback(_call, cudart.cudaEventDestroy, handle)
        return Event(handle)

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

    def wait(self) -> None:
        """Until every stream has done all that is queued."""
        for stream in self._streams:
            stream.wait()

    def close(self) -> None:
        """Wait, then free everything."""
        with self._owned:
            streams, self._streams = self._streams, []
            for stream in streams:
                stream.wait()


class Event:
    """A moment on a stream; made by `Workspace.event`. Its methods are named like those of PyTorch's events."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def synchronize(self) -> None:
        """Wait until the stream has come to it."""
        _call(cudart.cudaEventSynchronize, self.handle)

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds from this moment to another, both of which have passed."""
        return _call(cudart.cudaEventElapsedTime, self.handle, later.handle)


class Stream:
    """A queue of copies and kernels, which the GPU works off in order; made by `Workspace.stream`.

    Attributes:
        handle: as TensorRT takes it.
    """

    def __init__(self, stream: Any, owned: contextlib.ExitStack) -> None:
        self._stream, self._owned = stream, owned
        self.handle = get_cuda_native_handle(stream)

    def to_gpu(self, address: int, array: np.ndarray) -> None:
        """Queue a copy of a contiguous array, which must not change until that is done."""
        self._copy(address, array.ctypes.data, array.nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def from_gpu(self, array: np.ndarray, address: int) -> None:
        """Queue a copy into a contiguous array, which is filled once that is done."""
        self._copy(array.ctypes.data, address, array.nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def on_gpu(self, target: int, source: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from one address on the GPU to another."""
        self._copy(target, source, size, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def record_event(self, event: Event) -> None:
        """Let ``event`` be the moment when everything queued so far is done."""
        _call(cudart.cudaEventRecord, event.handle, self._stream)

    def wait_event(self, event: Event) -> None:
        """Begin nothing that is queued from now on before another stream, where it is recorded, has come to it."""
        _call(cudart.cudaStreamWaitEvent, self._stream, event.handle, 0)

    def wait(self) -> None:
        """Until everything queued is done."""
        _call(cudart.cudaStreamSynchronize, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` queues as a CUDA graph; it is not run.

        Returns:
            Queues all of it at once. Addresses and shapes are those of the recording.

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

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        _call(cudart.cudaMemcpyAsync, target, source, size, kind, self._stream)

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
