"""TensorRT's messages in Python's logging; the last errors are kept for our own messages."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable
from typing import Any

import tensorrt as trt

from dinov3_seg_ros.runtimes.failures import NO_MEMORY, is_of_machine
from dinov3_seg_ros.support.errors import ExportError, RuntimeUnavailableError

logger = logging.getLogger("dinov3_seg_ros.runtimes.tensorrt")

if int(trt.__version__.split(".")[0]) < 10:
    raise ImportError(f"TensorRT {trt.__version__} is too old; 10 or newer is needed")


# A builder that lacks memory leaves out tactics, with a warning. Where none is left, its error names only the node.
_LACKED_MEMORY = ("insufficient memory", "memory is insufficient")
# Why a builder or runtime cannot be made is a warning too.
_NO_CUDA = "cuda initialization failure"


class _Log(trt.ILogger):  # type: ignore[misc]  # TensorRT ships no types
    """Takes TensorRT's messages. TensorRT raises nothing: it returns None or False, and reports the reason here."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: collections.deque[str] = collections.deque(maxlen=3)
        self._lacked_memory = False

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message; TensorRT calls this from any thread."""
        level = logging.DEBUG
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self._errors.append(msg)
            # The caller raises an error with this text.
            level = logging.INFO
        elif severity == trt.ILogger.Severity.WARNING:
            level = logging.INFO
            self._lacked_memory |= any(words in msg.lower() for words in _LACKED_MEMORY)
            if _NO_CUDA in msg.lower():
                self._errors.append(msg)
        logger.log(level, "TensorRT: %s", msg)

    def take_errors(self) -> str:
        """Return the last errors as one line, and forget them, and whether memory was lacking."""
        errors = "; ".join(self._errors) or "it gave no reason"
        lack = f"{NO_MEMORY}: " if self._lacked_memory else ""
        self._errors.clear()
        self._lacked_memory = False
        return lack + errors


#: One for the process: TensorRT keeps the first logger that it is given.
TENSORRT_LOG = _Log()


def opened(kind: Callable[[trt.ILogger], Any]) -> Any:
    """Make TensorRT's builder or runtime.

    Raises:
        RuntimeUnavailableError: it cannot use the GPU.
    """
    try:
        return kind(TENSORRT_LOG)
    except TypeError as error:  # what the bindings make of a null pointer
        raise RuntimeUnavailableError(
            f"TensorRT {trt.__version__} cannot use the GPU: {TENSORRT_LOG.take_errors()}; check its driver with "
            "nvidia-smi, or set runtime to onnx"
        ) from error


def failure(what: str, remedy: str) -> ExportError | RuntimeUnavailableError:
    """The error for what TensorRT could not do, with its own last errors: of the graph, or of the GPU and its memory.

    Args:
        what: could not be done, such as "could not build an engine of ...".
        remedy: what helps where the graph is to blame.
    """
    reason = TENSORRT_LOG.take_errors()
    said = f"TensorRT {trt.__version__} {what}: {reason}"
    if is_of_machine(reason):
        return RuntimeUnavailableError(f"{said}; this may pass: start again, or set runtime to onnx")
    return ExportError(f"{said}; {remedy}")
