"""The part of ros2/launch and ros2/launch_ros that the launch files use, for environments without them.

No registry has these packages. The stand-ins keep what they are given, so that a launch file's own functions can run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import runpy
import sys
import types
from types import SimpleNamespace


class LaunchContext:
    def __init__(self):
        self.launch_configurations = {}


class LaunchDescription:
    def __init__(self, entities):
        self.entities = entities

    def visit(self, context):
        return self.entities


class DeclareLaunchArgument:
    def __init__(self, name, *, default_value, description):
        self.name, self.description = name, description
        self.default_value = [SimpleNamespace(text=default_value)]

    def visit(self, context):
        context.launch_configurations.setdefault(self.name, self.default_value[0].text)


class OpaqueFunction:
    def __init__(self, *, function):
        self._function = function

    def visit(self, context):
        return self._function(context)


class GroupAction:
    def __init__(self, actions):
        self._actions = actions

    def visit(self, context):
        outer = dict(context.launch_configurations)

        def restore(context):
            context.launch_configurations = outer

        return [*self._actions, OpaqueFunction(function=restore)]


class LaunchConfiguration:
    def __init__(self, name):
        self._name = name

    def perform(self, context):
        return context.launch_configurations[self._name]


class Node:
    def __init__(self, *, executable, name, output, package=None, namespace="", parameters=(), remappings=(),
                 arguments=(), ros_arguments=(), respawn=False, respawn_delay=0.0):  # fmt: skip
        self.parameters, self.remappings, self.node_name, self._namespace = parameters, remappings, name, namespace
        self.respawn, self.ros_arguments, self.arguments = respawn, ros_arguments, arguments

    def _perform_substitutions(self, context):
        namespace = self._namespace if isinstance(self._namespace, str) else self._namespace.perform(context)
        pushed = context.launch_configurations.get("ros_namespace", "").strip("/")
        self.node_name = "/" + "/".join(filter(None, (pushed, namespace, self.node_name)))


class LifecycleNode(Node):
    pass


class FindPackageShare:
    def __init__(self, package):
        self._package = package

    def perform(self, context):
        return f"{os.environ['AMENT_PREFIX_PATH'].split(os.pathsep)[0]}/share/{self._package}"


class PythonLaunchDescriptionSource:
    def __init__(self, path):
        self._path = [path] if isinstance(path, str) else path

    def location(self, context):
        return "".join(part if isinstance(part, str) else part.perform(context) for part in self._path)


class IncludeLaunchDescription:
    def __init__(self, source, *, launch_arguments=()):
        self._source, self._launch_arguments = source, launch_arguments

    def visit(self, context):
        context.launch_configurations.update(self._launch_arguments)
        return [runpy.run_path(self._source.location(context))["generate_launch_description"]()]


def get_logger(name):
    return logging.getLogger(name)


_MODULES = {
    "launch": (LaunchContext, LaunchDescription),
    "launch.actions": (DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction),
    "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
    "launch.logging": (get_logger,),
    "launch.substitutions": (LaunchConfiguration,),
    "launch_ros": (),
    "launch_ros.actions": (LifecycleNode, Node),
    "launch_ros.substitutions": (FindPackageShare,),
}


def use() -> None:
    """Let ``import launch`` and ``import launch_ros`` find the stand-ins."""
    for name, content in _MODULES.items():
        module = types.ModuleType(name)
        vars(module).update({one.__name__: one for one in content})
        sys.modules[name] = module


def are_needed() -> bool:
    """Whether ros2/launch is missing, and the stand-ins are not used yet."""
    return "launch_ros" not in sys.modules and importlib.util.find_spec("launch_ros") is None


def started_by(entity, context):
    """The nodes that a part of a launch file starts, with their full names; of ros2/launch or of the stand-ins."""
    from launch_ros.actions import Node

    if isinstance(entity, Node):
        entity._perform_substitutions(context)
        return [entity]
    return [node for part in entity.visit(context) or () for node in started_by(part, context)]
