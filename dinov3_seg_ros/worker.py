"""One thread that always works on the newest frames: one slot for each camera, and what is late is dropped."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any


class LatestFrameWorker:
    """Runs ``process`` in a thread of its own on the newest item of each slot.

    `put` never waits: an item that has not been taken is replaced. Slots that wait at the same moment are handed over
    together, first the one whose last turn is longest ago. So a fast camera cannot starve a slow one, and of cameras
    that send at the same moment, always in the same order, the last does not bear all the losses.

    Args:
        process: called with ``[(slot, item), ...]``; an exception it raises is passed to ``on_error`` and ends nothing.
        on_error: called, in the worker's thread, with the slots of the items and what ``process`` raised of them.
        max_items: the most items handed over at once.
    """

    def __init__(
        self,
        process: Callable[[Sequence[tuple[str, Any]]], None],
        on_error: Callable[[Sequence[str], Exception], None],
        max_items: int = 1,
    ) -> None:
        self._process, self._on_error, self._max_items = process, on_error, max_items
        self._waiting: dict[str, Any] = {}
        self._last_turns: dict[str, int] = {}
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="segmentation_worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, slot: str, item: Any) -> bool:
        """Leave an item for the thread; True when it takes the place of one that is now dropped."""
        with self._condition:
            replaces = slot in self._waiting
            self._waiting[slot] = item
            self._condition.notify()
            return replaces

    def stop(self) -> list[str]:
        """Let the item in work finish, and join the thread; the slots whose items were waiting and are now dropped."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()
        return list(self._waiting)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                items = self._take()
            try:
                self._process(items)
            except Exception as error:
                with contextlib.suppress(Exception):  # whatever a report fails of, the next frame is worked on
                    self._on_error([slot for slot, _ in items], error)

    def _take(self) -> list[tuple[str, Any]]:
        slots = sorted(self._waiting, key=lambda slot: self._last_turns.get(slot, 0))[: self._max_items]
        turn = max(self._last_turns.values(), default=0)
        self._last_turns |= {slot: turn + place for place, slot in enumerate(slots, start=1)}
        return [(slot, self._waiting.pop(slot)) for slot in slots]
