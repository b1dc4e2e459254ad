"""A subscription whose quality of service follows the publishers of its topic."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy

from dinov3_seg_ros.ros.endpoints.publishers import Publisher, policy_name
from dinov3_seg_ros.ros.endpoints.qos import FOLLOW, Endpoints
from dinov3_seg_ros.ros.endpoints.sequence import NewestFirst, stamp_of

# A publisher that has discovered the new subscription has sent to it by then, unless it sends nothing.
_LEAST_OVERLAP_S, _LONGEST_OVERLAP_S = 1.0, 10.0
# Where publishers change faster than that, so many subscriptions that were replaced stay for a while.
_MOST_REPLACED = 2
# Only the newest message is used, but each holds a place while the transport assembles it from its parts: with a single
# place, reliable images of 1080p displaced each other.
_DEPTH = 5


class _Asked(NamedTuple):
    """What a subscription asks for."""

    reliability: ReliabilityPolicy = ReliabilityPolicy.BEST_EFFORT
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE

    def profile(self) -> QoSProfile:
        # A reliable publisher does not wait for us: in this history a newer message replaces an older one.
        return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=_DEPTH, **self._asdict())


class FollowingSubscription:
    """Takes the newest message of a topic: reliably where all its publishers offer that, else best effort.

    A best-effort subscription matches every publisher, but the transport may drop its messages; a reliable one gets
    nothing from a best-effort publisher. A subscription cannot be changed, so `follow` replaces it when publishers
    come, go or differ. Both live side by side for a moment, and what both bring is passed on once.

    The parameter ``qos_overrides.<topic>.subscription.reliability`` fixes the reliability.

    Args:
        endpoints: creates the subscriptions.
        message_type: a message with a header.
        topic: its name; remapping applies.
        callback: called in the executor's thread with each message and rclpy's MessageInfo.
        follow_durability: whether to ask also for the message sent before, where all publishers keep it.

    Attributes:
        topic: the full name, remapped.

    Raises:
        ParameterError: an override cannot be used.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        message_type: type,
        topic: str,
        callback: Callable[[Any, Mapping[str, Any]], None],
        follow_durability: bool = False,
    ) -> None:
        self._endpoints, self._message_type, self._callback = endpoints, message_type, callback
        self._name, self.topic = topic, endpoints.resolve(topic)
        self._fixed_reliability = endpoints.override(self.topic, QoSPolicyKind.RELIABILITY, FOLLOW)
        durability = FOLLOW if follow_durability else policy_name(DurabilityPolicy.VOLATILE)
        self._fixed_durability = endpoints.override(self.topic, QoSPolicyKind.DURABILITY, durability)
        self._lock = threading.Lock()  # `close` may be called from another thread than `follow`
        self._order = NewestFirst()
        self._asked = _Asked()
        self._generation = 0
        self._replaced: list[Any] = []
        self._replaced_at, self._has_delivered = float("-inf"), False
        self._asked = self._wanted()
        self._current: Any = self._subscribe(self._asked)

    @property
    def fixed(self) -> dict[str, str]:
        """The policies for which publishers are not followed: name and value in words."""
        policies = {"reliability": self._fixed_reliability, "durability": self._fixed_durability}
        return {name: policy_name(policy) for name, policy in policies.items() if policy is not None}

    @property
    def reliability(self) -> str:
        """The reliability asked for now, in words, and by whose choice."""
        chosen_by = "the publishers'" if self._fixed_reliability is None else "by qos_overrides"
        return f"{policy_name(self._asked.reliability)} ({chosen_by})"

    def matched(self) -> int:
        """How many publishers match."""
        subscription = self._current
        return self._endpoints.publisher_count(subscription) if subscription is not None else 0

    def publishers(self) -> list[Publisher]:
        """All publishers on the topic, also those of other types, and those that do not match."""
        return self._endpoints.publishers_on(self._name)

    def follow(self) -> None:
        """Ask for what the publishers offer now. Call about twice a second, in the executor's thread."""
        with self._lock:
            if self._current is None:
                return
            self._end_overlap()
            if (wanted := self._wanted()) != self._asked:
                self._replace(wanted)

    def close(self) -> None:
        """Unsubscribe."""
        with self._lock:
            self._keep_replaced(0)
            if self._current is not None:
                self._endpoints.unsubscribe(self._current)
            self._current = None

    def _wanted(self) -> _Asked:
        """What matches every publisher of our type; where there is none, what is asked for now."""
        reliability, durability = self._asked
        offers = [publisher.qos for publisher in self.publishers() if publisher.sends(self._message_type)]
        if offers:
            is_reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
            is_latched = all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
            reliability = ReliabilityPolicy.RELIABLE if is_reliable else ReliabilityPolicy.BEST_EFFORT
            durability = DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE
        return _Asked(
            reliability if self._fixed_reliability is None else self._fixed_reliability,
            durability if self._fixed_durability is None else self._fixed_durability,
        )

    def _subscribe(self, asked: _Asked) -> Any:
        self._generation += 1
        generation = self._generation

        def take(message: Any, info: Mapping[str, Any]) -> None:
            stamp = stamp_of(message.header)
            self._has_delivered |= generation == self._generation
            if not self._replaced or self._order.is_newer(info, stamp):
                self._order.remember(info, stamp)
                self._callback(message, info)

        return self._endpoints.subscribe(
            self._message_type, self._name, take, asked.profile(), lambda: self._wanted().profile()
        )

    def _replace(self, wanted: _Asked) -> None:
        replacement = self._subscribe(wanted)
        self._replaced.append(self._current)
        self._current, self._asked = replacement, wanted
        self._replaced_at, self._has_delivered = time.monotonic(), False
        self._keep_replaced(_MOST_REPLACED)

    def _end_overlap(self) -> None:
        overlap_s = time.monotonic() - self._replaced_at
        if overlap_s > (_LEAST_OVERLAP_S if self._has_delivered else _LONGEST_OVERLAP_S):
            self._keep_replaced(0)

    def _keep_replaced(self, most: int) -> None:
        """Remove the oldest subscriptions that were replaced, until so many are left."""
        while len(self._replaced) > most:
            self._endpoints.unsubscribe(self._replaced.pop(0), is_replaced=True)
