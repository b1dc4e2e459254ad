"""Services that switch segmentation, and each head, on and off."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from rclpy.lifecycle import LifecycleNode
from std_srvs.srv import SetBool

from dinov3_seg_ros.ros.endpoints.qos import own_group


class Switches:
    """``~/enable``, as long as the node lives, and ``~/heads/<bundle name>/enable`` while it is configured.

    Args:
        node: the node that serves.

    Attributes:
        is_on: whether frames are segmented at all.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self.is_on = True
        self._heads_off: set[str] = set()
        self._services: list[Any] = []
        self._serve("~/enable", self._switch_all)

    def add_heads(self, names: Iterable[str]) -> None:
        """Serve a switch for each head; all are on."""
        for name in names:
            self._services.append(self._serve(f"~/heads/{name}/enable", functools.partial(self._switch_head, name)))

    def remove_heads(self) -> None:
        """Remove the heads' switches; a head that is added later is on."""
        for service in self._services:
            self._node.destroy_service(service)
        self._services.clear()
        self._heads_off.clear()

    def head_is_on(self, name: str) -> bool:
        """Whether a head's outputs are computed."""
        return name not in self._heads_off

    def _switch_all(self, on: bool) -> str:
        self.is_on = on
        return f"segmentation is {_on_or_off(on)}"

    def _switch_head(self, name: str, on: bool) -> str:
        (self._heads_off.discard if on else self._heads_off.add)(name)
        return f"head '{name}' is {_on_or_off(on)}"

    def _serve(self, name: str, switch: Callable[[bool], str]) -> Any:
        def answer(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
            response.success, response.message = True, switch(request.data)
            return response

        return self._node.create_service(SetBool, name, answer, callback_group=own_group())


def _on_or_off(on: bool) -> str:
    return "on" if on else "off"
