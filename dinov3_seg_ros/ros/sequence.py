"""Messages that were sent and never reached the node, found by the gaps in their publishers' numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Cameras are restarted; what is known of so many publishers is worth keeping.
_MOST_PUBLISHERS = 16


class SequenceGaps:
    """Counts what a subscription did not get.

    A best-effort message is lost without an event when a newer one takes its place before the executor gets to it, or
    when the transport has no room for it; only the next message tells, by its number. What was sent before the first
    message, or after the last, cannot be known.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}

    def before(self, info: Mapping[str, Any], publishers: int) -> int:
        """The number of messages lost just before this one.

        Args:
            info: rclpy's MessageInfo. A middleware that numbers no messages gives 0 always.
            publishers: how many there are on the topic. rclpy names a message's publisher from Kilted on; without the
                name the numbers of several publishers cannot be told apart, and nothing is counted.
        """
        number, publisher = info.get("publication_sequence_number"), info.get("publisher_gid")
        if number is None or (publisher is None and publishers != 1):
            self._last.clear()
            return 0
        name = bytes(publisher["data"]) if publisher else b""
        last = self._last.get(name, number)
        if name not in self._last and len(self._last) >= _MOST_PUBLISHERS:
            self._last.clear()
        self._last[name] = number
        # A nameless publisher that was started anew begins at 1 again.
        return max(number - last - 1, 0)
