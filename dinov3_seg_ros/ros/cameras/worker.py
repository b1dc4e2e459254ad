"""A worker that always takes the newest frames: one slot for each camera; older frames are dropped."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

#: Finishes a turn that was started; returns for how many of its items it computed anything.
Finish = Callable[[], int]


class Pace(NamedTuple):
    """How long a worker's turns take.

    Attributes:
        oldest_s: seconds that the oldest turn being processed has taken until now; 0 where there is none.
        expected_s: seconds that it may be expected to take (where there is none, a turn of one item): for each of its
            items as long as the shorter of the last two turns took for one, so that one that hung is no measure. A turn
            that computed nothing counts only where it took longer.
    """

    oldest_s: float = 0.0
    expected_s: float = 0.0


class _TakenItems(NamedTuple):
    """Items being processed: the slots they were in, and when they were taken, seconds of the monotonic clock."""

    slots: Sequence[str]
    at: float


class LatestFrameWorker:
    """Calls ``start`` with the newest item of each slot in a thread of its own, then calls what ``start`` returns.

    `put` never waits: it replaces an item that has not been taken. Slots that are filled at the same moment are handed
    over together, the one with the oldest last turn first. So a fast camera cannot starve a slow one, and among
    cameras that always send in the same order the last one does not lose the most frames.

    Args:
        start: called with ``[(slot, item), ...]``; returns a function that finishes them. An exception in either is
            passed to ``on_error``, and the worker goes on.
        on_error: called, in the thread that failed, with the slots of the items and the exception.
        max_items: the most items handed over at once.
        overlap: whether a second thread finishes items while the first starts the next, which pays where another
            device computes in between. At most two turns are in flight, so that items are still taken late.
        expected_s: how long an item of the first turn may be expected to take.
    """

    def __init__(
        self,
        start: Callable[[Sequence[tuple[str, Any]]], Finish],
        on_error: Callable[[Sequence[str], BaseException], None],
        max_items: int = 1,
        overlap: bool = False,
        expected_s: float = 0.0,
    ) -> None:
        self._start, self._on_error, self._max_items = start, on_error, max_items
        self._waiting: dict[str, Any] = {}
        self._last_turns: dict[str, int] = {}
        self._condition = threading.Condition()
        self._stopping = False
        self._taken: list[_TakenItems] = []
        self._last_s = deque([expected_s] if expected_s else [], maxlen=2)
        self._left_at = 0.0
        self._room = threading.Semaphore(2 if overlap else 1)
        self._started: SimpleQueue[tuple[_TakenItems, Finish] | None] = SimpleQueue()
        self._hand_over = self._started.put if overlap else self._end_turn
        # Daemons, so that a GPU that never answers does not keep the process from ending.
        self._threads = [threading.Thread(target=self._take_turns, name="segmentation_worker", daemon=True)]
        if overlap:
            self._threads.append(threading.Thread(target=self._end_turns, name="segmentation_finisher", daemon=True))

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, slot: str, item: Any) -> bool:
        """Leave an item for the worker; True when one is dropped: that which it replaces, or, after `stop`, itself."""
        with self._condition:
            if self._stopping:
                return True
            replaces = slot in self._waiting
            self._waiting[slot] = item
            self._condition.notify()
            return replaces

    def stop(self) -> list[str]:
        """Take no further item, and return the slots whose items are dropped; those being processed may finish."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
            return list(self._waiting)

    def join(self, timeout_s: float) -> bool:
        """Wait until the items being processed are finished; False where they are not after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def pace(self) -> Pace:
        """How long turns take; any thread may ask."""
        with self._condition:
            if not self._taken:
                return Pace(0.0, self._expected_s())
            oldest = self._taken[0]
            return Pace(self._took_s(oldest), self._expected_s() * len(oldest.slots))

    def _took_s(self, taken: _TakenItems) -> float:
        # One that was taken while another hung has only waited until then.
        return time.monotonic() - max(taken.at, self._left_at)

    def _expected_s(self) -> float:
        return min(self._last_s, default=0.0)

    def _take_turns(self) -> None:
        while items := self._next():
            taken = _TakenItems([slot for slot, _ in items], time.monotonic())
            with self._condition:
                self._taken.append(taken)
            try:
                finish = self._start(items)
            except BaseException as error:  # any kind: nobody else would see it, and join() would wait for ever
                self._report(taken.slots, error)
                self._leave(taken, 0)
            else:
                self._hand_over((taken, finish))
        self._started.put(None)

    def _end_turns(self) -> None:
        while started := self._started.get():
            self._end_turn(started)

    def _end_turn(self, started: tuple[_TakenItems, Finish]) -> None:
        taken, finish = started
        computed = 0
        try:
            computed = finish()
        except BaseException as error:
            self._report(taken.slots, error)
        self._leave(taken, computed)

    def _leave(self, taken: _TakenItems, computed: int) -> None:
        with self._condition:
            self._taken.remove(taken)
            took_s, self._left_at = self._took_s(taken), time.monotonic()
            if computed or took_s > self._expected_s():
                self._last_s.append(took_s / (computed or 1))
        self._room.release()

    def _report(self, slots: Sequence[str], error: BaseException) -> None:
        with contextlib.suppress(BaseException):  # a failing report must not stop the next frame
            self._on_error(slots, error)

    def _next(self) -> list[tuple[str, Any]]:
        """The items of the next turn, once there is room for one; empty when the worker stops."""
        self._room.acquire()
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._stopping)
            return [] if self._stopping else self._take()

    def _take(self) -> list[tuple[str, Any]]:
        slots = sorted(self._waiting, key=lambda slot: self._last_turns.get(slot, 0))[: self._max_items]
        turn = max(self._last_turns.values(), default=0)
        self._last_turns |= {slot: turn + place for place, slot in enumerate(slots, start=1)}
        return [(slot, self._waiting.pop(slot)) for slot in slots]
