"""Ctrl-C as a request to end, instead of an exception at an arbitrary instruction.

rclpy handles SIGINT and SIGTERM by shutting its context down, which ends spinning in good order. It then calls the
previous handler. For SIGINT that is Python's, which raises KeyboardInterrupt wherever the main thread is: while it
holds a lock, inside a constructor called from C++, or, since a launch file's Ctrl-C arrives twice, during the shutdown
that the first one began.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)
_may_interrupt = False


def leave_ending_to_rclpy() -> None:
    """Leave SIGINT and SIGTERM to rclpy alone. Call before ``rclpy.init``, in the main thread.

    Work that does not spin would not notice them, and goes inside `interruptible`.
    """
    for number in _ENDING:
        signal.signal(number, _interrupt)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGINT or SIGTERM inside: for work that takes long, such as loading models.

    Has no effect without `leave_ending_to_rclpy`.
    """
    global _may_interrupt
    _may_interrupt = True
    try:
        yield
    finally:
        _may_interrupt = False


def ignore_until_exit() -> None:
    """Ignore SIGINT and SIGTERM until the interpreter has exited. Call after shutdown."""
    for number in _ENDING:
        # In C first: a signal that arrives in the middle of `signal.signal` would be reported as an error.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).signal(int(number), ctypes.c_void_p(signal.SIG_IGN))
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _may_interrupt
    if _may_interrupt:
        _may_interrupt = False
        raise KeyboardInterrupt
