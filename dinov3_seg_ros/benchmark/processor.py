"""What the processor can do, to compare with.

``python -m dinov3_seg_ros.benchmark.processor`` prints the rate of `gemm_gflops`.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

_SIDE, _ROUNDS = 2048, 7
# The variables from which NumPy's BLAS, whichever it is, takes its number of threads when it is loaded.
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")


def gemm_gflops(threads: int = 0) -> float:
    """The rate at which NumPy multiplies large float32 matrices, the best of a few: GFLOP/s.

    Args:
        threads: to compute with, as the network does; 0: one for each core.
    """
    environment = {**os.environ, **({name: str(threads) for name in _THREADS} if threads else {})}
    command = [sys.executable, "-m", "dinov3_seg_ros.benchmark.processor"]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def peak_memory_mb(process_id: int | None = None) -> float:
    """The most memory that this process, or on Linux another one that still runs, has held: MB."""
    if process_id is not None:
        status = Path(f"/proc/{process_id}/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2


def _gemm_gflops() -> float:
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best / 1e9


if __name__ == "__main__":
    print(_gemm_gflops())
