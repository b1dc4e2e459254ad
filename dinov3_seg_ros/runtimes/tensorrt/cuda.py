"""GPU memory, streams, events and CUDA graphs through cuda-python, releases 12.9 and 13."""

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

from dinov3_seg_ros.runtimes.failures import LESS_MEMORY
from dinov3_seg_ros.support.errors import RuntimeUnavailableError


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine. Engines depend on all of it but its number.

    Attributes:
        index: CUDA's number of it.
        name: such as ``Orin``.
        capability: its compute capability, such as ``8.7``.
        multiprocessors: how many it has. All of NVIDIA's Orin modules have one name and capability.
        memory: its memory in GiB, rounded, since drivers keep some of it for themselves.
    """

    index: int
    name: str
    capability: str
    multiprocessors: int
    memory: int

    @property
    def device(self) -> str:
        """Its name as PyTorch names devices, such as ``cuda:1``."""
        return f"cuda:{self.index}"

    def use(self) -> None:
        """Make this thread allocate, queue and run on this GPU from now on.

        CUDA keeps one current GPU for each thread, so every thread that works with the GPU calls this first. The
        choice is not undone: to choose another GPU again, CUDA would take memory on it.
        """
        _call(cudart.cudaSetDevice, self.index)


def find_gpu(device: str = "auto") -> Gpu:
    """Find a GPU.

    Args:
        device: ``cuda:N``; ``auto`` and ``cuda`` take the one that CUDA uses in this thread.

    Raises:
        RuntimeUnavailableError: there is none, or its driver is missing.
    """
    try:
        count = _call(cudart.cudaGetDeviceCount)
    except (RuntimeError, RuntimeUnavailableError) as error:  # without a driver cuda-python raises RuntimeError
        raise RuntimeUnavailableError(f"no GPU can be used: {error}") from error
    if not count:
        raise RuntimeUnavailableError("no GPU can be used: CUDA finds none")
    number = device.partition(":")[2]
    index: int = int(number) if number else _call(cudart.cudaGetDevice)
    if index >= count:
        raise RuntimeUnavailableError(f"device '{device}' was asked for, but CUDA finds {count} GPUs, numbered from 0")
    properties = _call(cudart.cudaGetDeviceProperties, index)
    return Gpu(
        index=index,
        name=properties.name.split(b"\0")[0].decode(),
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multiProcessorCount,
        memory=round(properties.totalGlobalMem / (1 << 30)),
    )


class Workspace:
    """Memory, streams and events on the GPU that the calling thread uses. `close` frees all that was made here."""

    def __init__(self) -> None:
        self._owned = contextlib.ExitStack()
        self._streams: list[Stream] = []

    def stream(self) -> Stream:
        """Return a new queue."""
        # On the default stream TensorRT would wait for the whole device in every run.
        handle = _call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self._owned.callback(_call, cudart.cudaStreamDestroy, handle)
        self._streams.append(Stream(handle, self._owned))
        return self._streams[-1]

    def event(self) -> Event:
        """Return a moment that no stream has reached yet."""
        # Blocking: a waiting thread sleeps. One that polls would take a core from the robot.
        handle = _call(cudart.cudaEventCreateWithFlags, cudart.cudaEventBlockingSync)
        self._owned.callback(_call, cudart.cudaEventDestroy, handle)
        return Event(handle)

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` new bytes on the GPU."""
        address: int = _call(cudart.cudaMalloc, size)
        self._owned.callback(_call, cudart.cudaFree, address)
        return address

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array in page-locked memory, which the GPU copies fastest. It must not be read after `close`."""
        size = math.prod(shape) * dtype.itemsize
        address: int = _call(cudart.cudaMallocHost, size)
        self._owned.callback(_call, cudart.cudaFreeHost, address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)

    def wait(self) -> None:
        """Wait until every stream has done all that is queued."""
        for stream in self._streams:
            stream.wait()

    def close(self) -> None:
        """Wait, then free everything."""
        with self._owned:
            streams, self._streams = self._streams, []
            for stream in streams:
                stream.wait()


class Event:
    """A moment on a stream, made by `Workspace.event`. Its methods are named like those of PyTorch's events."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def synchronize(self) -> None:
        """Wait until the stream has reached it."""
        _call(cudart.cudaEventSynchronize, self.handle)

    def elapsed_time(self, later: Event) -> float:
        """Return the milliseconds from this moment to a later one; both must have passed."""
        milliseconds: float = _call(cudart.cudaEventElapsedTime, self.handle, later.handle)
        return milliseconds


class Stream:
    """A queue of copies and kernels, which the GPU executes in order; made by `Workspace.stream`.

    Attributes:
        handle: as TensorRT takes it.
    """

    def __init__(self, stream: Any, owned: contextlib.ExitStack) -> None:
        self._stream, self._owned = stream, owned
        self.handle = get_cuda_native_handle(stream)

    def to_gpu(self, address: int, array: np.ndarray) -> None:
        """Queue a copy of a contiguous array to the GPU; the array must not change until the copy is done."""
        self._copy(address, array.ctypes.data, array.nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def from_gpu(self, array: np.ndarray, address: int) -> None:
        """Queue a copy from the GPU into a contiguous array, which is filled once the copy is done."""
        self._copy(array.ctypes.data, address, array.nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def on_gpu(self, target: int, source: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from one address on the GPU to another."""
        self._copy(target, source, size, cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def record_event(self, event: Event) -> None:
        """Make ``event`` the moment at which everything queued so far is done."""
        _call(cudart.cudaEventRecord, event.handle, self._stream)

    def wait_event(self, event: Event) -> None:
        """Start nothing that is queued from now on before the stream that recorded ``event`` has reached it."""
        _call(cudart.cudaStreamWaitEvent, self._stream, event.handle, 0)

    def wait(self) -> None:
        """Wait until everything queued is done."""
        _call(cudart.cudaStreamSynchronize, self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record as a CUDA graph what ``work`` queues. Nothing runs yet.

        Returns:
            A function that queues all of it at once, with the addresses and shapes of the recording.

        Raises:
            RuntimeUnavailableError: it cannot be recorded; the stream can be used as before.
        """
        with contextlib.ExitStack() as recorded:
            # Thread-local: CUDA calls of other threads do not disturb the recording, nor it them.
            mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            _call(cudart.cudaStreamBeginCapture, self._stream, mode)
            try:
                work()
                graph = self._end_capture(recorded)
            except RuntimeUnavailableError:
                with contextlib.suppress(RuntimeUnavailableError):
                    self._end_capture(recorded)
                cudart.cudaGetLastError()  # returns the error once more, and clears it
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


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; return what follows its status.

    Raises:
        RuntimeUnavailableError: the status is an error.
    """
    status, *results = function(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        name, text = cudart.cudaGetErrorName(status)[1], cudart.cudaGetErrorString(status)[1]
        remedy = ""
        if status == cudart.cudaError_t.cudaErrorMemoryAllocation:
            remedy = f"; {LESS_MEMORY}"
        raise RuntimeUnavailableError(f"{function.__name__} failed: {text.decode()} ({name.decode()}){remedy}")
    return results[0] if results else None
