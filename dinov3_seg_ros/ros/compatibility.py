"""The parts of rclpy that have no public way, in one place. The tests run this on each ROS distribution."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node

from dinov3_seg_ros.ros.endpoints.qos import own_group

#: What rclpy raises for an error of the C library below it; its own class is private.
RclError = RuntimeError

#: Answers a request for a transition, given its name and a function that makes it and tells whether it succeeded.
Answer = Callable[[str, Callable[[], bool]], Awaitable[bool]]

# The shutdowns of the other states are left out: they have nothing to prepare, and an active node refuses them.
_NAMES = {
    Transition.TRANSITION_CONFIGURE: "configure",
    Transition.TRANSITION_CLEANUP: "cleanup",
    Transition.TRANSITION_ACTIVATE: "activate",
    Transition.TRANSITION_DEACTIVATE: "deactivate",
    Transition.TRANSITION_ACTIVE_SHUTDOWN: "shutdown",
}


def given_parameters(node: Node) -> Collection[str]:
    """Names of the parameters given in files and on the command line, declared or not."""
    return getattr(node, "_parameter_overrides", {}).keys()


def answer_transitions(node: LifecycleNode, answer: Answer) -> None:
    """Let ``answer`` answer the requests for transitions, one after the other, while other services are served.

    rclpy itself answers within one callback, and holds the callback group of all of the node's services meanwhile. On
    Jazzy it also raises an error out of spin for an invalid transition, and the requester waits for an answer that
    never comes: here the answer is ``success = false``.
    """
    service = next(service for service in node.services if service.srv_type is ChangeState)
    change_state = service.callback

    async def answer_request(request: Any, response: Any) -> Any:
        def change() -> bool:
            try:
                return bool(change_state(request, response).success)
            except RclError as error:
                node.get_logger().warning(f"a transition request was refused: {error}")
                return False

        name = request.transition.label or _NAMES.get(request.transition.id, "")
        response.success = await answer(name, change)
        return response

    service.callback = answer_request
    # The other services are in the node's own group, of which rclpy serves one at a time.
    service.callback_group = own_group()
    service.callback_group.add_entity(service)


def destroy_state_machine(node: LifecycleNode) -> None:
    """Destroy what rclpy's ``destroy_node`` leaves of a lifecycle node.

    It keeps the DDS participant alive, whose shared memory stays behind where a process ends by ``os._exit``.
    """
    node._state_machine.destroy_when_not_in_use()
