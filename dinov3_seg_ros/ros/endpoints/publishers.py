"""Who publishes on a topic, what, and in which quality of service."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from rclpy.node import Node
from rclpy.qos import QoSProfile


class _Endpoint(Protocol):
    """What is read of rclpy's TopicEndpointInfo, which ROS distributions have in different modules."""

    @property
    def node_name(self) -> str: ...

    @property
    def node_namespace(self) -> str: ...


class Publisher(NamedTuple):
    """One publisher, as discovery tells of it.

    Attributes:
        node: full name of its node.
        message_type: such as ``sensor_msgs/msg/Image``.
        qos: what it offers.
    """

    node: str
    message_type: str
    qos: QoSProfile

    def __str__(self) -> str:
        return f"{self.node} ({self.message_type}, {policy_name(self.qos.reliability)})"

    def sends(self, message_type: type) -> bool:
        """Whether its messages are of a type of rclpy's."""
        return self.message_type == type_name(message_type)


def publishers_on(node: Node, topic: str) -> list[Publisher]:
    """All publishers on a topic that ``node`` has discovered; ``topic`` is its name before remapping."""
    return [
        Publisher(node_name(info), info.topic_type, info.qos_profile)
        for info in node.get_publishers_info_by_topic(topic)
    ]


def topics_of_others(node: Node, wanted: Sequence[str]) -> dict[str, str]:
    """The topics on which other nodes than ``node`` publish one of some types: the full name, and the type."""
    return {
        topic: message_type
        for topic, types in node.get_topic_names_and_types()
        if set(types) & set(wanted)
        for message_type in _types_of_others(node, topic, types)
        if message_type in wanted
    }


def _types_of_others(node: Node, topic: str, types: Sequence[str]) -> list[str]:
    """The types that other nodes publish on a topic, given by its full name."""
    if node.resolve_topic_name(topic) != topic:
        # rclpy remaps the names that it is asked about, so it cannot tell who publishes on this one.
        return list(types) if node.count_publishers(topic) else []
    own = node.get_fully_qualified_name()
    return [publisher.message_type for publisher in publishers_on(node, topic) if publisher.node != own]


def node_name(info: _Endpoint) -> str:
    """The full name of an endpoint's node."""
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"


def type_name(message_type: type) -> str:
    """``sensor_msgs/msg/Image`` for the class of that message."""
    return f"{message_type.__module__.partition('.')[0]}/msg/{message_type.__name__}"


def policy_name(policy: IntEnum) -> str:
    """A policy in words: ``best effort``."""
    return policy.name.lower().replace("_", " ")
