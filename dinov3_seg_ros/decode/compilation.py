"""Who decodes on the CPU: numba's kernel, or NumPy until the kernel is compiled and where numba is not installed.

The kernel is compiled once on a machine, which takes ten seconds or more; later processes load it from numba's cache.
A thread does either, so that the first masks of a robot do not wait for a compiler. Both forms are exact.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

import numpy as np

from dinov3_seg_ros.decode import numpy_form
from dinov3_seg_ros.decode.grid import Bytes, Floats, Grid, Labels

_logger = logging.getLogger(__name__)

# From its start on, callers wait so long for the thread: loading the kernel takes about a second, compiling takes more.
_LOADING_SECONDS = 2.0


class Decoder(Protocol):
    """A decode of float32 ``logits`` (B, C, h, w) into ``labels`` and ``confidence``, both (B, H, W)."""

    def __call__(self, logits: Floats, grid: Grid, labels: Labels, confidence: Bytes | None) -> None:
        """Fill ``labels`` and, unless it is None, ``confidence``."""


class _Compilation:
    """The kernel for one type of labels, and the thread that loads or compiles it."""

    def __init__(self, label_type: np.dtype[Any]) -> None:
        self._label_type = label_type
        self._decoder: Decoder = numpy_form.decode
        self._is_over = threading.Event()
        self._deadline = time.monotonic() + _LOADING_SECONDS
        # Not a daemon: the process must not end in the middle of the compiler.
        threading.Thread(target=self._compile, name="compile decode").start()

    def decoder(self, wait: bool) -> Decoder:
        """What decodes now; with ``wait``, what will decode in the end."""
        if not self._is_over.is_set():
            self._is_over.wait(None if wait else max(0.0, self._deadline - time.monotonic()))
        return self._decoder

    def _compile(self) -> None:
        try:
            from dinov3_seg_ros.decode import numba_form
            from dinov3_seg_ros.decode.numba_kernel.entry import compile_decode

            compile_decode(self._label_type)
            self._decoder = numba_form.decode
        except Exception as error:  # a numba that does not fit the installed NumPy fails with several types
            _logger.warning("decoding with NumPy, several times slower, since numba cannot be used: %s", error)
        finally:
            self._is_over.set()


_compilations: dict[np.dtype[Any], _Compilation] = {}
_lock = threading.Lock()


def host_decoder(label_type: np.dtype[Any]) -> Decoder:
    """What decodes to labels of a type now."""
    return _compilation(label_type).decoder(wait=False)


def host_backend(wait: bool = False) -> str:
    """What decodes on the CPU now: "numba", or "numpy" while a kernel is compiled and where numba cannot be used.

    Args:
        wait: for kernels that are being compiled, so that the answer stays true.
    """
    compilations = list(_compilations.values()) or [_compilation(np.dtype(np.uint8))]
    decoders = [compilation.decoder(wait) for compilation in compilations]
    return "numpy" if numpy_form.decode in decoders else "numba"


def _compilation(label_type: np.dtype[Any]) -> _Compilation:
    found = _compilations.get(label_type)
    if found is None:
        with _lock:
            found = _compilations.get(label_type)
            if found is None:
                found = _compilations[label_type] = _Compilation(label_type)
    return found
