"""The launch files describe the node as the README says: through ros2/launch itself, or stand-ins where it is not."""

from __future__ import annotations

import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import launch_stand_ins
import pytest
import yaml

if launch_stand_ins.are_needed():
    launch_stand_ins.use()

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument
from launch_ros.actions import LifecycleNode

from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.support.errors import ParameterError
from dinov3_seg_ros.support.option_model import describe_options
from dinov3_seg_ros.support.option_values import read_options
from dinov3_seg_ros.support.resources import resource_path

#: How a node is told to take the demo's bundle.
DEMO = f"bundle:={resource_path('weights/demo')}"


def description_of(name):
    return runpy.run_path(str(resource_path(f"launch/{name}")))["generate_launch_description"]()


def nodes_of(name, context=None, **given):
    context = context or LaunchContext()
    context.launch_configurations.update(given)
    return launch_stand_ins.started_by(description_of(name), context)


def nodes_of_seg_launch(**given):
    return nodes_of("seg.launch.py", **given)


def parameters_of(node):
    """The parameters that a node is given beside its file, by name."""
    if hasattr(node, "parameters"):
        return node.parameters[-1]
    return {"".join(part.text for part in key): value for key, value in node._Node__parameters[-1].items()}


def file_of(node):
    """The parameter file that a node is given, if any."""
    if hasattr(node, "parameters"):
        *files, _ = node.parameters
    else:
        files = [str(file.param_file) for file in node._Node__parameters[:-1]]
    return files[0] if files else None


def ending_and_logging_of(node):
    """Whether a node is started again when it ends, and its ROS arguments."""
    if hasattr(node, "respawn"):
        return node.respawn, node.ros_arguments
    return node._ExecuteLocal__respawn, node._Node__ros_arguments


def texts_of(value):
    """The words of a parameter; launch holds them as YAML, in parts."""
    return [word if isinstance(word, str) else yaml.safe_load("".join(part.text for part in word)) for word in value]


def remappings_of(node):
    if hasattr(node, "remappings"):
        return dict(node.remappings)
    return {
        "".join(part.text for part in name): "".join(part.text for part in target)
        for name, target in node._Node__remappings
    }


@pytest.fixture
def warnings(monkeypatch):
    """The warnings of seg.launch.py. Loggers of ros2/launch do not propagate, so `caplog` has none."""
    said = []
    monkeypatch.setattr(logging.getLogger("seg.launch.py"), "warning", said.append)
    return said


@pytest.mark.parametrize("name", ["seg.launch.py", "demo.launch.py", "nav2.launch.py"])
def test_a_launch_file_needs_no_library_of_the_nodes_environment(name):
    """`ros2` runs under the system's Python, which has pydantic 1 on Ubuntu 24.04, and none of what pip brings."""
    script = (
        f"import sys, runpy; sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}\n"
        "import launch_stand_ins as stand_ins; stand_ins.use()\n"
        f"described = runpy.run_path({str(resource_path(f'launch/{name}'))!r})['generate_launch_description']()\n"
        "assert stand_ins.started_by(described, stand_ins.LaunchContext())\n"
    )
    # -S leaves out all installed packages.
    run = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True, text=True, timeout=60, env={"AMENT_PREFIX_PATH": sys.prefix},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_seg_launch_starts_one_lifecycle_node():
    (node,) = nodes_of_seg_launch(bundle="given", image_topic="given", namespace="given")
    assert isinstance(node, LifecycleNode)


def test_a_parameter_file_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my file.yaml").touch()
    (node,) = nodes_of_seg_launch(params_file="~/my file.yaml")
    assert file_of(node) == str(tmp_path / "my file.yaml")


