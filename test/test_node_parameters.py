"""The node's parameters: files and command lines as people write them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("rclpy", reason="no ROS 2 here")

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from ros_graph import TIMEOUT_S, Graph

from dinov3_seg_ros.options import ComputeOptions, NodeOptions, SourceOptions
from dinov3_seg_ros.ros.parameters import NodeParameters
from dinov3_seg_ros.support.option_model import describe_options
from dinov3_seg_ros.support.option_values import from_parameter, to_parameter
from dinov3_seg_ros.support.resources import resource_path

pytestmark = pytest.mark.ros

OPTIONS = describe_options(NodeOptions)


@pytest.fixture(scope="module")
def active(small_exported_bundle, tmp_path_factory):
    """A running node."""
    folder = tmp_path_factory.mktemp("active")
    with contextlib.closing(Graph(folder)) as graph:
        node = graph.start_node(bundle=small_exported_bundle.path)
        node.wait_for_state("active")
        yield node


@pytest.fixture
def start_with_file(tmp_path):
    """Start an unconfigured node with a parameter file of the given content."""
    with contextlib.closing(Graph(tmp_path)) as graph:

        def start(**parameters):
            file = tmp_path / "parameters.yaml"
            file.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"autostart": False, **parameters}}}))
            program = ("-m", "dinov3_seg_ros.node", "--ros-args", "--params-file", str(file))
            node = graph.start_node(program=program)
            node.wait_for_state("unconfigured")
            return node

        yield start


def test_parameters_of_an_active_node_can_be_set_to_their_own_values(active, small_exported_bundle):
    given = yaml.safe_load(resource_path("config/segmentation.yaml").read_text())["/**"]["ros__parameters"]
    given["bundle"] = str(small_exported_bundle.path)
    refused = {
        name: result.reason
        for name, value in given.items()
        if not (result := active.set_parameter(name, value)).successful
    }
    assert refused == {}
    names = list(active.get_parameter("class_names").string_array_value)
    assert active.set_parameter("class_names", names).successful


def test_only_what_ros_makes_read_only_is_refused_its_own_value(active):
    def ask(kind, name, request):
        return active._graph.call(kind, f"/segmentation/{name}", request)

    names = ask(ListParameters, "list_parameters", ListParameters.Request()).result.names
    values = ask(GetParameters, "get_parameters", GetParameters.Request(names=names)).values
    parameters = [ParameterMessage(name=name, value=value) for name, value in zip(names, values, strict=True)]
    results = ask(SetParameters, "set_parameters", SetParameters.Request(parameters=parameters)).results
    refused = {name: result.reason for name, result in zip(names, results, strict=True) if not result.successful}
    assert OPTIONS.keys() | {"class_names", "use_sim_time"} <= set(names)
    assert all("read-only" in reason for reason in refused.values()), refused
    assert all(n.startswith("qos_overrides.") or n == "start_type_description_service" for n in refused), refused


@pytest.mark.parametrize("name", [*describe_options(SourceOptions), *describe_options(ComputeOptions)])
def test_parameters_read_at_configuration_cannot_change_while_active(active, name):
    others = {
        "bool": not OPTIONS[name].default,
        "int": 7,
        "size": [32, 64],
        "texts": ["CPUExecutionProvider"],
        "text": "torch",
    }
    other = {"device": "cpu", "precision": "int8", "geometry": "pad", "image_transport": "compressed"}.get(
        name, others[OPTIONS[name].kind]
    )
    result = active.set_parameter(name, other)
    assert not result.successful
    assert "read when the node is configured; clean the node up first" in result.reason
    assert result.reason.endswith("ros2 lifecycle set /segmentation cleanup")


def test_a_misspelt_parameter_is_named_with_the_nearest_one(start_with_file):
    node = start_with_file(confidence_treshold=0.5, qos_overrides={"/image": {"subscription": {"depth": 3}}})
    assert "parameter 'confidence_treshold' is unknown and ignored (did you mean 'confidence_threshold'?)" in node.log
    assert "qos_overrides" not in node.log


def test_an_override_that_fits_nothing_is_named_with_what_can_be_set(tmp_path, small_exported_bundle):
    """Once, and no override of a topic that the node opens: of several cameras, nor one that it opens anew."""
    of_publishers = "deadline, depth, durability, lifespan, liveliness, liveliness_lease_duration, reliability"
    wrong = {
        "/segmentation/mask.publisher.reliability": "fits none of the node's topics and is ignored "
        "(did you mean 'qos_overrides./robot/left/segmentation/mask.publisher.reliability'?); topics are named in full",
        "/robot/left/image.subscription.reliabilty": "is ignored: reliabilty cannot be set there "
        "(did you mean 'reliability'?); these can: depth, durability, reliability",
        "/robot/left/segmentation/mask.publisher.history": "is ignored: history cannot be set there; "
        f"these can: {of_publishers}",
    }
    right = {
        "/robot/front/image.subscription.reliability": "best_effort",
        "/robot/left/camera_info.subscription.durability": "volatile",
        "/robot/left/image.subscription.depth": 3,
        "/robot/left/segmentation/overlay/compressed.publisher.depth": 1,
    }
    with contextlib.closing(Graph(tmp_path)) as graph:
        given = {f"qos_overrides.{name}": value for name, value in (dict.fromkeys(wrong, "reliable") | right).items()}
        bundle = small_exported_bundle.path
        node = graph.start_node("robot", bundle=bundle, cameras="[front, left]", autostart=False, **given)
        assert node.change_state("configure"), node.log
        graph.spin_until(lambda: "; runtime: " in node.log, "the models")  # a slow machine activates without them
        assert "is ignored" not in node.log, "there are no subscriptions yet"
        for transition in ("activate", "deactivate", "activate"):
            assert node.change_state(transition), node.log
        for name, said in wrong.items():
            assert node.log.count(f"parameter 'qos_overrides.{name}' {said}") == 1, node.log
        assert node.log.count("is ignored") == len(wrong), node.log


def test_an_empty_list_in_a_file_means_none(start_with_file, small_exported_bundle):
    node = start_with_file(bundle=str(small_exported_bundle.path), bundles=[], cameras=[], providers=[])
    assert node.change_state("configure"), node.log
    assert "Traceback" not in node.log


def test_a_value_that_cannot_be_used_is_refused_with_those_that_can(start_with_file):
    node = start_with_file()
    for name, value, reason in (
        ("device", "gpu0", "device is 'gpu0'; use auto, cpu, cuda, gpu, npu, or cuda:N"),
        ("geometry", "crop", "geometry is 'crop'; use one of: stretch, letterbox, pad, native"),
        ("mask_size", "big", "mask_size is 'big'; use source, network or WIDTHxHEIGHT"),
        ("network_size", [480], "network_size is (480,); use two positive whole numbers"),
        ("network_size", [0], "network_size is (0,); use two positive whole numbers"),
        ("value_range", [False, True], "value_range is [False, True]; use auto, full, or two whole numbers"),
        ("cameras", False, "cameras is False; use a list of texts"),
        ("bundles", 0, "bundles is 0; use a list of texts"),
    ):
        result = node.set_parameter(name, value)
        assert not result.successful
        assert reason in result.reason
    assert node.set_parameter("device", "cuda:1").successful


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "python -m dinov3_seg_ros.node --ros-args -p bundle:=BUNDLE"),
        (
            ["--ros-args", "-p", "bundle"],
            1,
            "segmentation: failed to initialize rcl: Couldn't parse parameter override",
        ),
        (["--ros-args", "-p", "threads:=many"], 1, "'INTEGER': threads; write a whole number, such as 1"),
        (["--ros-args", "-p", "threads:=1.5"], 1, "'INTEGER': threads; write a whole number, such as 1"),
        (["--ros-args", "-p", "overlay_alpha:=1"], 1, "overlay_alpha; write a number with a point, such as 1.0"),
        (["--ros-args", "-p", "bundle:=1e3"], 1, "bundle; put a text that looks like a number into quotes: "),
        (["--ros-args", "-r", "__ns:=/robot/"], 1, "segmentation: error creating node: invalid node namespace: "),
        (["--ros-args", "-p", "autostart:=1"], 1, "autostart; write true or false"),
    ],
)
def test_a_wrong_command_line_is_answered_in_a_few_lines(words, code, said):
    command = [sys.executable, "-m", "dinov3_seg_ros.node", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("logs", ["file/log", None], ids=["not writable", "no home"])
def test_a_home_that_cannot_be_written_is_answered_with_the_variable_for_logs(tmp_path, logs):
    (tmp_path / "file").touch()
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "ROS_HOME", "ROS_LOG_DIR")}
    if logs:
        environment["ROS_LOG_DIR"] = str(tmp_path / logs)
    command = [sys.executable, "-m", "dinov3_seg_ros.node"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    assert done.returncode == 1
    assert "; set ROS_LOG_DIR to a folder that can be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_words_that_are_no_ros_arguments_are_named(tmp_path):
    with contextlib.closing(Graph(tmp_path)) as graph:
        node = graph.start_node(program=("-m", "dinov3_seg_ros.node", "weights/demo"), autostart=False)
        node.wait_for_state("unconfigured")
        assert "ignored: weights/demo; ROS arguments follow --ros-args" in node.log


def test_a_parameter_cannot_be_deleted(start_with_file, small_exported_bundle):
    node = start_with_file(bundle=str(small_exported_bundle.path))
    for name in ("cameras", "bundles", "providers", "value_range"):
        result = node.set_parameter(name, None)
        assert not result.successful
        assert result.reason.startswith(f"{name} cannot be deleted; set it to its default instead: ")
    assert not node.set_parameter("value_range", [0.0, float("inf")]).successful
    assert node.change_state("configure"), node.log
    assert "Traceback" not in node.log


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_default_survives_the_way_through_a_parameter(option):
    assert from_parameter(option, to_parameter(option, option.default)) == option.default


def test_reading_all_parameters_gives_the_options_defaults(tmp_path):
    with contextlib.closing(Graph(tmp_path)) as graph:
        assert NodeParameters(graph.peer).read() == NodeOptions()
