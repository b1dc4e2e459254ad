"""When a GPU computes what: steps on several streams, in one order, timed by the GPU itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar


class Event(Protocol):
    """A moment on a stream. PyTorch's events and those of `runtimes.tensorrt.cuda` have these methods."""

    def synchronize(self) -> None:
        """Wait until the stream has come to it."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Return the milliseconds until a later moment."""


AnyEvent = TypeVar("AnyEvent", bound=Event)
SomeEvent = TypeVar("SomeEvent", contravariant=True)


class Stream(Protocol[SomeEvent]):
    """A queue of a GPU. PyTorch's streams and those of `runtimes.tensorrt.cuda` have these methods."""

    def wait_event(self, event: SomeEvent, /) -> None:
        """Start nothing that is queued from now on before the event."""

    def record_event(self, event: SomeEvent, /) -> Any:
        """Make the event the moment at which everything queued so far is done."""


class Timeline(Generic[AnyEvent]):
    """Steps that are put on a GPU's streams without waiting. Each begins when the one before has ended.

    Args:
        new_event: makes an event that measures time.
        events: the pairs of events of a timeline that is over, to use again by stage; filled here.
    """

    def __init__(
        self, new_event: Callable[[], AnyEvent], events: dict[str, tuple[AnyEvent, AnyEvent]] | None = None
    ) -> None:
        self._new_event, self._events = new_event, {} if events is None else events
        self._stages: list[str] = []

    @contextlib.contextmanager
    def step(self, stage: str, stream: Stream[AnyEvent]) -> Iterator[None]:
        """Take what the body puts on ``stream`` for this stage."""
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
        """Wait for the last step; return the seconds that each stage took on the GPU."""
        self._events[self._stages[-1]][1].synchronize()
        marks = ((stage, *self._events[stage]) for stage in self._stages)
        return {stage: begin.elapsed_time(end) / 1000.0 for stage, begin, end in marks}
