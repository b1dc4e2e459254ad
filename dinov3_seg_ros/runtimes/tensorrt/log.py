"""TensorRT's messages in Python's logging; the last errors are kept for our own messages."""

from __future__ import annotations

import collections
import logging

import tensorrt as trt

logger = logging.getLogger("dinov3_seg_ros.runtimes.tensorrt")

if int(trt.__version__.split(".")[0]) < 10:
    raise ImportError(f"TensorRT {trt.__version__} is too old; 10 or newer is needed")


class _Log(trt.ILogger):  # type: ignore[misc]  # TensorRT ships no types
    """Takes TensorRT's messages. TensorRT raises nothing: it returns None or False, and reports the reason here."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: collections.deque[str] = collections.deque(maxlen=3)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message; TensorRT calls this from any thread."""
        level = logging.DEBUG
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self._errors.append(msg)
            # The caller raises an error with this text.
            level = logging.INFO
        elif severity == trt.ILogger.Severity.WARNING:
            level = logging.INFO
        logger.log(level, "TensorRT: %s", msg)

    def take_errors(self) -> str:
        """Return the last errors as one line, and forget them."""
        errors = "; ".join(self._errors)
        self._errors.clear()
        return errors or "it gave no reason"


#: One for the process: TensorRT keeps the first logger that it is given.
TENSORRT_LOG = _Log()
