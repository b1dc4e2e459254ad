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

    def settled_counts(self) -> dict[str, int]:
        """The counts of the node's one camera at a moment when no frame is in flight."""

        def counts_of(status: Any) -> dict[str, int]:
            return {key: int(value) for key, value in status.values.items() if value.isdecimal()}

        def is_settled(status: Any) -> bool:
            counts = counts_of(status)
            dropped = sum(value for key, value in counts.items() if key.startswith("dropped: "))
            return counts["frames received"] == counts["frames segmented"] + dropped

        name = "segmentation: camera"
        self.wait(name, lambda _: True, "counts")  # may have been on its way before the last frame
        return counts_of(self.wait(name, is_settled, "the end of work"))


class _Status:
    def __init__(self, status: Any) -> None:
        self.level, self.message = status.level, status.message
        self.values = {pair.key: pair.value for pair in status.values}

    def __repr__(self) -> str:
        return f"{self.level!r} {self.message} {self.values}"
