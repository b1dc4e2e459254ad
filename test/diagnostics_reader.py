"""What a monitor sees on /diagnostics."""

from __future__ import annotations

from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from ros_graph import Graph

OK, WARN, ERROR, STALE = (bytes([level]) for level in range(4))


class DiagnosticsReader:
    """Listens to /diagnostics; statuses are found by their name, values come as a dictionary."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._arrays: list[Any] = graph.listen("/diagnostics", reliable=True, message_type=DiagnosticArray)

    def newest(self, name: str) -> Any | None:
        """The newest status of that name, with ``values`` as a dictionary; None before the first."""
        for array in reversed(self._arrays):
            for status in array.status:
                if status.name == name:
                    return _Status(status)
        return None

    def wait(self, name: str, condition: Any, what: str) -> Any:
        """The first status of that name from now on that fulfils the condition."""
        self._arrays.clear()
        return self._graph.spin_until(
            lambda: (status := self.newest(name)) is not None and condition(status) and status,
            f"{what} in the diagnostics of {name} (newest: {self.newest(name)})",
        )


class _Status:
    def __init__(self, status: Any) -> None:
        self.level, self.message = status.level, status.message
        self.values = {pair.key: pair.value for pair in status.values}

    def __repr__(self) -> str:
        return f"{self.level!r} {self.message} {self.values}"
