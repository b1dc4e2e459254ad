"""One error type for a runtime that fails while it computes; every library raises its own, often a RuntimeError."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from dinov3_seg_ros.support.errors import ExportError, ImageError, ParameterError, RuntimeFailedError, one_line

#: What our own messages say then.
NO_MEMORY = "for want of memory"
# What libraries say when there is no memory left: ONNX Runtime, PyTorch, CUDA.
_OUT_OF_MEMORY = (
    NO_MEMORY,
    "out of memory",
    "failed to allocate",
    "cannot allocate",
    "bad_alloc",
    "memoryallocation",
    "outofmemory",
)
# How errors of a GPU or its driver begin, but not the names of TensorRT's methods: deserializeCudaEngine.
_GPU = re.compile(r"\bcuda", re.IGNORECASE)
#: What helps where memory is lacking.
LESS_MEMORY = "end what else uses the memory, or use a smaller network size, batch or precision"
_BROKEN_GPU = "if it goes on, start the process again: a GPU error may last until the process ends"


@contextlib.contextmanager
def runtime_failures(description: str) -> Iterator[None]:
    """Raise RuntimeFailedError for what a library raises inside.

    Args:
        description: of what computes, for people.

    Raises:
        RuntimeFailedError: says what failed, and what may help.
        ImageError, ParameterError: as they are; the input is to blame.
        ExportError: as it is; the export is to blame.
    """
    try:
        yield
    except (ExportError, ImageError, ParameterError, RuntimeFailedError):
        raise
    except Exception as error:  # the libraries' errors have no common base but Exception
        raise failure(description, error) from error


def failure(description: str, error: Exception) -> RuntimeFailedError:
    """The error for what a library raised; see `runtime_failures`."""
    reason = one_line(error) or type(error).__name__
    return RuntimeFailedError(f"{description} failed: {reason}{_remedy(error, reason)}")


def is_out_of_memory(reason: str) -> bool:
    """Whether a library's message says that there was no memory left."""
    return any(words in reason.lower() for words in _OUT_OF_MEMORY)


def is_of_machine(reason: str) -> bool:
    """Whether a library's message blames memory, the GPU or its driver: the same may work at another time."""
    return is_out_of_memory(reason) or _GPU.search(reason) is not None


def _remedy(error: Exception, reason: str) -> str:
    if isinstance(error, MemoryError) or is_out_of_memory(reason):
        return "" if LESS_MEMORY in reason else f"; {LESS_MEMORY}"
    return f"; {_BROKEN_GPU}" if _GPU.search(reason) else ""
