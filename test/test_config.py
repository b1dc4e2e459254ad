"""What lies in config/ fits the node: its parameters, its topics, its classes."""

from __future__ import annotations

import contextlib
import json

import pytest
import yaml

from dinov3_seg_ros.frames.output_classes import load_class_list
from dinov3_seg_ros.support.resources import resource_path

NODE_TOPICS = {
    f"/segmentation/{name}"
    for name in (
        "mask", "mask/compressed", "confidence", "color_mask", "overlay", "overlay/compressed", "camera_info",
        "label_info",
    )
}  # fmt: skip


def read(name):
    return resource_path(f"config/{name}").read_text()


def topics_in(value):
    """Every text below a value that begins like one of the node's topics."""
    if isinstance(value, dict):
        return set().union(*map(topics_in, value.values()))
    if isinstance(value, list):
        return set().union(*map(topics_in, value))
    return {value} if isinstance(value, str) and value.startswith("/segmentation") else set()


@pytest.mark.parametrize("name", ["segmentation.rviz", "foxglove_layout.json", "nav2_costmap.yaml"])
def test_topics_are_the_nodes(name):
    found = topics_in(json.loads(read(name)) if name.endswith("json") else yaml.safe_load(read(name)))
    assert found
    assert found <= NODE_TOPICS


def test_every_panel_of_the_foxglove_layout_is_configured():
    layout = json.loads(read("foxglove_layout.json"))

    def panels(part):
        return {part} if isinstance(part, str) else panels(part["first"]) | panels(part["second"])

    assert panels(layout["layout"]) == set(layout["configById"])


def test_the_costmap_knows_exactly_the_classes_that_are_published():
    costmap = yaml.safe_load(read("nav2_costmap.yaml"))["local_costmap"]["local_costmap"]["ros__parameters"]
    camera = costmap["semantic_layer"]["camera"]
    known = {name for kind in camera["class_types"] for name in camera[kind]["classes"]}
    assert known == set(load_class_list(resource_path("config/classes/navigation.yaml")).classes)


def test_nav2s_manager_manages_the_node_by_the_name_it_has():
    (manager,) = yaml.safe_load(read("nav2_lifecycle_manager.yaml")).values()
    assert manager["ros__parameters"]["node_names"] == ["segmentation"]
    assert "nav2_lifecycle_manager.yaml" in resource_path("launch/nav2.launch.py").read_text()


@pytest.mark.ros
@pytest.mark.parametrize("namespace", ["", "/robot"])
def test_nav2s_manager_finds_its_parameters_in_any_namespace(tmp_path, namespace):
    rclpy = pytest.importorskip("rclpy", reason="no ROS 2 here", exc_type=ImportError)
    from ros_graph import Graph  # it sets the transport up, which must come before the first node of a process

    file, context = str(resource_path("config/nav2_lifecycle_manager.yaml")), rclpy.Context()
    with contextlib.closing(Graph(tmp_path)):
        rclpy.init(args=["--ros-args", "--params-file", file], context=context)
        try:
            manager = rclpy.create_node(
                "lifecycle_manager_perception",
                namespace=namespace,
                context=context,
                automatically_declare_parameters_from_overrides=True,
            )
            assert list(manager.get_parameter("node_names").value) == ["segmentation"]
            manager.destroy_node()
        finally:
            rclpy.try_shutdown(context=context)


@pytest.mark.ros
def test_the_parameter_file_holds_every_default_but_the_class_names(tmp_path):
    pytest.importorskip("rclpy", reason="no ROS 2 here", exc_type=ImportError)
    from ros_graph import Graph  # it sets the transport up, which a process can do only once

    from dinov3_seg_ros.ros.parameters import NodeParameters

    with contextlib.closing(Graph(tmp_path)) as graph:
        of_any_node = set(graph.peer.get_parameters_by_prefix(""))
        NodeParameters(graph.peer)
        declared = graph.peer.get_parameters_by_prefix("")
    declared = {name: parameter.value for name, parameter in declared.items()}
    given = yaml.safe_load(read("segmentation.yaml"))["/**"]["ros__parameters"]
    assert given == {name: declared[name] for name in declared.keys() - of_any_node - {"class_names"}}
