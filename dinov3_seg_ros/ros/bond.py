"""The heartbeat by which Nav2's lifecycle manager knows that a node which it has activated is alive.

The manager and the node each publish ``bond/msg/Status`` on ``bond``, with the node's name as the bond's id. Where the
manager does not hear the node within half its ``bond_timeout`` after activation, or later for the whole of it, it takes
all its nodes down.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

from rclpy.node import Node
from rclpy.type_support import check_for_type_support

from dinov3_seg_ros.ros.endpoints.qos import own_group

# As for vision_msgs: a broken build raises errors of many types.
try:
    from bond.msg import Status

    check_for_type_support(Status)
except Exception:
    Status = None
#: Whether heartbeats can be published.
HAS_BOND = Status is not None

#: As Nav2's own servers do.
PERIOD_S = 0.25
_TOPIC, _DEPTH = "bond", 10
# What the servers of Nav2 say they wait for. The manager has its own, bond_timeout, and looks at that alone.
_TIMEOUT_S = 4.0


class Bond:
    """Heartbeats between `start` and `stop`, from a thread of their own and in steady time.

    Args:
        node: the node that is alive.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher: Any = None
        self._instance = ""
        self._thread: threading.Thread | None = None
        self._is_broken = threading.Event()

    def start(self, period_s: float, is_managed: bool) -> None:
        """Publish a heartbeat now and in every period. Without the package bond, warn that there will be none.

        Args:
            period_s: seconds; 0 for none; negative for `PERIOD_S` where the node is managed, and else for none.
            is_managed: whether somebody else made the node's transitions.
        """
        if period_s < 0:
            period_s = PERIOD_S if is_managed else 0.0
        if not period_s:
            return
        if not HAS_BOND:
            self._node.get_logger().warning(
                "no heartbeats are published: the package bond is not installed. Nav2's lifecycle manager will give "
                "the node up: sudo apt install ros-$ROS_DISTRO-bond, or set the manager's bond_timeout to 0.0"
            )
            return
        if self._publisher is None:
            self._publisher = self._node.create_publisher(Status, _TOPIC, _DEPTH, callback_group=own_group())
        self._instance = str(uuid.uuid4())
        self._is_broken.clear()
        self._thread = threading.Thread(target=self._beat, args=(period_s,), name="bond", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say that the bond ends: the manager need not wait until it misses a heartbeat."""
        if self._thread is not None:
            self._is_broken.set()
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Stop, and remove the publisher."""
        self.stop()
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None

    def _beat(self, period_s: float) -> None:
        while self._node.context.ok():
            is_over = self._is_broken.is_set()
            self._publisher.publish(self._status(not is_over, period_s))
            if is_over:
                return
            self._is_broken.wait(period_s)

    def _status(self, is_active: bool, period_s: float) -> Any:
        message = Status(id=self._node.get_name(), instance_id=self._instance, active=is_active)
        message.heartbeat_timeout, message.heartbeat_period = _TIMEOUT_S, period_s
        # Steady time, as bond's own library has it.
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.monotonic_ns(), 10**9)
        return message