@pytest.mark.parametrize("given", [{}, {"bundles": "one, other"}, {"params_file": "mine.yaml"}, {"bundle": "mine"}])
def test_the_demos_bundle_is_taken_where_neither_argument_nor_file_names_one(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    (node,) = nodes_of_seg_launch(**given)
    assert (DEMO in ending_and_logging_of(node)[1]) == (not given)


def test_defaults_do_not_overrule_what_an_including_launch_file_sets_for_all_its_nodes():
    """launch_ros puts that after a node's ROS arguments and before its parameters, and ROS takes the last value."""
    (node,) = nodes_of_seg_launch()
    assert file_of(node) is None
    assert parameters_of(node) == {}


def test_what_an_including_launch_file_leaves_empty_has_its_default():
    (node,) = nodes_of_seg_launch(**dict.fromkeys(("image_topic", "params_file", "log_level", "respawn"), ""))
    assert remappings_of(node) == {"image": "image", "camera_info": "camera_info"}
    assert file_of(node) is None
    assert ending_and_logging_of(node) == (False, ["--log-level", "info", "-p", DEMO])


def test_a_launch_file_knows_the_parameters_as_the_node_describes_them():
    assert read_options(resource_path("launch/parameters.json")) == describe_options(NodeOptions)


def test_every_parameter_of_the_node_is_an_argument():
    parts = description_of("seg.launch.py").entities
    arguments = {part.name for part in parts if isinstance(part, DeclareLaunchArgument)}
    assert describe_options(NodeOptions).keys() <= arguments


def test_arguments_become_parameters_of_the_right_type():
    given = {"threads": "2", "network_size": "[64, 96]", "cameras": "front, left", "overlay_names": "true"}
    (node,) = nodes_of_seg_launch(bundle="given", confidence_threshold="0.5", **given)
    values = parameters_of(node)
    assert {name: values[name] for name in ("threads", "overlay_names", "confidence_threshold")} == {
        "threads": 2, "overlay_names": True, "confidence_threshold": 0.5,
    }  # fmt: skip
    assert list(values["network_size"]) == [64, 96]
    assert texts_of(values["cameras"]) == ["front", "left"]


@pytest.mark.parametrize(
    ("text", "value"), [("full", "full"), ("0,4095", [0, 4095]), ("[28000, 30040]", [28000, 30040])]
)
def test_a_value_range_is_a_word_or_two_numbers(text, value):
    (node,) = nodes_of_seg_launch(bundle="given", value_range=text)
    found = parameters_of(node)["value_range"]
    assert (texts_of([found])[0] if value == "full" else list(found)) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("threads", "two"),
        ("network_size", "64x96"),
        ("overlay_names", "yes"),
        ("runtime", "tflite"),
        ("device", "tpu"),
        ("mask_size", "half"),
        ("respawn", "yes"),
        ("respawn", "1"),
        ("use_sim_time", "yes"),
        ("log_level", "loud"),
        ("log_level", "segmentation:=loud"),
        ("params_file", "/nowhere.yaml"),
        ("image_topic", "/camera/image_raw/"),
        ("image_topic", "camera image"),
        ("image_topic", "camera//image"),
        ("camera_info_topic", "../camera_info"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_by_its_name(name, text):
    with pytest.raises(ParameterError, match=f"{name} is '{text}'"):
        nodes_of_seg_launch(bundle="given", **{name: text})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("cameras", "front,2nd", "cameras holds '2nd'"),
        ("providers", "CUDA", "providers holds 'CUDA'"),
        ("value_range", "4095", "value_range is 4095"),
    ],
)
def test_an_argument_of_several_values_is_refused_too(name, text, said):
    with pytest.raises(ParameterError, match=said):
        nodes_of_seg_launch(bundle="given", **{name: text})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"image_topic": "/camera/image_raw"}, {"image": "/camera/image_raw", "camera_info": "/camera/camera_info"}),
        ({"image_topic": "raw", "camera_info_topic": "info"}, {"image": "raw", "camera_info": "info"}),
        (
            {"cameras": "front, left", "image_topic": "image_raw"},
            {
                "front/image": "front/image_raw",
                "left/image": "left/image_raw",
                "front/camera_info": "front/camera_info",
            },
        ),
    ],
)
def test_topics_of_one_camera_or_of_several_are_remapped(given, expected):
    (node,) = nodes_of_seg_launch(bundle="given", **given)
    assert expected.items() <= remappings_of(node).items()


@pytest.mark.parametrize(
    ("argument", "topic", "relative"),
    [("image_topic", "/camera/image_raw", "image_raw"), ("camera_info_topic", "~/info", "info")],
)
def test_an_absolute_topic_is_refused_with_several_cameras(argument, topic, relative):
    with pytest.raises(ParameterError, match=f"{argument} is '{topic}', .*{argument}:={relative} for front/{relative}"):
        nodes_of_seg_launch(cameras="front,left", **{argument: topic})


@pytest.mark.parametrize(("respawn", "log_level"), [("true", "debug"), ("False", "WARN"), ("True", "rcl:=fatal")])
def test_respawn_and_log_level_reach_the_node(respawn, log_level):
    (node,) = nodes_of_seg_launch(bundle="given", respawn=respawn, log_level=log_level)
    assert ending_and_logging_of(node) == (respawn.lower() == "true", ["--log-level", log_level])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bundel", "bundle"),
        ("confidence_treshold", "confidence_threshold"),
        ("parameters_file", "params_file"),
        ("loglevel", "log_level"),
    ],
)
def test_a_misspelt_argument_is_named_with_the_nearest_one(name, near, warnings):
    nodes_of_seg_launch(**{name: "given"})
    assert warnings == [f"launch argument '{name}' is unknown and ignored (did you mean '{near}'?)"]


