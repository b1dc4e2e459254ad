"""Quality of service: what the node requests and offers, the user's overrides, and peers that do not match."""

from __future__ import annotations

import contextlib
import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.duration import Infinite
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions

from dinov3_seg_ros.ros.endpoints.distributions import (
    ClockType,
    PublisherEventCallbacks,
    SubscriptionEventCallbacks,
    publisher_count,
    with_message_info,
)
from dinov3_seg_ros.ros.endpoints.image_types import CAMERA_INFO, PICTURE_TYPES
from dinov3_seg_ros.ros.endpoints.publishers import Publisher, node_name, policy_name, publishers_on, topics_of_others
from dinov3_seg_ros.support.errors import ParameterError, first_of

# rclpy's defaults mean the same, but `qos_check_compatible` would find that they do not match any peer's.
_NO_LIMITS: dict[str, Any] = {
    "deadline": Infinite,
    "lifespan": Infinite,
    "liveliness": LivelinessPolicy.AUTOMATIC,
    "liveliness_lease_duration": Infinite,
}
#: Reliable, so that both kinds of subscriber match.
OUTPUT_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
    history=HistoryPolicy.KEEP_LAST,
    depth=5,
    **_NO_LIMITS,
)
LATCHED_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    **_NO_LIMITS,
)

#: The value of an overriding parameter that leaves a subscription's policy to `following.FollowingSubscription`.
FOLLOW = "best_available"

# Parameters such as qos_overrides./segmentation/mask.publisher.reliability.
_OVERRIDABLE = (
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
    QoSPolicyKind.DEADLINE,
    QoSPolicyKind.LIFESPAN,
    QoSPolicyKind.LIVELINESS,
    QoSPolicyKind.LIVELINESS_LEASE_DURATION,
)
# Discovery tells of the publishers of a process that was killed, as of this node before a restart, for 20 s more.
_SECOND_AFTER_S = 30.0
_NAMED = 5
_POLICIES = {QoSPolicyKind.RELIABILITY: ReliabilityPolicy, QoSPolicyKind.DURABILITY: DurabilityPolicy}


