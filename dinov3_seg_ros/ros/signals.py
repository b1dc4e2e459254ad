"""Ctrl-C as a request to end, not as an exception in the midst of things.

rclpy answers SIGINT and SIGTERM by shutting its context down, which ends spinning in good order, and then calls the
handler that was there before. For SIGINT that is Python's own, which raises KeyboardInterrupt at whatever instruction
the main thread is: while it holds a lock, inside a constructor that C++ calls, or, as a launch file's Ctrl-C arrives
twice, in the midst of the closing that the first one began.
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
    """Let SIGINT and SIGTERM do nothing but what rclpy makes of them. Call before ``rclpy.init``, in the main thread.

    Work that does not spin, and so would not notice, goes inside `interruptible`.
    """
    for number in _ENDING:
        signal.signal(number, _interrupt)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM that arrives inside raise KeyboardInterrupt: for what takes long, as loading.

    Has no effect without `leave_ending_to_rclpy`.
    """
    global _may_interrupt
    _may_interrupt = True
    try:
        yield
    finally:
        _may_interrupt = False


def ignore_until_exit() -> None:
    """Ignore SIGINT and SIGTERM from here to the end, through the interpreter's own closing. Call after shutdown."""
    for number in _ENDING:
        # First in C alone: a signal that arrives between C and Python in `signal.signal` is reported as an error.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).signal(int(number), ctypes.c_void_p(signal.SIG_IGN))
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _may_interrupt
    if _may_interrupt:
        _may_interrupt = False
        raise KeyboardInterrupt
