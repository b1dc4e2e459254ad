"""The launch files describe the node as the README says; runs where ros2/launch is installed."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("launch_ros", reason="launch_ros is not installed")

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import LifecycleNode, Node

from dinov3_seg_ros.resources import resource_path


def entities_of(name):
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), resource_path(f"launch/{name}"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description().entities


def nodes_of_seg_launch(**given):
    context = LaunchContext()
    entities = entities_of("seg.launch.py")
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            context.launch_configurations[entity.name] = given.pop(entity.name, entity.default_value[0].text)
    assert given == {}, "unknown arguments"
    return [node for entity in entities if isinstance(entity, OpaqueFunction) for node in entity.execute(context)]


def test_seg_launch_starts_one_lifecycle_node_with_the_documented_arguments():
    names = ("bundle", "runtime", "image_topic", "image_transport", "namespace", "params_file")
    (node,) = nodes_of_seg_launch(**dict.fromkeys(names, "given"))
    assert isinstance(node, LifecycleNode)


def test_demo_launch_adds_a_camera():
    assert sum(isinstance(entity, Node) for entity in entities_of("demo.launch.py")) == 1
