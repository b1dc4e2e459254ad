"""The kernel's entry point, and its compilation for one type of labels."""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numba
import numpy as np
from numba import types

from dinov3_seg_ros.decode.grid import AxisArrays, Bytes, Floats, Labels
from dinov3_seg_ros.decode.kernel_cache import KernelCache
from dinov3_seg_ros.decode.numba_kernel import by_cells as cells_module
from dinov3_seg_ros.decode.numba_kernel import by_rows as rows_module
from dinov3_seg_ros.decode.numba_kernel import shared as shared_module
from dinov3_seg_ros.decode.numba_kernel.by_cells import decode_cells
from dinov3_seg_ros.decode.numba_kernel.by_rows import decode_rows
from dinov3_seg_ros.decode.numba_kernel.shared import OPTIONS

_logger = logging.getLogger(__name__)

_HASH_BYTES = 7  # what fits in a positive integer of machine code


class DecodePart(Protocol):
    """The kernel, compiled or not."""

    def __call__(
        self,
        logits: Floats,
        rows: AxisArrays,
        columns: AxisArrays,
        labels: Labels,
        confidence: Bytes,
        with_confidence: bool,
        reach: float,
        by_cells: bool,
        part: int,
        parts: int,
    ) -> None:
        """Decode one part of the output.

        Args:
            logits: (B, C, h, w) float32.
            rows, columns: ``Axis.arrays`` of the two axes.
            labels: (B, H, W) uint8 or uint16, written.
            confidence: (B, H, W) uint8, written; (B, 0, 0) without confidence.
            with_confidence: whether to compute it.
            reach: float32, how far below the best logit a class counts; 0 without confidence.
            by_cells: leave out classes cell by cell, rather than interpolate them all.
            part, parts: which part, from 0, of how many.
        """


def make_decode_part(code_hash: int) -> DecodePart:
    """The kernel as numba takes it.

    Args:
        code_hash: of the code that the kernel calls. numba's cache on disk looks for changes in the file of the
            function that it compiles, not in those of the functions called. It does compare what a closure holds.
    """

    def decode_part(
        logits: Floats,
        rows: AxisArrays,
        columns: AxisArrays,
        labels: Labels,
        confidence: Bytes,
        with_confidence: bool,
        reach: float,
        by_cells: bool,
        part: int,
        parts: int,
    ) -> None:
        _ = code_hash
        if not by_cells:
            decode_rows(logits, rows, columns, labels, confidence, with_confidence, part, parts)
            return
        for index in range(len(logits)):
            image, image_labels, image_confidence = logits[index], labels[index], confidence[index]
            decode_cells(image, rows, columns, image_labels, image_confidence, with_confidence, reach, part, parts)

    return decode_part


@cache
def compile_decode(label_type: np.dtype[Any]) -> DecodePart:
    """Compile the kernel for one type of labels, or take it from numba's cache on disk.

    Without a usable cache it is compiled in memory, which takes some seconds in each process.
    """
    positions = types.Array(types.int32, 1, "C", readonly=True)
    weights = types.Array(types.float32, 1, "C", readonly=True)
    axis = types.Tuple((positions, positions, weights, weights, positions))  # type: ignore[no-untyped-call] # numba's
    signature = types.void(
        types.Array(types.float32, 4, "C", readonly=True),
        axis,
        axis,
        types.Array(numba.from_dtype(label_type), 3, "C"),
        types.Array(types.uint8, 3, "C"),
        types.boolean,
        types.float32,
        types.boolean,
        types.intp,
        types.intp,
    )
    decode_part = make_decode_part(_hash_of_callees())
    try:
        kernel = numba.njit(cache=True, **OPTIONS)(decode_part)
        kept = KernelCache(Path(kernel.stats.cache_path))
        kept.remove_damaged()
        kernel.compile(signature)
        kernel.disable_compile()
        if kernel.stats.cache_misses:
            kept.record()
    except Exception as error:  # no folder to write to, a full disk, a damaged file: numba raises many types
        _logger.warning(
            "numba's cache cannot be used (%s), so the decode is compiled anew in each process; "
            "set NUMBA_CACHE_DIR to a folder that can be written to",
            error,
        )
        kernel = numba.njit(signature, **OPTIONS)(decode_part)
    compiled: DecodePart = kernel
    return compiled


def hash_code(sources: Iterable[str]) -> int:
    """Hash of Python sources that comments, docstrings and layout do not change."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(ast.dump(_without_docstrings(ast.parse(source))).encode())
    return int.from_bytes(digest.digest()[:_HASH_BYTES], "big")


def _hash_of_callees() -> int:
    return hash_code(inspect.getsource(module) for module in (cells_module, rows_module, shared_module))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return tree
