"""What all transitions share: they tell how they ended, and wait without keeping the node from answering."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.task import Future

from dinov3_seg_ros.ros.health.fault_log import describe_error

#: A transition callback of a lifecycle node.
Callback = Callable[..., TransitionCallbackReturn]

# The state that each transition leads to when it succeeds.
_TARGETS = {
    "on_configure": "inactive",
    "on_activate": "active",
    "on_deactivate": "inactive",
    "on_cleanup": "unconfigured",
    "on_shutdown": "finalized",
    "on_error": "unconfigured",
}
# Where the others fail, the node stays in its state.
_TARGETS_OF_FAILURE = {"on_shutdown": "finalized", "on_error": "finalized"}


class ReportedNode(Protocol):
    """A lifecycle node that remembers its state and its last error."""

    state: str
    last_error: str
    context: Any

    def get_logger(self) -> Any:
        """Return the node's logger."""


def reported(transition: Callback) -> Callback:
    """Log what a transition callback raises and return FAILURE; rclpy would swallow it without a word."""

    @functools.wraps(transition)
    def wrapper(self: ReportedNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            result = transition(self, state)
        except Exception as error:
            self.last_error = f"{transition.__name__} failed: {describe_error(error)}"
            self.state = _TARGETS_OF_FAILURE.get(transition.__name__, self.state)
            if self.context.ok():  # else the process is ending, and the transition failed of that
                self.get_logger().error(self.last_error)
            return TransitionCallbackReturn.FAILURE
        self.last_error = ""
        if result == TransitionCallbackReturn.SUCCESS:
            self.state = _TARGETS[transition.__name__]
        return result

    return wrapper


async def wait_in_thread(node: Node, wait: Callable[[], object]) -> None:
    """Let ``wait`` wait in a thread of its own, while the node's executor serves others."""
    executor = node.executor
    assert executor is not None, "coroutines run in an executor"
    future: Future[None] = Future(executor=executor)

    def wait_and_wake() -> None:
        try:
            wait()
        finally:
            future.set_result(None)
            executor.wake()

    threading.Thread(target=wait_and_wake, name="wait", daemon=True).start()
    await future
