"""One thread that always works on the newest frames: one slot for each camera, what is late is dropped and counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any


class LatestFrameWorker:
    """Runs ``process`` in a thread of its own on the newest item of each slot.

    `put` never waits: an item that has not been taken is replaced, and counted as dropped. Slots that wait at the same
    moment are handed over together, the one that has waited longest first, so that a fast camera cannot starve a slow
    one.

    Args:
        process: called with ``[(slot, item), ...]``; an exception it raises is passed to ``on_error`` and ends nothing.
        on_error: called, in the worker's thread, with what ``process`` raised.
        max_items: the most items handed over at once.
    """

    def __init__(
        self,
        process: Callable[[Sequence[tuple[str, Any]]], None],
        on_error: Callable[[Exception], None],
        max_items: int = 1,
    ) -> None:
        self._process, self._on_error, self._max_items = process, on_error, max_items
        self._waiting: dict[str, Any] = {}
        self._dropped: dict[str, int] = {}
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="segmentation_worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, slot: str, item: Any) -> None:
        """Leave an item for the thread, in place of the one waiting in this slot, if any."""
        with self._condition:
            if slot in self._waiting:
                self._dropped[slot] = self._dropped.get(slot, 0) + 1
            # A replaced item keeps its place in the queue: only being taken sends a slot to the back.
            self._waiting[slot] = item
            self._condition.notify()

    def dropped(self, slot: str) -> int:
        """How many items of a slot were replaced before they were taken."""
        with self._condition:
            return self._dropped.get(slot, 0)

    def stop(self) -> None:
        """Let the item in work finish, drop those waiting, and join the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                slots = list(self._waiting)[: self._max_items]
                items = [(slot, self._waiting.pop(slot)) for slot in slots]
            try:
                self._process(items)
            except Exception as error:
                with contextlib.suppress(Exception):  # whatever a report fails of, the next frame is worked on
                    self._on_error(error)
