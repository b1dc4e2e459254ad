"""Replaces cuda.bindings.utils (cuda-python 12.9.1 and newer)."""

from __future__ import annotations

from cuda.bindings.runtime import cudaStream_t


def get_cuda_native_handle(obj):
    if not isinstance(obj, cudaStream_t):
        raise TypeError(f"Unknown type: {type(obj)}")
    return id(obj)
