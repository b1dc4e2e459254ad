"""The parts of rclpy that have no public way, in one place. The tests run this on each ROS distribution."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node

#: What rclpy raises for an error of the C library below it; its own class is private.
RclError = RuntimeError


def given_parameters(node: Node) -> Collection[str]:
    """Names of the parameters given in files and on the command line, declared or not."""
    return getattr(node, "_parameter_overrides", {}).keys()


def answer_invalid_transitions(node: LifecycleNode) -> None:
    """Make a node answer a request for an invalid transition with ``success = false``.

    On Jazzy rclpy raises an error out of spin instead, and the requester waits for an answer that never comes.
    """
    service = getattr(node, "_service_change_state", None)
    if service is None:
        return
    change_state = service.callback

    def guarded(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except RclError as error:
            node.get_logger().warning(f"a transition request was refused: {error}")
            response.success = False
            return response

    service.callback = guarded
