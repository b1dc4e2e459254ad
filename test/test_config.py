"""What lies in config/ fits the node: its parameters, its topics, its classes."""

from __future__ import annotations

import contextlib
import json

import pytest
import yaml

from dinov3_seg_ros.frames.output_classes import load_class_list
from dinov3_seg_ros.support.resources import resource_path


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
    ports = pytest.importorskip("dinov3_seg_ros.ros.cameras.ports", reason="no ROS 2 here", exc_type=ImportError)
    assert found <= {f"/segmentation/{name}" for name in ports.OUTPUTS}


def test_every_panel_of_the_foxglove_layout_is_configured():
    layout = json.loads(read("foxglove_layout.json"))

    def panels(part):
        return {part} if isinstance(part, str) else panels(part["first"]) | panels(part["second"])

    assert panels(layout["layout"]) == set(layout["configById"])


@pytest.fixture
def costmap_layer():
    costmap = yaml.safe_load(read("nav2_costmap.yaml"))
    return costmap["local_costmap"]["local_costmap"]["ros__parameters"]["semantic_layer"]


def test_the_costmap_knows_exactly_the_classes_that_are_published(costmap_layer):
    camera = costmap_layer["camera"]
    known = {name for kind in camera["class_types"] for name in camera[kind]["classes"]}
    assert known == set(load_class_list(resource_path("config/classes/navigation.yaml")).classes)


def test_the_costmap_keeps_clouds_until_a_slow_mask_arrives(costmap_layer):
    rate_hz, latency_s = 30, 0.9
    assert costmap_layer["sensor_data_depth"] > rate_hz * latency_s


def test_floor_costs_nothing_but_counts_before_unlabelled_pixels_of_its_tile(costmap_layer):
    camera, cost_of_unlabelled = costmap_layer["camera"], 0
    assert camera["use_cost_selection"]
    floor, blocked = (camera[kind] for kind in camera["class_types"])
    assert cost_of_unlabelled < floor["max_cost"] < blocked["max_cost"]
    assert floor["base_cost"] == 0
    assert floor["mark_confidence"] >= 255, "a confidence above it would raise the tile to max_cost"


@pytest.mark.parametrize("name", ["segmentation.rviz", "foxglove_layout.json"])
def test_viewers_show_colours_since_class_ids_look_black(name):
    found = topics_in(json.loads(read(name)) if name.endswith("json") else yaml.safe_load(read(name)))
    assert {"/segmentation/color_mask", "/segmentation/overlay/compressed"} <= found
    assert "/segmentation/mask" not in found


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
