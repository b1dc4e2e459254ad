"""The node's parameters, made from `options.NodeOptions`: declared, described, checked and refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.ros.compatibility import given_parameters
from dinov3_seg_ros.support.errors import ParameterError, nearest
from dinov3_seg_ros.support.option_model import Options, describe_options
from dinov3_seg_ros.support.option_values import Option, from_parameter, to_parameter

_CLASS_NAMES = "class_names"
_CLASS_NAMES_DESCRIPTION = "Names of the published classes of the first head, by id. Read-only."
# Parameters that rclpy declares itself.
_OF_RCLPY = ("use_sim_time", "start_type_description_service")
_OVERRIDES = "qos_overrides"


class NodeParameters:
    """Declares the parameters, and refuses changes that cannot be used or would have no effect.

    Setting one of them to the value that it has is never refused.

    Args:
        node: whose parameters they are.
        changing: called in the executor's thread when parameters are about to be set; must do no more than wake.

    Attributes:
        in_use: set by the node from when it loads the models until it releases them: changes of parameters that are
            not live are then refused.
    """

    def __init__(self, node: Node, changing: Callable[[], None] = lambda: None) -> None:
        self._node, self._changing = node, changing
        self.in_use = False
        self._publishing_class_names = False
        self._last_read = NodeOptions()
        self._told_unused: set[str] = set()
        self._options = describe_options(NodeOptions)
        for option in self._options.values():
            node.declare_parameter(option.name, to_parameter(option, option.default), _descriptor(option))
        # Not declared as read-only: then the node itself could not set it when another bundle is configured.
        node.declare_parameter(_CLASS_NAMES, [""], ParameterDescriptor(description=_CLASS_NAMES_DESCRIPTION))
        node.add_on_set_parameters_callback(self._examine)
        self._warn_of_unknown_names()

    def read(self) -> NodeOptions:
        """All parameters as they are now.

        Raises:
            ParameterError: names the first value that cannot be used.
        """
        self._last_read = NodeOptions(**{name: self._value(option) for name, option in self._options.items()})
        return self._last_read

    def current(self) -> NodeOptions:
        """The parameters as they were last read, with the live ones as they are now; cheap enough for each frame."""
        live = {name: self._value(option) for name, option in self._options.items() if option.live}
        return self._last_read.model_copy(update=live)

    def publish_class_names(self, names: Sequence[str]) -> None:
        """Set the read-only parameter ``class_names``."""
        self._publishing_class_names = True
        try:
            self._node.set_parameters([Parameter(_CLASS_NAMES, Parameter.Type.STRING_ARRAY, list(names))])
        finally:
            self._publishing_class_names = False

    def warn_of_unused_overrides(self) -> None:
        """Name each given ``qos_overrides`` that no topic has taken, once. Call when all topics are open."""
        taken = [f"{_OVERRIDES}.{name}" for name in self._node.get_parameters_by_prefix(_OVERRIDES)]
        given = [name for name in given_parameters(self._node) if name.startswith(f"{_OVERRIDES}.")]
        for name in given:
            if name in taken or name in self._told_unused:
                continue
            self._told_unused.add(name)
            endpoint, _, policy = name.rpartition(".")
            settable = [other.removeprefix(f"{endpoint}.") for other in taken if other.startswith(f"{endpoint}.")]
            if settable:
                fault = f"is ignored: {policy} cannot be set there{nearest(policy, settable)}"
                remedy = f"these can: {', '.join(sorted(settable))}"
            else:
                fault = f"fits none of the node's topics and is ignored{nearest(name, taken)}"
                remedy = (
                    "topics are named in full, with their namespace and as they are remapped, and label_info and "
                    "/diagnostics stay as they are"
                )
            self._node.get_logger().warning(f"parameter '{name}' {fault}; {remedy}")

    def _value(self, option: Option) -> Any:
        return from_parameter(option, self._node.get_parameter(option.name).value)

    def _warn_of_unknown_names(self) -> None:
        """A misspelt parameter in a file or on the command line would otherwise be ignored without a word."""
        known = [*self._options, _CLASS_NAMES, *_OF_RCLPY]
        for name in given_parameters(self._node):
            if name not in known and not name.startswith(f"{_OVERRIDES}."):
                self._node.get_logger().warning(
                    f"parameter '{name}' is unknown and ignored{nearest(name, known)}; ros2 param list "
                    f"{self._node.get_fully_qualified_name()} shows all"
                )

    def _examine(self, parameters: Sequence[Parameter[Any]]) -> SetParametersResult:
        try:
            for parameter in parameters:
                self._examine_one(parameter)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._changing()
        return SetParametersResult(successful=True)

    def _examine_one(self, parameter: Parameter[Any]) -> None:
        if parameter.name == _CLASS_NAMES:
            if not self._publishing_class_names and parameter.value != self._node.get_parameter(_CLASS_NAMES).value:
                raise ParameterError("class_names is read-only: it comes from the bundle and the class list")
            return
        option = self._options.get(parameter.name)
        if option is None:
            return
        if parameter.type_ == Parameter.Type.NOT_SET:  # rclpy deletes it then, if its type may change
            raise ParameterError(
                f"{option.name} cannot be deleted; set it to its default instead: "
                f"{to_parameter(option, option.default)!r}"
            )
        value = from_parameter(option, parameter.value)
        if value == self._value(option):
            return
        if option.name == "autostart":
            raise ParameterError("autostart is read when the process starts; start the node again with the new value")
        if self.in_use and not option.live:
            raise ParameterError(
                f"{option.name} is read when the node is configured; clean the node up first (deactivate it before, if "
                f"it is active): ros2 lifecycle set {self._node.get_fully_qualified_name()} cleanup"
            )
        NodeOptions(**{option.name: value})


def changed_parameters(options: Options) -> dict[str, Any]:
    """The options that differ from their defaults, as ROS parameters."""
    described = describe_options(type(options)).values()
    values = [(option, getattr(options, option.name)) for option in described]
    return {option.name: to_parameter(option, value) for option, value in values if value != option.default}


def _descriptor(option: Option) -> ParameterDescriptor:
    when = "May be changed at any time." if option.live else "Read when the node is configured."
    if option.name == "autostart":
        when = "Read when the process starts."
    empty = to_parameter(option, option.default)
    if empty in ("", [""], [0, 0]) and option.name != "bundle":
        when = f"Empty stands for the default. {when}" if empty != [0, 0] else f"[0, 0] stands for the default. {when}"
    descriptor = ParameterDescriptor(description=f"{option.explain()} {when}")
    # Else an empty list in a file would be an error, and a range of two numbers instead of a word.
    descriptor.dynamic_typing = option.kind in ("texts", "range")
    if option.range and option.kind == "int":
        least, most = map(int, option.range)
        descriptor.integer_range = [IntegerRange(from_value=least, to_value=most, step=1)]
    elif option.range:
        low, high = map(float, option.range)
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return descriptor
