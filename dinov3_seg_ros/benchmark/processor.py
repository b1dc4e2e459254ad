"""The speed and memory of this machine, to compare a pipeline with.

``python -m dinov3_seg_ros.benchmark.processor [cpu | cuda | cuda:N] [THREADS]`` prints the rate of `gemm_gflops`.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dinov3_seg_ros.support.cpu import onnx_runtime_threads

_logger = logging.getLogger(__name__)

_SIDE, _ROUNDS = 2048, 7
_QUEUED = 10  # products in a row on a GPU, which hides the time of starting them
_LONGEST_S = 5.0
# The variables from which NumPy's BLAS, whichever it is, takes its number of threads when it is loaded.
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")


def gemm_type(device: str) -> str:
    """The type of the numbers that `gemm_gflops` multiplies on a device."""
    return "float32" if device == "cpu" else "bfloat16"


def gemm_gflops(device: str = "cpu", threads: int = 0) -> float | None:
    """The rate at which large matrices of `gemm_type` are multiplied, the best of several tries: GFLOP/s.

    On a CPU, the faster of NumPy and ONNX Runtime (where that and ``onnx`` are installed): NumPy's BLAS alone may be
    far from what the processor can do. On a GPU, PyTorch.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads to compute with, as the network does; 0: one per core.

    Returns:
        None for a GPU or NPU that PyTorch cannot use, where there is no PyTorch, and, with a warning, where the
        process that measures it fails: what was measured before is worth more.
    """
    environment = {**os.environ, **({name: str(threads) for name in _THREADS} if threads else {})}
    command = [sys.executable, "-m", "dinov3_seg_ros.benchmark.processor", device, str(threads)]
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2] or str(error)
    except OSError as error:
        reason = str(error)
    else:
        said = run.stdout.strip()
        return None if said == "None" else float(said)
    _logger.warning("the speed of %s could not be measured, and is left out: %s", device, reason)
    return None


def torch_gemm_gflops(device: str, number_type: str = gemm_type("cuda"), side: int = 8192) -> float | None:
    """The rate at which PyTorch multiplies square matrices, the best of several tries: GFLOP/s, or 10^9 operations.

    Args:
        device: as PyTorch names it.
        number_type: of the matrices, as PyTorch names it: a float type, or ``int8``.
        side: of the matrices.

    Returns:
        None where there is no PyTorch, or no such device.
    """
    try:
        import torch
    except ImportError:
        return None
    module = torch.get_device_module(device)
    if not module.is_available():
        return None
    matrix = torch.randn(side, side, device=device).to(getattr(torch, number_type))
    multiply = torch._int_mm if number_type == "int8" else torch.mm  # PyTorch has no public product of integers
    queued = 1 if device == "cpu" else _QUEUED
    best, end = float("inf"), time.perf_counter() + _LONGEST_S
    for _ in range(_ROUNDS):
        module.synchronize(device)
        start = time.perf_counter()
        for _ in range(queued):
            multiply(matrix, matrix)
        module.synchronize(device)
        best = min(best, (time.perf_counter() - start) / queued)
        if time.perf_counter() > end:  # a type that the processor has no instructions for
            break
    return 2 * side**3 / best / 1e9


def peak_memory_mb(process_id: int | None = None) -> float:
    """The peak memory of this process, or of another one that still runs: MB."""
    if process_id is not None:
        status = Path(f"/proc/{process_id}/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _gemm_gflops(device: str, threads: int) -> float | None:
    if device.startswith(("gpu", "npu")):  # as ONNX Runtime lists devices, which PyTorch does not know
        return None
    if device != "cpu":
        return torch_gemm_gflops(device)
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for multiply in _multipliers(threads):
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            multiply(matrix)
            best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best / 1e9


def _multipliers(threads: int) -> Iterator[Callable[[np.ndarray], object]]:
    """Yield functions that multiply a matrix (`_SIDE`, `_SIDE`) by itself."""
    yield lambda matrix: matrix @ matrix
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return
    square = onnx.helper.make_tensor_value_info("matrix", onnx.TensorProto.FLOAT, [_SIDE, _SIDE])
    product = onnx.helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, [_SIDE, _SIDE])
    node = onnx.helper.make_node("MatMul", ["matrix", "matrix"], ["product"])
    # Versions that any ONNX Runtime of the last years reads.
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "square", [square], [product]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = onnx_runtime_threads(threads)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    yield lambda matrix: session.run(None, {"matrix": matrix})


if __name__ == "__main__":
    device_name, thread_count = [*sys.argv[1:], *("cpu", "0")[len(sys.argv) - 1 :]]
    print(_gemm_gflops(device_name, int(thread_count)))
