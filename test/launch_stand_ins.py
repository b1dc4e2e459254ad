"""The part of ros2/launch and ros2/launch_ros that the launch files use, for environments without them.

No registry has these packages. The stand-ins keep what they are given, so that a launch file's own functions can run.
"""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace


class LaunchContext:
    def __init__(self):
        self.launch_configurations = {}


class LaunchDescription:
    def __init__(self, entities):
        self.entities = entities


class DeclareLaunchArgument:
    def __init__(self, name, *, default_value, description):
        self.name, self.description = name, description
        self.default_value = [SimpleNamespace(text=default_value)]


class OpaqueFunction:
    def __init__(self, *, function):
        self._function = function

    def execute(self, context):
        return self._function(context)


class LaunchConfiguration:
    def __init__(self, name):
        self._name = name

    def perform(self, context):
        return context.launch_configurations[self._name]


class Node:
    def __init__(self, *, executable, name, output, package=None, namespace=None, parameters=(), remappings=(),
                 arguments=(), ros_arguments=(), respawn=False, respawn_delay=0.0):  # fmt: skip
        self.parameters, self.remappings, self.namespace = parameters, remappings, namespace
        self.respawn, self.ros_arguments, self.arguments = respawn, ros_arguments, arguments


class LifecycleNode(Node):
    pass


class PythonLaunchDescriptionSource:
    def __init__(self, path):
        self.path = path


class IncludeLaunchDescription:
    def __init__(self, source, *, launch_arguments=()):
        self.source, self.launch_arguments = source, launch_arguments


_MODULES = {
    "launch": (LaunchContext, LaunchDescription),
    "launch.actions": (DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction),
    "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
    "launch.substitutions": (LaunchConfiguration,),
    "launch_ros": (),
    "launch_ros.actions": (LifecycleNode, Node),
}


def use() -> None:
    """Let ``import launch`` and ``import launch_ros`` find the stand-ins."""
    for name, classes in _MODULES.items():
        module = types.ModuleType(name)
        vars(module).update({one.__name__: one for one in classes})
        sys.modules[name] = module
