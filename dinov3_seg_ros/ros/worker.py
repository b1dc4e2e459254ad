"""Threads that always work on the newest frames: one slot for each camera, and what is late is dropped."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

#: What is left to do of a turn that was started.
Finish = Callable[[], None]


class LatestFrameWorker:
    """Runs ``start`` in a thread of its own on the newest item of each slot, then what it returns.

    `put` never waits: an item that has not been taken is replaced. Slots that wait at the same moment are handed over
    together, first the one whose last turn is longest ago. So a fast camera cannot starve a slow one, and of cameras
    that send at the same moment, always in the same order, the last does not bear all the losses.

    Args:
        start: called with ``[(slot, item), ...]``; returns what is then left to do. An exception that either raises is
            passed to ``on_error`` and ends nothing.
        on_error: called, in the thread that failed, with the slots of the items and what was raised of them.
        max_items: the most items handed over at once.
        overlap: whether a second thread finishes items while the first starts the next: worth it where another device
            computes in between. No more than two turns are under way then, so that items are still taken late.
    """

    def __init__(
        self,
        start: Callable[[Sequence[tuple[str, Any]]], Finish],
        on_error: Callable[[Sequence[str], BaseException], None],
        max_items: int = 1,
        overlap: bool = False,
    ) -> None:
        self._start, self._on_error, self._max_items = start, on_error, max_items
        self._waiting: dict[str, Any] = {}
        self._last_turns: dict[str, int] = {}
        self._condition = threading.Condition()
        self._stopping = False
        self._room = threading.Semaphore(2 if overlap else 1)
        self._started: SimpleQueue[tuple[Sequence[str], Finish] | None] = SimpleQueue()
        self._hand_over = self._started.put if overlap else self._end_turn
        self._threads = [threading.Thread(target=self._take_turns, name="segmentation_worker")]
        if overlap:
            self._threads.append(threading.Thread(target=self._end_turns, name="segmentation_finisher"))

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, slot: str, item: Any) -> bool:
        """Leave an item for the thread; True when it takes the place of one that is now dropped."""
        with self._condition:
            replaces = slot in self._waiting
            self._waiting[slot] = item
            self._condition.notify()
            return replaces

    def stop(self) -> list[str]:
        """Let the items in work finish and join the threads; the slots whose items waited and are dropped."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        return list(self._waiting)

    def _take_turns(self) -> None:
        while items := self._next():
            slots = [slot for slot, _ in items]
            try:
                finish = self._start(items)
            except BaseException as error:  # whatever it is: nobody else sees it, and stop() would wait for ever
                self._report(slots, error)
                self._room.release()
            else:
                self._hand_over((slots, finish))
        self._started.put(None)

    def _end_turns(self) -> None:
        while turn := self._started.get():
            self._end_turn(turn)

    def _end_turn(self, turn: tuple[Sequence[str], Finish]) -> None:
        slots, finish = turn
        try:
            finish()
        except BaseException as error:
            self._report(slots, error)
        self._room.release()

    def _report(self, slots: Sequence[str], error: BaseException) -> None:
        with contextlib.suppress(BaseException):  # whatever a report fails of, the next frame is worked on
            self._on_error(slots, error)

    def _next(self) -> list[tuple[str, Any]]:
        """The next turn's items, once there is room for a turn; none when the worker stops."""
        self._room.acquire()
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._stopping)
            return [] if self._stopping else self._take()

    def _take(self) -> list[tuple[str, Any]]:
        slots = sorted(self._waiting, key=lambda slot: self._last_turns.get(slot, 0))[: self._max_items]
        turn = max(self._last_turns.values(), default=0)
        self._last_turns |= {slot: turn + place for place, slot in enumerate(slots, start=1)}
        return [(slot, self._waiting.pop(slot)) for slot in slots]
