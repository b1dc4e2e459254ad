"""Ctrl-C as a request to end, instead of an exception at an arbitrary instruction.

rclpy handles SIGINT and SIGTERM by shutting its context down, which ends spinning in good order. It then calls the
previous handler. For SIGINT that is Python's, which raises KeyboardInterrupt wherever the main thread is: while it
holds a lock, inside a constructor called from C++, or, since a launch file's Ctrl-C arrives twice, during the shutdown
that the first one began.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)
# Later than that, a signal is not the echo of the one that began the end.
_ECHO_S = 1.0
_may_interrupt = False
_end_began = float("inf")


def leave_ending_to_rclpy() -> None:
    """Leave SIGINT and SIGTERM to rclpy alone. Call before ``rclpy.init``, in the main thread.

    Work that does not spin would not notice them, and goes inside `interruptible`.
    """
    for number in _ENDING:
        signal.signal(number, _handle)


def end_on_hangup() -> None:
    """Take SIGHUP, of a terminal that closes, as SIGTERM, unless it is ignored, as under nohup.

    Call once no hang is to be feared, such as that of ``rclpy.init``: Python's handlers wait for the call to return.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))


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


def begin_end() -> None:
    """Let a further signal, a second from now on, end the process at once."""
    global _end_began
    _end_began = time.monotonic()


def ignore_until_exit() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP until the interpreter has exited. Call after shutdown."""
    for number in (*_ENDING, signal.SIGHUP):
        # In C first: a signal that arrives in the middle of `signal.signal` would be reported as an error.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).signal(int(number), ctypes.c_void_p(signal.SIG_IGN))
        signal.signal(number, signal.SIG_IGN)


def exit_without_threads(code: int) -> None:
    """End the process without waiting for threads that cannot be stopped: a compiler, a library that loads a model.

    Returns where there is none, for an end in the usual way.
    """
    if threading.active_count() > 1 or code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _handle(number: int, frame: FrameType | None) -> None:
    global _may_interrupt
    if time.monotonic() - _end_began > _ECHO_S:
        os.write(2, b"ended by a second signal, before everything had stopped\n")
        os._exit(1)
    if _may_interrupt:
        _may_interrupt = False
        raise KeyboardInterrupt
