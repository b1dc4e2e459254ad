"""Messages dropped by the transport, found by gaps in their publishers' sequence numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Cameras are restarted, each time as a new publisher; so many are remembered.
_MOST_PUBLISHERS = 16


class SequenceGaps:
    """Counts the messages that a subscription did not get.

    No event tells that a best-effort message was lost, be it because a newer one replaced it before the executor took
    it, or because the transport had no room. Only the number of the next message tells. Messages sent before the first
    one received, or after the last, cannot be counted.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}

    def before(self, info: Mapping[str, Any], publishers: int) -> int:
        """The number of messages lost just before this one.

        Args:
            info: rclpy's MessageInfo. Where the middleware numbers no messages, the result is always 0.
            publishers: how many publish on the topic. rclpy identifies a message's publisher from Kilted on; without
                that, the numbers of several publishers cannot be told apart, and nothing is counted.
        """
        number: int | None = info.get("publication_sequence_number")
        publisher = info.get("publisher_gid")
        if number is None or (publisher is None and publishers != 1):
            self._last.clear()
            return 0
        name = bytes(publisher["data"]) if publisher else b""
        last = self._last.get(name, number)
        if name not in self._last and len(self._last) >= _MOST_PUBLISHERS:
            self._last.clear()
        self._last[name] = number
        # A publisher without identity that was restarted begins at 1 again.
        return max(number - last - 1, 0)
