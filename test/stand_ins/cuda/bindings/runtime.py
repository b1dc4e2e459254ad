"""Replaces cuda.bindings.runtime. It uses the host's memory and needs no GPU.

Signatures and returned tuples are those of cuda-python 12.9 and 13. Like the real library it does what is queued on a
stream at some time before somebody waits for it, so a missing wait shows: as late as it may, or (`gpu.late`) at once on
all streams but one. Like the real library it has one current GPU for each thread, 0 at first, and refuses to run on a
stream of another GPU. Unlike the real library it refuses addresses that nobody allocated, and knows what is still
allocated.
"""

from __future__ import annotations

import ctypes
import enum
import os
import threading
import time
from types import SimpleNamespace


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaStream_t:
    """No integer, like that of the real library (int() of it is deprecated)."""

    def __init__(self):
        self.work, self.recording, self.invalid = [], None, False
        self.device = current_device()


class cudaEvent_t:
    def __init__(self):
        self.mark, self.device = None, current_device()


class _Mark:
    """One recording of an event on a stream."""

    def __init__(self, stream):
        self.stream, self.time = stream, None


class cudaGraph_t:
    def __init__(self, work):
        self.work = work


class cudaGraphExec_t(cudaGraph_t):
    pass


cudaStreamNonBlocking = 1
cudaEventBlockingSync = 1

# What the tests set and read.
gpu = SimpleNamespace(
    count=1,
    name=os.environ.get("STAND_IN_GPU", "Stand-in GPU").encode(),
    major=8,
    minor=7,
    multiprocessors=16,
    memory=1 << 30,
    late=None,  # number, in the order of creation, of the only stream that works as late as it may; None: all do
)
device, host, objects = {}, {}, set()
devices = {}  # address: the GPU that it was allocated on, or for
launches, made_streams = [], []
_lock = threading.RLock()
_thread = threading.local()
_OK = (cudaError_t.cudaSuccess,)


def cudaGetDeviceCount():
    if gpu.count is None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")
    return (*_OK, gpu.count)


def current_device():
    return getattr(_thread, "device", 0)


def cudaGetDevice():
    return (*_OK, current_device())


def cudaSetDevice(device):
    if not 0 <= device < gpu.count:
        return (cudaError_t.cudaErrorInvalidDevice,)
    _thread.device = device
    return _OK


def cudaGetDeviceProperties(device):
    if not 0 <= device < gpu.count:
        return cudaError_t.cudaErrorInvalidDevice, None
    properties = {"name": gpu.name, "major": gpu.major, "minor": gpu.minor}
    return (*_OK, SimpleNamespace(**properties, multiProcessorCount=gpu.multiprocessors, totalGlobalMem=gpu.memory))


def cudaGetErrorName(error):
    return (*_OK, error.name.encode())


def cudaGetErrorString(error):
    return (*_OK, error.name.removeprefix("cudaError").encode())


def cudaGetLastError():
    return _OK


def _allocate(memory, size):
    if size > gpu.memory:
        return cudaError_t.cudaErrorMemoryAllocation, None
    buffer = ctypes.create_string_buffer(max(size, 1))
    memory[ctypes.addressof(buffer)] = (size, buffer)
    devices[ctypes.addressof(buffer)] = current_device()
    return (*_OK, ctypes.addressof(buffer))


def _free(memory, address):
    return _OK if memory.pop(address, None) else (cudaError_t.cudaErrorInvalidValue,)


def cudaMalloc(size):
    return _allocate(device, size)


def cudaFree(devPtr):
    return _free(device, devPtr)


def cudaMallocHost(size):
    return _allocate(host, size)


def cudaFreeHost(ptr):
    return _free(host, ptr)


def view(address, size):
    """The bytes at an address on the GPU, of which there must be so many."""
    assert address in device, "an address that is not allocated on the GPU"
    assert size <= device[address][0], f"{size} bytes at an address where {device[address][0]} were allocated"
    return (ctypes.c_char * size).from_address(address)


