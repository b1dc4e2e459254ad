"""Durations of the steps that a frame goes through."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

#: Every step of a frame, in the order of the data.
STAGES = ("message_in", "preprocess", "backbone", "heads", "decode", "overlay", "message_out")
#: The same with the copies of canvases and logits, where a GPU computes and times them.
GPU_STAGES = (*STAGES[:2], "upload", *STAGES[2:4], "download", *STAGES[4:])


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long the body takes in ``seconds``, under ``stage``."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


class StageTimes:
    """The last durations of each stage, over a bounded window. Any thread may record and read."""

    def __init__(self, window: int = 300) -> None:
        self._window = window
        self._seconds: dict[str, deque[float]] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record how long the body takes under ``name``."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    @contextlib.contextmanager
    def stage_in_parts(self, name: str) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
        """Record, as one duration, what the bodies of all contexts that are made here take together."""
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
        """Record one duration in seconds."""
        self._seconds.setdefault(name, deque(maxlen=self._window)).append(seconds)

    def clear(self) -> None:
        """Forget what was recorded, such as the first, slower frame."""
        self._seconds.clear()

    def summary_ms(self) -> dict[str, dict[str, float]]:
        """``{stage: {"median": ms, "p95": ms}}`` over the window, for the stages recorded so far."""
        recorded = {name: list(seconds) for name, seconds in list(self._seconds.items())}
        return {name: summarise_ms(seconds) for name, seconds in recorded.items() if seconds}


class Rate:
    """Events per second over the last ``window_s`` seconds. One thread records, any thread may read."""

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        # Bounded, so that a flood cannot fill the memory; it reads as at least this many in the window.
        self._times: deque[float] = deque(maxlen=5000)
        self._start = time.monotonic()

    def add(self) -> None:
        """Record one event, now."""
        self._times.append(time.monotonic())

    def per_second(self) -> float:
        """The rate, now; 0 when nothing has happened for a whole window."""
        now = time.monotonic()
        recent = sum(moment > now - self._window_s for moment in list(self._times))
        return recent / min(self._window_s, max(now - self._start, 1.0))


def summarise_ms(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds, of a non-empty list of seconds."""
    median, p95 = np.percentile(np.asarray(seconds) * 1000.0, (50, 95))
    return {"median": round(float(median), 3), "p95": round(float(p95), 3)}