class Endpoints:
    """Creates the node's subscriptions and publishers, and knows which of their peers do not match or interfere.

    A mismatch is the most common reason why nothing arrives. The middleware reports only that there is one, often
    before the peer's name is known. So the event only marks the topic, and `mismatches` examines it later.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        # The name before remapping and what gives our own profile, by topic and whether we publish on it.
        self._marked: dict[tuple[str, bool], tuple[str, Callable[[], QoSProfile]]] = {}
        # Of each output, by topic: the name before remapping, the type, and since when others publish there too.
        self._outputs: dict[str, tuple[str, type]] = {}
        self._shared_since: dict[str, float] = {}
        self._logged: dict[str, set[str]] = {}

    def resolve(self, topic: str) -> str:
        """The full name of a topic, remapped."""
        name: str = self._node.resolve_topic_name(topic)
        return name

    def below(self, topic: str, transport: str) -> str:
        """The name under which to open one of image_transport's transports: it follows a remap of its base topic.

        A remap of the full name goes before that.
        """
        name = f"{topic}/{transport}"
        is_remapped = self.resolve(name) != self._node.resolve_topic_name(name, only_expand=True)
        return name if is_remapped else f"{self.resolve(topic)}/{transport}"

    def publishers_on(self, topic: str) -> list[Publisher]:
        """See `publishers.publishers_on`."""
        return publishers_on(self._node, topic)

    def picture_topics(self) -> dict[str, str]:
        """The topics on which other nodes publish pictures: the full name, and the type of the messages."""
        return topics_of_others(self._node, PICTURE_TYPES)

    def calibration_topics(self) -> list[str]:
        """The full names of the topics on which other nodes publish calibrations."""
        return list(topics_of_others(self._node, (CAMERA_INFO,)))

    def override(self, topic: str, kind: QoSPolicyKind, default: str) -> Any:
        """The policy of a subscription that a parameter fixes; None where its value is `FOLLOW`.

        rclpy's own overriding cannot be used for policies that change: it keeps the value of the first subscription.

        Args:
            topic: full name.
            kind: of the policy.
            default: value of the parameter.

        Raises:
            ParameterError: the parameter has a value that cannot be used.
        """
        name = f"qos_overrides.{topic}.subscription.{kind.name.lower()}"
        descriptor = ParameterDescriptor(description=f"{kind.name.lower()} of the subscription", read_only=True)
        with _opening(topic):
            if not self._node.has_parameter(name):
                self._node.declare_parameter(name, default, descriptor)
            value = self._node.get_parameter(name).value
        if value == FOLLOW:
            return None
        policies = {policy.name.lower(): policy for policy in _POLICIES[kind] if policy.name != "UNKNOWN"}
        if value not in policies:
            raise ParameterError(
                f"topic {topic} cannot be opened; check its qos_overrides: {name} is '{value}'; "
                f"use one of: {', '.join({**policies, FOLLOW: None})}"
            )
        return policies[value]

    def subscribe(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[Any, Mapping[str, Any]], None],
        qos: QoSProfile,
        judged_by: Callable[[], QoSProfile],
    ) -> Any:
        """Create a subscription. The user may override its depth; its other policies are as in ``qos``.

        Args:
            message_type: of its messages.
            topic: its name; remapping applies.
            callback: takes a message and rclpy's MessageInfo, which may be empty.
            qos: what is asked for.
            judged_by: gives the profile with which publishers are compared to find mismatches.
        """
        with _opening(topic):
            return self._node.create_subscription(
                message_type,
                topic,
                with_message_info(callback),
                qos,
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._marker(topic, False, judged_by)),
                callback_group=own_group(),
                qos_overriding_options=QoSOverridingOptions((QoSPolicyKind.DEPTH,)),
            )

    def advertise(self, message_type: type, topic: str, qos: QoSProfile) -> Any:
        """Create a lifecycle publisher; the user may override its quality of service unless it is latched."""
        qos = copy.copy(qos)  # overriding changes it
        latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
        with _opening(topic):
            publisher: Any = self._node.create_lifecycle_publisher(
                message_type,
                topic,
                qos,
                event_callbacks=PublisherEventCallbacks(incompatible_qos=self._marker(topic, True, lambda: qos)),
                callback_group=own_group(),
                qos_overriding_options=None if latched else QoSOverridingOptions(_OVERRIDABLE),
            )
        self._outputs[publisher.topic_name] = topic, message_type
        return publisher

    def publisher_count(self, subscription: Any) -> int:
        """How many publishers match a subscription."""
        return publisher_count(self._node, subscription)

    def unsubscribe(self, subscription: Any, is_replaced: bool = False) -> None:
        """Remove a subscription; ``is_replaced`` where another one to its topic stays."""
        if not is_replaced:
            self._marked.pop((subscription.topic_name, False), None)
        self._node.destroy_subscription(subscription)

    def withdraw(self, publisher: Any) -> None:
        """Remove a publisher."""
        self._marked.pop((publisher.topic_name, True), None)
        self._outputs.pop(publisher.topic_name, None)
        self._shared_since.pop(publisher.topic_name, None)
        self._node.destroy_lifecycle_publisher(publisher)

    def start_timer(self, period_s: float, callback: Callable[[], None]) -> Any:
        """Call ``callback`` in the executor's thread, again and again until `stop_timer`."""
        # Steady time, since simulated time may stand still.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        return self._node.create_timer(period_s, callback, callback_group=own_group(), clock=clock)

    def stop_timer(self, timer: Any) -> None:
        """Remove a timer."""
        self._node.destroy_timer(timer)

    def mismatches(self) -> list[str]:
        """One line for each peer that does not match, naming both sides and the difference; each is logged once."""
        lines = []
        for (topic, publishes), (name, ours) in list(self._marked.items()):
            found = self._mismatches_of(topic, name, publishes, ours())
            if not found:
                del self._marked[topic, publishes]  # the peer has left
            lines += found
        return self._logged_once("mismatch", lines)

    def second_publishers(self) -> list[str]:
        """One line for each other node that publishes the node's outputs too; each is logged once."""
        now, shared = time.monotonic(), dict[str, list[str]]()
        for topic, (name, message_type) in list(self._outputs.items()):
            if self._node.count_publishers(topic) < 2:
                self._shared_since.pop(topic, None)
            elif now - self._shared_since.setdefault(topic, now) >= _SECOND_AFTER_S:
                nodes = Counter(found.node for found in self.publishers_on(name) if found.sends(message_type))
                for node in nodes - Counter([self._node.get_fully_qualified_name()]):
                    shared.setdefault(node, []).append(topic)
        return self._logged_once("second publisher", [self._describe_second(*item) for item in shared.items()])

    def _describe_second(self, node: str, topics: list[str]) -> str:
        who = f"another node named {node}" if node == self._node.get_fully_qualified_name() else node
        return (
            f"{who} also publishes on {first_of(sorted(topics), _NAMED)}; subscribers get the messages of both, mixed: "
            "stop it, or give one of the nodes a namespace or other topics"
        )

    def _logged_once(self, kind: str, lines: list[str]) -> list[str]:
        for line in set(lines) - self._logged.get(kind, set()):
            self._node.get_logger().warning(line)
        self._logged[kind] = set(lines)
        return lines

    def _mismatches_of(self, topic: str, name: str, publishes: bool, ours: QoSProfile) -> list[str]:
        look = self._node.get_subscriptions_info_by_topic if publishes else self._node.get_publishers_info_by_topic
        lines = []
        for peer in look(name):  # it remaps the name itself
            pair = (ours, peer.qos_profile) if publishes else (peer.qos_profile, ours)
            compatibility, reason = qos_check_compatible(*pair)
            if compatibility == QoSCompatibility.ERROR:
                sides = ("publisher", "subscriber") if publishes else ("subscriber", "publisher")
                lines.append(
                    f"{topic}: {sides[0]} {self._node.get_fully_qualified_name()} ({_described(ours)}) and {sides[1]} "
                    f"{node_name(peer)} ({_described(peer.qos_profile)}) do not match, and nothing passes between "
                    f"them: {reason.strip().rstrip(';')}"
                )
        return lines

    def _marker(self, topic: str, publishes: bool, ours: Callable[[], QoSProfile]) -> Callable[[Any], None]:
        """The callback of the event that a peer does not match."""
        full_name = self.resolve(topic)

        def mark(_event: Any) -> None:
            self._marked[full_name, publishes] = topic, ours

        return mark


def own_group() -> CallbackGroup:
    """A callback group for one entity: the node's default group would keep a reference to it for ever."""
    return MutuallyExclusiveCallbackGroup()


@contextlib.contextmanager
def _opening(topic: str) -> Iterator[None]:
    """Raise ParameterError where rclpy cannot open a topic with the overrides, or under the name, given."""
    try:
        yield
    except (InvalidQosOverridesError, ParameterException, RuntimeError) as error:
        remedy = "check its qos_overrides"
        if "incompatible type" in str(error):
            remedy = "check the remappings: it is open with another type in this process"
        elif "type support" in str(error).lower():
            remedy = "source the workspace that its message package was built in: a library of it is missing"
        raise ParameterError(f"topic {topic} cannot be opened; {remedy}: {error}") from error


def _described(qos: QoSProfile) -> str:
    return f"{policy_name(qos.reliability)}, {policy_name(qos.durability)}"
