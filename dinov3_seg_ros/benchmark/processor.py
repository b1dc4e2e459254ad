"""What the processor can do, to compare with."""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

_SIDE, _ROUNDS = 2048, 5


def gemm_gflops() -> float:
    """The rate at which NumPy multiplies large float32 matrices, the best of a few: GFLOP/s."""
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best / 1e9


def peak_memory_mb() -> float:
    """The most memory that this process has held, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
