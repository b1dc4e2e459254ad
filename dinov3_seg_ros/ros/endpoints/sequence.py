"""Which messages of a topic were dropped by the transport, and which came twice, by what rclpy tells of each."""

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
        name = _publisher_of(info)
        if number is None or (not name and publishers != 1):
            self._last.clear()
            return 0
        last = self._last.get(name, number)
        _remember(self._last, name, number)
        # A publisher without identity that was restarted begins at 1 again.
        return max(number - last - 1, 0)


class NewestFirst:
    """Tells a message that is newer than all before it from one that has come already, by another subscription.

    Messages of one publisher are ordered by their numbers. Where their publisher is unknown (before Kilted), all are
    ordered by the time at which they were sent, and where that is unknown too (Humble), by the stamp of their header.
    One whose stamp is empty then counts as newer: better twice than never.
    """

    def __init__(self) -> None:
        self._newest: dict[bytes, Any] = {}

    def is_newer(self, info: Mapping[str, Any], stamp: tuple[int, int]) -> bool:
        """Whether a message is newer than all that were remembered.

        Args:
            info: rclpy's MessageInfo; may be empty.
            stamp: of the message's header, seconds and nanoseconds.
        """
        name, place = _place_of(info, stamp)
        return place == (0, 0) or name not in self._newest or place > self._newest[name]

    def remember(self, info: Mapping[str, Any], stamp: tuple[int, int]) -> None:
        """Remember a message, with the arguments of `is_newer`, as the newest of its publisher."""
        _remember(self._newest, *_place_of(info, stamp))


def stamp_of(header: Any) -> tuple[int, int]:
    """The stamp of a std_msgs/Header, seconds and nanoseconds: it names a frame."""
    return header.stamp.sec, header.stamp.nanosec


def _place_of(info: Mapping[str, Any], stamp: tuple[int, int]) -> tuple[bytes, Any]:
    """The publisher of a message, and the message's place among those of that publisher."""
    name, number = _publisher_of(info), info.get("publication_sequence_number")
    if name and number is not None:
        return name, number
    return b"", info.get("source_timestamp") or stamp


def _publisher_of(info: Mapping[str, Any]) -> bytes:
    """The identity of a message's publisher; empty where rclpy does not tell."""
    publisher = info.get("publisher_gid")
    return bytes(publisher["data"]) if publisher else b""


def _remember(newest: dict[bytes, Any], name: bytes, number: Any) -> None:
    if name not in newest and len(newest) >= _MOST_PUBLISHERS:
        newest.clear()
    newest[name] = number
