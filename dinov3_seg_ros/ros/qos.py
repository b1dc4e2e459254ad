"""Quality of service: what the node requests and offers, the user's overrides, and peers that do not match."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions

from dinov3_seg_ros.ros.distributions import PublisherEventCallbacks, SubscriptionEventCallbacks, publisher_count
from dinov3_seg_ros.support.errors import ParameterError

#: Best effort matches every driver, and only the newest frame counts.
INPUT_QOS = QoSProfile(
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
)
#: Reliable, so that both kinds of subscriber match.
OUTPUT_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
    history=HistoryPolicy.KEEP_LAST,
    depth=5,
)
LATCHED_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
)

# Parameters such as qos_overrides./segmentation/mask.publisher.reliability.
_OVERRIDABLE = (QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY)


class Endpoints:
    """Creates the node's subscriptions and publishers, and knows which of their peers do not match.

    A mismatch is the most common reason why nothing arrives. The middleware reports only that there is one, often
    before the peer's name is known. So the event only marks the topic, and `mismatches` examines it later.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        # Our own profile, by topic and whether we publish on it.
        self._marked: dict[tuple[str, bool], QoSProfile] = {}
        self._logged: set[str] = set()

    def subscribe(self, message_type: type, topic: str, callback: Callable[..., None], qos: QoSProfile) -> Any:
        """Create a subscription; the user may override its quality of service. ``callback`` takes (message[, info])."""
        qos, mark = self._prepare(topic, qos, False)
        return _created(
            topic,
            lambda: self._node.create_subscription(
                message_type,
                topic,
                callback,
                qos,
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=mark),
                callback_group=own_group(),
                qos_overriding_options=QoSOverridingOptions(_OVERRIDABLE),
            ),
        )

    def advertise(self, message_type: type, topic: str, qos: QoSProfile) -> Any:
        """Create a lifecycle publisher; the user may override its quality of service unless it is latched."""
        qos, mark = self._prepare(topic, qos, True)
        latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
        return _created(
            topic,
            lambda: self._node.create_lifecycle_publisher(
                message_type,
                topic,
                qos,
                event_callbacks=PublisherEventCallbacks(incompatible_qos=mark),
                callback_group=own_group(),
                qos_overriding_options=None if latched else QoSOverridingOptions(_OVERRIDABLE),
            ),
        )

    def publisher_count(self, subscription: Any) -> int:
        """How many publishers match a subscription."""
        return publisher_count(self._node, subscription)

    def unsubscribe(self, subscription: Any) -> None:
        """Remove a subscription."""
        self._marked.pop((subscription.topic_name, False), None)
        self._node.destroy_subscription(subscription)

    def withdraw(self, publisher: Any) -> None:
        """Remove a publisher."""
        self._marked.pop((publisher.topic_name, True), None)
        self._node.destroy_lifecycle_publisher(publisher)

    def mismatches(self) -> list[str]:
        """One line for each peer that does not match, naming both sides and the difference; each is logged once."""
        lines = []
        for (topic, publishes), ours in list(self._marked.items()):
            found = self._mismatches_of(topic, publishes, ours)
            if not found:
                del self._marked[topic, publishes]  # the peer has left
            lines += found
        for line in set(lines) - self._logged:
            self._node.get_logger().warning(line)
        self._logged = set(lines)
        return lines

    def _mismatches_of(self, topic: str, publishes: bool, ours: QoSProfile) -> list[str]:
        look = self._node.get_subscriptions_info_by_topic if publishes else self._node.get_publishers_info_by_topic
        lines = []
        for peer in look(topic):
            pair = (ours, peer.qos_profile) if publishes else (peer.qos_profile, ours)
            compatibility, reason = qos_check_compatible(*pair)
            if compatibility == QoSCompatibility.ERROR:
                name = f"{peer.node_namespace.rstrip('/')}/{peer.node_name}"
                sides = ("publisher", "subscriber") if publishes else ("subscriber", "publisher")
                lines.append(
                    f"{topic}: {sides[0]} {self._node.get_fully_qualified_name()} ({_described(ours)}) and {sides[1]} "
                    f"{name} ({_described(peer.qos_profile)}) do not match, and nothing passes between them: "
                    f"{reason.strip().rstrip(';')}"
                )
        return lines

    def _prepare(self, topic: str, qos: QoSProfile, publishes: bool) -> tuple[QoSProfile, Callable[[Any], None]]:
        """A copy of the profile, since overriding changes it, and the callback of its event."""
        qos, name = copy.copy(qos), self._node.resolve_topic_name(topic)

        def mark(_event: Any) -> None:
            self._marked[name, publishes] = qos

        return qos, mark


def own_group() -> CallbackGroup:
    """A callback group for one entity: the node's default group would keep a reference to it for ever."""
    return MutuallyExclusiveCallbackGroup()


def _created(topic: str, create: Callable[[], Any]) -> Any:
    try:
        return create()
    except (InvalidQosOverridesError, ParameterException, RuntimeError) as error:
        raise ParameterError(f"topic {topic} cannot be opened; check its qos_overrides: {error}") from error


def _described(qos: QoSProfile) -> str:
    return f"{qos.reliability.name}, {qos.durability.name}".lower().replace("_", " ")
