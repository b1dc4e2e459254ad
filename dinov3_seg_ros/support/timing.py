"""Durations of the stages of a frame, and rates of events."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

#: The stages of a frame, in order.
STAGES = ("message_in", "preprocess", "backbone", "heads", "decode", "overlay", "message_out")
#: The stages where a GPU computes: ``upload`` copies the network input to it, ``download`` the logits from it.
GPU_STAGES = (*STAGES[:2], "upload", *STAGES[2:4], "download", *STAGES[4:])
# Of each stage.
_DURATIONS_KEPT = 300


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Store the duration of the body in ``seconds[stage]``."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


class StageTimes:
    """The most recent durations of each stage. Any thread may record and read."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the duration of the body under ``name``."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    @contextlib.contextmanager
    def stage_in_parts(self, name: str) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
        """Yield a function that makes contexts; record the total duration of their bodies under ``name``."""
        total = 0.0

        @contextlib.contextmanager
        def part() -> Iterator[None]:
            nonlocal total
            start = time.perf_counter()
            yield
            total += time.perf_counter() - start

        yield part
        self.add(name, total)

    def add(self, name: str, seconds: float) -> None:
        """Record one duration of stage ``name``, seconds."""
        self._seconds.setdefault(name, deque(maxlen=_DURATIONS_KEPT)).append(seconds)

    def clear(self) -> None:
        """Forget all durations, such as those of the first, slower frame."""
        self._seconds.clear()

    def summary_ms(self) -> dict[str, dict[str, float]]:
        """Summarise the stages recorded so far: ``{stage: {"median": ms, "p95": ms}}``."""
        recorded = {name: list(seconds) for name, seconds in list(self._seconds.items())}
        return {name: summarise_ms(seconds) for name, seconds in recorded.items() if seconds}


class Rate:
    """Events per second over the last ``window_s`` seconds. One thread records; any thread may read."""

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        # Bounded, so that a flood of events cannot fill the memory. A flood then reads as this many in a window.
        self._times: deque[float] = deque(maxlen=5000)
        self._start = time.monotonic()

    def add(self) -> None:
        """Record an event that happens now."""
        self._times.append(time.monotonic())

    def per_second(self) -> float:
        """Return the current rate; 0 after a window without events."""
        now = time.monotonic()
        recent = sum(moment > now - self._window_s for moment in list(self._times))
        return recent / min(self._window_s, max(now - self._start, 1.0))


class RateLimit:
    """Admits events at most at a rate, in steady time. One thread uses it.

    Events that come a little too early do not lower the rate: the next one is due a period after this one was, not
    after it came. So of a camera's 30 frames per second a limit of 20 admits 20, not 15.
    """

    def __init__(self) -> None:
        self._due = float("-inf")

    def admits(self, rate_hz: float) -> bool:
        """Whether an event that happens now is admitted; ``rate_hz`` may change, and 0 admits all."""
        if not rate_hz:
            return True
        now, period = time.monotonic(), 1.0 / rate_hz
        # A due time further off than a period was set by a lower rate before.
        if now < self._due <= now + period:
            return False
        self._due = (self._due if 0 <= now - self._due < period else now) + period
        return True


def summarise_ms(seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile, milliseconds, of a non-empty list of seconds."""
    median, p95 = np.percentile(np.asarray(seconds) * 1000.0, (50, 95))
    return {"median": round(float(median), 3), "p95": round(float(p95), 3)}