@pytest.mark.parametrize(
    "given",
    [
        {"ros_namespace": "/robot", "global_params": []},
        {"use_namespace": "false", "use_respawn": "true", "camera_name": "front", "rgb_camera_info_topic": "/info"},
        {"parameters_file": "theirs.yaml", "params_file": "mine.yaml"},
    ],
    ids=["of launch_ros", "of other launch files", "whose like is given"],
)
def test_nothing_is_said_of_arguments_of_others(given, warnings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    for name in ("seg.launch.py", "demo.launch.py", "nav2.launch.py"):
        nodes_of(name, **given)
    assert warnings == []


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("False", False), ("", None)])
def test_use_sim_time_is_a_parameter_only_where_it_is_given(text, expected):
    (node,) = nodes_of_seg_launch(bundle="given", use_sim_time=text)
    assert parameters_of(node).get("use_sim_time") is expected


def test_demo_launch_adds_a_camera_with_its_arguments():
    context = LaunchContext()
    _, camera = nodes_of("demo.launch.py", context, **{name: f"the {name}" for name in ("source", "rate", "seconds")})
    words = camera.arguments if hasattr(camera, "arguments") else camera._Node__arguments
    assert [word if isinstance(word, str) else word.perform(context) for word in words] == [
        "--source", "the source", "--rate", "the rate", "--seconds", "the seconds",
    ]  # fmt: skip


def test_nav2_launch_leaves_it_to_the_manager_to_start_the_node():
    node, _ = nodes_of("nav2.launch.py")
    assert parameters_of(node)["autostart"] is False
    assert ending_and_logging_of(node)[0] is True


def test_nav2_launch_keeps_its_settings_from_what_is_launched_after_it():
    context = LaunchContext()
    nodes_of("nav2.launch.py", context, autostart="true")
    assert context.launch_configurations["autostart"] == "true"
    (node,) = nodes_of("seg.launch.py", context, autostart="")
    assert not {"autostart", "exit_after_hang"} & parameters_of(node).keys()
    assert ending_and_logging_of(node)[0] is False


@pytest.mark.parametrize(
    ("name", "beside"), [("nav2.launch.py", "lifecycle_manager_perception"), ("demo.launch.py", "camera")]
)
@pytest.mark.parametrize(("given", "namespace"), [({}, ""), ({"namespace": "robot"}, "/robot")])
def test_what_runs_beside_the_node_is_in_its_namespace(name, beside, given, namespace):
    names = [node.node_name for node in nodes_of(name, **given)]
    assert names == [f"{namespace}/segmentation", f"{namespace}/{beside}"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 30.0),
        ({"exit_after_hang": "5.0"}, 5.0),
        ({"params_file": "mine.yaml"}, None),
        ({"params_file": "mine.yaml", "exit_after_hang": "0.0"}, 0.0),
    ],
)
def test_nav2_launch_ends_a_hung_node_unless_argument_or_file_say_otherwise(given, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    node, _ = nodes_of("nav2.launch.py", **given)
    assert parameters_of(node).get("exit_after_hang") == expected


@pytest.fixture
def run_documented_file(tmp_path, monkeypatch):
    """Run the launch file in docs/node.md, with arguments of its own, where the package is installed as by colcon."""
    prefix = tmp_path / "install"
    index = prefix / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    (index / "dinov3_seg_ros").touch()
    (prefix / "share/dinov3_seg_ros").symlink_to(resource_path("launch").parent)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix), prepend=os.pathsep)
    (content,) = re.findall(r"^```python\n(.*?)^```$", resource_path("docs/node.md").read_text(), re.M | re.S)
    (tmp_path / "robot.launch.py").write_text(content)

    def run(**arguments):
        context = LaunchContext()
        context.launch_configurations.update(arguments)
        description = runpy.run_path(str(tmp_path / "robot.launch.py"))["generate_launch_description"]()
        return launch_stand_ins.started_by(description, context), context.launch_configurations

    return run


def test_the_documented_launch_file_starts_two_nodes_with_their_own_arguments(run_documented_file):
    (front, rear), left = run_documented_file()
    assert [front.node_name, rear.node_name] == ["/front/segmentation", "/rear/segmentation"]
    assert [remappings_of(node)["image"] for node in (front, rear)] == ["/front/image_raw", "/rear/image_raw"]
    assert parameters_of(front)["confidence_threshold"] == 0.5
    assert parameters_of(rear).keys() == {"bundle"}
    assert dict(left) == {}


def test_the_documented_launch_file_leaves_its_own_arguments_to_others(run_documented_file):
    own = {"namespace": "robot", "params_file": "nav2.yaml", "ros_namespace": "/robot"}
    (front, rear), left = run_documented_file(**own)
    assert [front.node_name, rear.node_name] == ["/robot/front/segmentation", "/robot/rear/segmentation"]
    assert file_of(front) is None
    assert dict(left) == own
