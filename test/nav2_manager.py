"""Nav2's lifecycle manager, as far as a node sees it: its requests, what it expects, and its side of the bond.

Written from the behaviour of nav2_lifecycle_manager on Kilted: after each transition it asks for the state, which must
be the target; after the activation it waits for a heartbeat for half its ``bond_timeout`` of 4 s.
"""

from __future__ import annotations

from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from ros_graph import Graph

from dinov3_seg_ros.ros.bond import Status

#: What the manager sends to bring a node up, and down again, and the state that it then expects.
STARTUP = {
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
}
RESET = {
    Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
}
SHUTDOWN = {Transition.TRANSITION_UNCONFIGURED_SHUTDOWN: State.PRIMARY_STATE_FINALIZED}


class Nav2Manager:
    """Manages one node.

    Attributes:
        heartbeats: what the node published on ``bond``; None where the package bond is not there.
    """

    def __init__(self, graph: Graph, name: str = "/segmentation") -> None:
        self._graph, self._name = graph, name
        self.heartbeats: list[Any] | None = None
        if Status is not None:
            self.heartbeats = []
            graph.peer.create_subscription(Status, "bond", self.heartbeats.append, 100)

    def change(self, transitions: dict[int, int]) -> None:
        """Make transitions, one after the other, and check what the manager would check."""
        for transition, target in transitions.items():
            request = ChangeState.Request()
            request.transition.id = transition
            service = f"{self._name}/change_state"
            assert self._graph.call_once(ChangeState, service, request, found=self.state).success, transition
            assert self.state() == target

    def state(self) -> int:
        """The id of the node's state."""
        return self._graph.call(GetState, f"{self._name}/get_state", GetState.Request()).current_state.id

    def wait_for_bond(self) -> None:
        """Wait for a heartbeat of the node."""
        count = len(self.heartbeats)
        self._graph.spin_until(lambda: len(self.heartbeats) > count, "a heartbeat")
