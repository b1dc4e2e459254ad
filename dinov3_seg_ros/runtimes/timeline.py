"""What is computed when on a GPU: steps on several streams, in one order, timed by the GPU itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class Timeline:
    """Steps that are put on a GPU's streams without waiting, each to begin when the one before has ended.

    Streams and events are PyTorch's, or those of `engines.cuda`, which have the same methods.

    Args:
        new_event: makes an event that times.
        events: the pairs of events of a timeline that is over, to be used again; filled here.
    """

    def __init__(self, new_event: Callable[[], Any], events: dict[str, tuple[Any, Any]] | None = None) -> None:
        self._new_event, self._events = new_event, {} if events is None else events
        self._stages: list[str] = []

    @contextlib.contextmanager
    def step(self, stage: str, stream: Any) -> Iterator[None]:
        """What the body puts on ``stream`` is this stage."""
        if stage not in self._events:
            self._events[stage] = self._new_event(), self._new_event()
        begin, end = self._events[stage]
        if self._stages:
            stream.wait_event(self._events[self._stages[-1]][1])
        stream.record_event(begin)
        yield
        stream.record_event(end)
        self._stages.append(stage)

    def wait(self) -> dict[str, float]:
        """Wait for the last step; seconds that each stage took on the GPU."""
        self._events[self._stages[-1]][1].synchronize()
        marks = ((stage, *self._events[stage]) for stage in self._stages)
        return {stage: begin.elapsed_time(end) / 1000.0 for stage, begin, end in marks}
