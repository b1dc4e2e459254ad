"""In the place of cuda.bindings.runtime, with the host's memory and no GPU.

Signatures and returned tuples are those of cuda-python 12.9 and 13. Like the real one it does nothing that was put on
a stream before somebody waits for it, so that a wait that is missing is seen; unlike it, it refuses addresses that
nobody allocated, and knows what is still allocated.
"""

from __future__ import annotations

import ctypes
import enum
import os
from types import SimpleNamespace


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaStream_t:
    """Like the real one it is no integer (int() of it is deprecated)."""

    def __init__(self):
        self.work, self.recording, self.invalid = [], None, False


class cudaGraph_t:
    def __init__(self, work):
        self.work = work


class cudaGraphExec_t(cudaGraph_t):
    pass


cudaStreamNonBlocking = 1

# What the tests set and look at.
gpu = SimpleNamespace(
    count=1, name=os.environ.get("STAND_IN_GPU", "Stand-in GPU").encode(), major=8, minor=7, memory=1 << 30
)
device, host, objects = {}, {}, set()
launches = []
_OK = (cudaError_t.cudaSuccess,)


def cudaGetDeviceCount():
    if gpu.count is None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")
    return (*_OK, gpu.count)


def cudaGetDevice():
    return (*_OK, 0)


def cudaGetDeviceProperties(device):
    return (*_OK, SimpleNamespace(name=gpu.name, major=gpu.major, minor=gpu.minor))


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
    """Put work on a stream, or into the graph that it records."""
    (stream.work if stream.recording is None else stream.recording).append(work)


def cudaMemcpyAsync(dst, src, count, kind, stream):
    view(dst if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else src, count)
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
    return _make(cudaStream_t)


def cudaStreamSynchronize(stream):
    work, stream.work = stream.work, []
    for step in work:
        step()
    return _OK


cudaStreamDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _destroy


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
    launches.append(graphExec)
    for step in graphExec.work:
        submit(stream, step)
    return _OK


def streams():
    return {id(made): made for made in objects if isinstance(made, cudaStream_t)}
