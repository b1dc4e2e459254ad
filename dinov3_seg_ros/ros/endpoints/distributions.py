"""What rclpy has elsewhere, or not at all, in older ROS distributions; chosen by what is there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.node import Node

try:
    from rclpy.clock_type import ClockType
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks

    _TELLS_INFO = True  # callbacks of subscriptions have got it since rclpy has had this module
except ImportError:  # Humble
    _TELLS_INFO = False
    from rclpy.clock import ClockType  # type: ignore[attr-defined] # it is of another module in newer ones
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

__all__ = [
    "ClockType",
    "PublisherEventCallbacks",
    "SubscriptionEventCallbacks",
    "publisher_count",
    "with_message_info",
]


def with_message_info(callback: Callable[[Any, Mapping[str, Any]], None]) -> Callable[..., None]:
    """The callback of a subscription that takes a message and rclpy's MessageInfo; on Humble the latter is empty."""
    return callback if _TELLS_INFO else functools.partial(_without_info, callback)


def publisher_count(node: Node, subscription: Any) -> int:
    """How many publishers match a subscription; on Humble, how many there are on its topic."""
    if hasattr(subscription, "get_publisher_count"):
        return int(subscription.get_publisher_count())
    return node.count_publishers(subscription.topic_name)


def _without_info(callback: Callable[[Any, Mapping[str, Any]], None], message: Any) -> None:
    callback(message, {})