def submit(stream, work):
    """Queue work on a stream, or add it to the graph that the stream records."""
    with _lock:
        (stream.work if stream.recording is None else stream.recording).append(work)
        if gpu.late is not None:
            for other in made_streams:
                if other is not made_streams[gpu.late]:
                    _run(other, spare=made_streams[gpu.late])


def _run(stream, until=None, spare=None):
    """Do what is queued on a stream, up to a mark, but not what waits for the spared stream."""
    while stream.work and (until is None or until.time is None):
        step = stream.work[0]
        if isinstance(step, tuple):
            if step[0].time is None and step[0].stream is spare:
                return
            _run(step[0].stream, step[0], spare)
            if step[0].time is None:
                return
        elif isinstance(step, _Mark):
            step.time = time.perf_counter()
        else:
            step()
        stream.work.pop(0)


def cudaMemcpyAsync(dst, src, count, kind, stream):
    if kind != cudaMemcpyKind.cudaMemcpyDeviceToHost:
        view(dst, count)
    if kind != cudaMemcpyKind.cudaMemcpyHostToDevice:
        view(src, count)
    submit(stream, lambda: ctypes.memmove(dst, src, count))
    return _OK


def _make(kind, *arguments):
    made = kind(*arguments)
    objects.add(made)
    return (*_OK, made)


def _destroy(made):
    objects.remove(made)
    return _OK


def cudaStreamCreateWithFlags(flags):
    assert flags == cudaStreamNonBlocking
    status, stream = _make(cudaStream_t)
    made_streams.append(stream)
    return status, stream


def cudaStreamSynchronize(stream):
    with _lock:
        _run(stream)
    return _OK


def cudaStreamDestroy(stream):
    made_streams.remove(stream)
    return _destroy(stream)


def cudaEventCreateWithFlags(flags):
    assert flags == cudaEventBlockingSync  # without cudaEventDisableTiming it times
    return _make(cudaEvent_t)


def cudaEventRecord(event, stream):
    if event.device != stream.device:
        return (cudaError_t.cudaErrorInvalidResourceHandle,)
    event.mark = _Mark(stream)
    submit(stream, event.mark)
    return _OK


def cudaStreamWaitEvent(stream, event, flags):
    if event.mark is not None:
        submit(stream, (event.mark,))
    return _OK


def cudaEventSynchronize(event):
    with _lock:
        if event.mark is not None:
            _run(event.mark.stream, event.mark)
    return _OK


def cudaEventElapsedTime(start, end):
    if start.mark is None or end.mark is None:
        return cudaError_t.cudaErrorInvalidValue, None
    if start.mark.time is None or end.mark.time is None:
        return cudaError_t.cudaErrorNotReady, None
    return (*_OK, 1000.0 * (end.mark.time - start.mark.time))


cudaEventDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _destroy


def cudaStreamBeginCapture(stream, mode):
    assert isinstance(mode, cudaStreamCaptureMode)
    stream.recording, stream.invalid = [], False
    return _OK


def cudaStreamEndCapture(stream):
    if stream.recording is None:
        return cudaError_t.cudaErrorInvalidValue, None
    work, stream.recording = stream.recording, None
    if stream.invalid:
        return cudaError_t.cudaErrorStreamCaptureInvalidated, None
    return _make(cudaGraph_t, work)


def cudaGraphInstantiate(graph, flags):
    return _make(cudaGraphExec_t, list(graph.work))


def cudaGraphLaunch(graphExec, stream):
    assert graphExec in objects
    if stream.device != current_device():
        return (cudaError_t.cudaErrorInvalidResourceHandle,)
    launches.append(graphExec)
    for step in graphExec.work:
        submit(stream, step)
    return _OK


def streams():
    return {id(made): made for made in objects if isinstance(made, cudaStream_t)}
