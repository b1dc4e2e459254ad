"""The CPU's decoder: numba's kernel, or NumPy until the kernel is compiled and where numba is not installed.

The kernel is compiled once on a machine, which takes ten seconds or more; later processes load it from numba's cache in
less than a second. A thread does either, and compares the kernel with NumPy before it is used. The first decode waits
for loading, but not for the compiler: NumPy decodes meanwhile, so that a robot's first masks come at once. Both forms
are exact.

A process that ends while the compiler works waits for it: a Ctrl-C in those seconds takes effect at their end.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from dinov3_seg_ros.decode import numpy_form
from dinov3_seg_ros.decode.grid import Bytes, Floats, Grid, Labels, plan_grid

_logger = logging.getLogger(__name__)

# What a kernel is checked on: few pixels for each cell, and many, which two algorithms decode.
_SIZES = (9, 11), (96, 130)
_LEADS_WITHIN_ROUNDING = 1e-3


class Decoder(Protocol):
    """A decode of float32 ``logits`` (B, C, h, w) into ``labels`` and ``confidence``, both (B, H, W)."""

    def __call__(self, logits: Floats, grid: Grid, labels: Labels, confidence: Bytes | None) -> None:
        """Fill ``labels`` and, unless it is None, ``confidence``."""


class _Compilation:
    """The kernel for one type of labels, and the thread that loads or compiles it."""

    def __init__(self, label_type: np.dtype[Any]) -> None:
        self._label_type = label_type
        self._decoder: Decoder = numpy_form.decode
        self._is_slow = threading.Event()  # set when the compiler starts, or at the end
        self._is_over = threading.Event()
        # Not a daemon: the process must not end in the middle of the compiler.
        threading.Thread(target=self._compile, name="compile decode").start()

    @property
    def is_over(self) -> bool:
        """Whether the decoder is final."""
        return self._is_over.is_set()

    def decoder(self) -> Decoder:
        """What decodes the next logits; waits for a kernel that is being loaded, not for the compiler."""
        self._is_slow.wait()
        return self._decoder

    def current(self, wait: bool) -> Decoder:
        """What decodes now, without waiting for anything; with ``wait``, what will decode in the end."""
        if wait:
            self._is_over.wait()
        return self._decoder

    def _compile(self) -> None:
        try:
            from dinov3_seg_ros.decode import numba_form
            from dinov3_seg_ros.decode.numba_kernel.entry import compile_decode

            with _calling_when_compiling(self._is_slow.set):
                compile_decode(self._label_type)
            _check(numba_form.decode, self._label_type)
            self._decoder = numba_form.decode
        except Exception as error:  # a numba that does not fit the installed NumPy fails with several types
            if threading.main_thread().is_alive():  # else the process is ending, and no thread can start
                _logger.warning("decoding with NumPy, several times slower, since numba cannot be used: %s", error)
        finally:
            self._is_slow.set()
            self._is_over.set()


def _check(decoder: Decoder, label_type: np.dtype[Any]) -> None:
    """Raise ValueError where a decoder gives something else than NumPy on this processor."""
    classes = 40 if label_type == np.uint8 else 300
    logits = np.random.default_rng(0).normal(size=(2, classes, 6, 7)).astype(np.float32)
    for size in _SIZES:
        grid = plan_grid(logits.shape, size, None)
        found, expected = (
            (np.empty(grid.shape, label_type), np.empty(grid.shape, np.uint8)) for _ in ("found", "expected")
        )
        decoder(logits, grid, *found)
        numpy_form.decode(logits, grid, *expected)
        apart = np.abs(found[1].astype(np.int16) - expected[1]).max()
        if (found[0] != expected[0]).mean() > _LEADS_WITHIN_ROUNDING or apart > 1:
            raise ValueError("the compiled kernel decodes otherwise than NumPy on this processor")


def _calling_when_compiling(callback: Callable[[], None]) -> AbstractContextManager[None]:
    """Call back when numba does not find what it is asked for in its cache, and so starts to compile."""
    from numba.core import event

    class CompilerStart(event.Listener):
        def on_start(self, event: event.Event) -> None:
            callback()

        def on_end(self, event: event.Event) -> None:
            pass

    return event.install_listener("numba:compile", CompilerStart())


_compilations: dict[np.dtype[Any], _Compilation] = {}
_lock = threading.Lock()


def _forget_compilations() -> None:
    """A forked child has none of its parent's threads: it loads or compiles for itself."""
    global _lock
    _lock = threading.Lock()
    for label_type in [found for found, compilation in _compilations.items() if not compilation.is_over]:
        del _compilations[label_type]


os.register_at_fork(after_in_child=_forget_compilations)


def host_decoder(label_type: np.dtype[Any]) -> Decoder:
    """What decodes to labels of a type now."""
    return _compilation(label_type).decoder()


def host_backend(wait: bool = False) -> str:
    """What decodes on the CPU now: "numba", or "numpy" until a kernel is loaded and where numba cannot be used.

    Args:
        wait: for kernels that are being loaded or compiled, so that the answer stays true.
    """
    compilations = list(_compilations.values()) or [_compilation(np.dtype(np.uint8))]
    decoders = [compilation.current(wait) for compilation in compilations]
    return "numpy" if numpy_form.decode in decoders else "numba"


def _compilation(label_type: np.dtype[Any]) -> _Compilation:
    with _lock:
        if label_type not in _compilations:
            _compilations[label_type] = _Compilation(label_type)
        return _compilations[label_type]
