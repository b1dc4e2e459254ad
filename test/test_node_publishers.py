"""The node takes images from any publisher: it follows what they offer, and says what is wrong where none arrive."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

import rclpy
from diagnostics_reader import STALE, WARN, DiagnosticsReader
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from ros_graph import ROOT, TIMEOUT_S, Graph
from segment_five import picture
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dinov3_seg_ros.ros.cameras.ports import CameraInput, HeadOutput
from dinov3_seg_ros.ros.endpoints import qos
from dinov3_seg_ros.ros.endpoints.following import FollowingSubscription
from dinov3_seg_ros.ros.endpoints.qos import OUTPUT_QOS, Endpoints
from dinov3_seg_ros.support.errors import ParameterError

pytestmark = pytest.mark.ros

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
INNER = Path(__file__).with_name("segment_five.py")
# A reliable camera as drivers come: without a profile for Fast DDS.
_DRIVER = """
import sys, time
import rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("driver")
publisher = node.create_publisher(Image, "image", 10)
width, height, count = map(int, sys.argv[1:])
image = Image(height=height, width=width, encoding="mono8", step=width)
image.data.frombytes(bytes(height * width))
while not publisher.get_subscription_count():
    time.sleep(0.05)
while node.get_subscriptions_info_by_topic("image")[0].qos_profile.reliability.name != "RELIABLE":
    time.sleep(0.05)
time.sleep(2)
for number in range(count):
    image.header.stamp.sec = 1 + number
    publisher.publish(image)
    time.sleep(0.2)
print(publisher.wait_for_all_acked(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def graph(tmp_path):
    with contextlib.closing(Graph(tmp_path)) as graph:
        yield graph


def subscriptions(graph, topic="/image"):
    """What the node asks for on a topic."""
    found = graph.peer.get_subscriptions_info_by_topic(topic)
    return [peer.qos_profile.reliability for peer in found if peer.node_name == "segmentation"]


def wait_for(graph, reliability, topic="/image"):
    graph.spin_until(lambda: subscriptions(graph, topic) == [reliability], f"a subscription that is {reliability.name}")


def count_of(reader, key, camera="segmentation: camera"):
    return int(reader.newest(camera).values[key])


def test_reliability_follows_publishers_and_no_image_is_lost_or_doubled(graph, small_exported_bundle):
    infos = graph.peer.create_publisher(CameraInfo, "camera_info", LATCHED)
    infos.publish(CameraInfo(height=60, width=80, k=[50.0, 0, 40, 0, 50, 30, 0, 0, 1], p=[50.0, *[0.0] * 11]))
    camera = graph.peer.create_publisher(Image, "image", 10)
    graph.start_node(bundle=small_exported_bundle.path)
    masks, calibrations = graph.listen("segmentation/mask"), graph.listen("segmentation/camera_info", False, CameraInfo)
    wait_for(graph, RELIABLE)
    reader, source = DiagnosticsReader(graph), graph.camera("unused")
    graph.spin_for(1.0)
    sent = 0

    def play_until(reliability):
        nonlocal sent
        for _ in range(int(TIMEOUT_S / 0.1)):
            camera.publish(source.message(picture()))
            sent += 1
            graph.spin_for(0.1)
            if subscriptions(graph) == [reliability]:
                return
        pytest.fail(f"the subscription did not become {reliability.name}")

    play_until(RELIABLE)
    other = graph.peer.create_publisher(Image, "image", qos_profile_sensor_data)
    play_until(BEST_EFFORT)
    graph.peer.destroy_publisher(other)
    play_until(RELIABLE)
    graph.spin_until(lambda: count_of(reader, "frames received") >= sent, "the last image")
    assert count_of(reader, "frames received") == sent
    assert count_of(reader, "frames dropped by the transport") == 0
    headers = [mask.header.frame_id for mask in masks]
    assert len(set(headers)) == len(headers) > 0
    assert reader.newest("segmentation: camera").values["reliability"] == "reliable (the publishers')"
    assert calibrations, "sent before the node was active, and kept by its publisher"


def test_a_topic_that_is_open_with_another_type_is_told_by_its_remapping(graph, small_exported_bundle):
    node = graph.start_node(bundle=small_exported_bundle.path, remap={"image": "camera_info"})
    line = "topic camera_info cannot be opened; check the remappings: it is open with another type in this process: "
    graph.spin_until(lambda: line in node.log, "the reason")
    assert "qos_overrides" not in node.log


def test_an_override_fixes_the_reliability_and_a_mismatch_is_told(graph, small_exported_bundle):
    fixed = {"qos_overrides./image.subscription.reliability": "reliable"}
    node = graph.start_node(bundle=small_exported_bundle.path, **fixed)
    camera = graph.peer.create_publisher(Image, "image", qos_profile_sensor_data)
    wait_for(graph, RELIABLE)
    line = "but the node asks for reliable; remove the parameter qos_overrides./image.subscription.reliability"
    graph.spin_until(lambda: line in node.log, "the reason")
    assert "1 publisher: /peer (sensor_msgs/msg/Image, best effort)" in node.log
    status = DiagnosticsReader(graph).wait("segmentation: camera", lambda _: True, "the reliability")
    assert status.values["reliability"] == "reliable (by qos_overrides)"
    assert subscriptions(graph) == [RELIABLE]
    assert camera.get_subscription_count() == 0


def test_a_reliable_driver_without_a_profile_loses_no_large_image(graph, small_exported_bundle):
    graph.start_node(bundle=small_exported_bundle.path)
    reader = DiagnosticsReader(graph)
    environment = {**os.environ, "ROS_DOMAIN_ID": str(graph.domain)}
    for variable in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        environment.pop(variable, None)
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, "1920", "1080", "15"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        graph.spin_until(lambda: reader.newest("segmentation: camera"), "diagnostics")
        graph.spin_until(lambda: count_of(reader, "frames received") == 15, "all images")
        assert count_of(reader, "frames dropped by the transport") == 0
    finally:
        driver.terminate()
        driver.communicate()


@pytest.mark.parametrize("transport", ["LARGE_DATA", "UDPv4"])
def test_node_and_peers_meet_over_the_transport_that_the_user_chose(small_exported_bundle, tmp_path, transport):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FASTDDS_BUILTIN_TRANSPORTS": transport}
    for variable in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        environment.pop(variable, None)
    command = [sys.executable, str(INNER), str(small_exported_bundle.path), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240 + 3 * TIMEOUT_S)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads(finished.stdout.splitlines()[-1]) == {"answered": 5}


def test_each_silence_is_told_once_with_its_reason_and_its_end(graph, small_exported_bundle):
    compressed = graph.peer.create_publisher(CompressedImage, "other/image", qos_profile_sensor_data)
    near = graph.peer.create_publisher(Image, "near/imagee", qos_profile_sensor_data)
    idle = graph.camera("idle/image")
    node = graph.start_node(bundle=small_exported_bundle.path, cameras="[near, other, idle]")
    masks = graph.listen("idle/segmentation/mask")
    reader = DiagnosticsReader(graph)

    def told(camera):
        return [line for line in node.log.splitlines() if f"no image of camera '{camera}' on /{camera}/image" in line]

    graph.spin_until(lambda: all(map(told, ("near", "other", "idle"))), "three reasons")
    graph.spin_for(6.0)
    ((near_line,), (other_line,), (idle_line,)) = map(told, ("near", "other", "idle"))
    assert "nobody publishes there; there are images on /near/imagee (sensor_msgs/msg/Image)" in near_line
    assert near_line.endswith("remap near/image:=/near/imagee")
    assert "1 publisher: /peer (sensor_msgs/msg/CompressedImage, best effort)" in other_line
    assert other_line.endswith("set image_transport:=compressed and remap other/image/compressed:=/other/image")
    assert "it sends nothing, or its images are lost on the way" in idle_line
    status = reader.newest("segmentation: camera other")
    assert (status.level, "set image_transport:=compressed" in status.message) == (STALE, True)
    idle.send_until_answered(idle.message(picture()), masks)
    graph.spin_until(lambda: "images of camera 'idle' arrive on /idle/image" in node.log, "the end of a silence")
    for publisher in (compressed, near):
        graph.peer.destroy_publisher(publisher)


def test_the_transport_is_appended_to_the_remapped_base_topics(graph, small_exported_bundle):
    remap = {"image": "/camera/image_raw", "segmentation/mask": "/front/labels"}
    node = graph.start_node(bundle=small_exported_bundle.path, image_transport="compressed", remap=remap)
    camera = graph.camera("/camera/image_raw/compressed", CompressedImage)
    masks = graph.listen("/front/labels/compressed", message_type=CompressedImage)
    png = cv2.imencode(".png", np.ascontiguousarray(picture()[:, :, ::-1]))[1].tobytes()
    message = CompressedImage(format="png", data=png)
    camera.wait_for_subscriber()
    camera.send_until_answered(message, masks)
    assert "nobody publishes there" not in node.log and "but the node reads" not in node.log


def test_a_subscriber_of_the_calibration_learns_why_none_comes(graph, small_exported_bundle):
    node = graph.start_node(bundle=small_exported_bundle.path)
    camera, reader = graph.camera(), DiagnosticsReader(graph)
    graph.peer.create_publisher(CameraInfo, "/camera/camera_info", 1)
    graph.listen("segmentation/camera_info", message_type=CameraInfo)
    camera.wait_for_subscriber()
    line = "no camera_info on /camera_info, so none is published with the masks: nobody publishes there"

    def play():
        camera.send(camera.message(picture()))
        graph.spin_for(0.2)
        return line in node.log

    graph.spin_until(play, "the log's line")
    assert "there is camera_info on /camera/camera_info: remap camera_info to the camera's" in node.log
    assert reader.newest("segmentation: camera").values["camera_info topic"] == "/camera_info"


def test_lost_images_raise_the_level_and_are_told_with_the_remedy(graph, small_exported_bundle):
    node = graph.start_node(bundle=small_exported_bundle.path)
    camera, reader = graph.camera(), DiagnosticsReader(graph)
    camera.wait_for_subscriber()

    def lose():
        for _ in range(200):  # more than the node can take
            camera.send(camera.message(picture()))
        graph.spin_for(0.2)
        status = reader.newest("segmentation: camera")
        return status is not None and "images dropped by the transport" in status.message and status

    status = graph.spin_until(lose, "a loss")
    assert status.level == WARN
    graph.spin_until(lambda: "images dropped by the transport: " in node.log, "a line in the log")
    assert "start the publisher with FAST" in node.log


SWAPPED = {"front/image": "/left/image", "left/image": "/front/image"}


@contextlib.contextmanager
def remapped(graph, remap, **parameters):
    """The endpoints of a node in this process whose topics are remapped."""
    rules = [word for name, topic in remap.items() for word in ("-r", f"{name}:={topic}")]
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    arguments = {"cli_args": ["--ros-args", *rules], "parameter_overrides": overrides}
    node = LifecycleNode("remapped", context=graph.context, **arguments)
    graph._executor.add_node(node)
    try:
        yield Endpoints(node)
    finally:
        graph._executor.remove_node(node)
        node.destroy_node()


def test_a_transport_follows_a_remap_of_its_base_topic_or_its_own(graph):
    with remapped(graph, {"front/image": "/cam", "mask": "/labels", "mask/compressed": "/png"}) as endpoints:
        names = [endpoints.below(base, "compressed") for base in ("front/image", "mask", "left/image")]
        assert [endpoints.resolve(name) for name in names] == ["/cam/compressed", "/png", "/left/image/compressed"]


def test_cameras_whose_topics_are_swapped_follow_their_own_publishers(graph):
    graph.peer.create_publisher(Image, "/front/image", qos_profile_sensor_data)
    graph.peer.create_publisher(Image, "/left/image", 10)
    with remapped(graph, SWAPPED) as endpoints:
        both = [FollowingSubscription(endpoints, Image, f"{name}/image", print) for name in ("front", "left")]
        graph.spin_until(lambda: all(camera.publishers() for camera in both), "both publishers")
        for camera in both:
            camera.follow()
        assert {camera.topic: camera.reliability for camera in both} == {
            "/left/image": "reliable (the publishers')",
            "/front/image": "best effort (the publishers')",
        }
        further = graph.peer.create_publisher(Image, "/left/image", qos_profile_sensor_data)
        graph.spin_until(lambda: len(both[0].publishers()) == 2, "a further publisher")
        both[0].follow()
        assert both[0].reliability == "best effort (the publishers')"
        for camera in both:
            camera.close()
        graph.peer.destroy_publisher(further)
        graph.spin_until(lambda: len(both[0].publishers()) == 1, "the end of the publisher")
        both[0].follow()
        graph.spin_until(
            lambda: not any(map(graph.peer.count_subscribers, ("/left/image", "/front/image"))), "their end"
        )


def test_the_message_sent_before_is_asked_for_where_all_publishers_of_the_type_keep_it(graph):
    graph.peer.create_publisher(CameraInfo, "camera_info", LATCHED)
    volatile = graph.peer.create_publisher(CameraInfo, "camera_info", 10)
    other = rclpy.Context()
    rclpy.init(args=[], context=other, domain_id=graph.domain)
    of_another_type = rclpy.create_node("other", context=other)
    of_another_type.create_publisher(Image, "camera_info", qos_profile_sensor_data)

    def durabilities():
        following.follow()
        found = graph.peer.get_subscriptions_info_by_topic("camera_info")
        return {subscription.qos_profile.durability for subscription in found}

    with remapped(graph, {}) as endpoints:
        following = FollowingSubscription(endpoints, CameraInfo, "camera_info", print, follow_durability=True)
        graph.spin_until(lambda: len(following.publishers()) == 3, "the publishers")
        assert durabilities() == {DurabilityPolicy.VOLATILE}
        assert following.reliability == "reliable (the publishers')"
        graph.peer.destroy_publisher(volatile)
        graph.spin_until(lambda: DurabilityPolicy.TRANSIENT_LOCAL in durabilities(), "another subscription")
    of_another_type.destroy_node()
    rclpy.try_shutdown(context=other)


def test_a_mismatch_on_a_swapped_topic_names_its_own_publisher(graph, capfd):
    graph.peer.create_publisher(Image, "/left/image", qos_profile_sensor_data)
    fixed = {"qos_overrides./left/image.subscription.reliability": "reliable"}
    with remapped(graph, SWAPPED, **fixed) as endpoints:
        camera = FollowingSubscription(endpoints, Image, "front/image", print)
        (line,) = graph.spin_until(endpoints.mismatches, "a mismatch")
        assert line.startswith("/left/image: subscriber /remapped (reliable, ")
        assert "publisher /peer (best effort, " in line
        assert endpoints.mismatches() == [line]
        camera.close()
        assert endpoints.mismatches() == [], "there is no subscription any more"
    assert capfd.readouterr().err.count(line) == 1


def test_a_publisher_that_was_withdrawn_mismatches_nobody(graph):
    graph.peer.create_subscription(Image, "mask", print, LATCHED)
    with remapped(graph, {}) as endpoints:
        publisher = endpoints.advertise(Image, "mask", OUTPUT_QOS)
        graph.spin_until(endpoints.mismatches, "a mismatch")
        endpoints.withdraw(publisher)
        assert endpoints.mismatches() == []


def test_an_override_of_one_publisher_changes_no_other(graph):
    fixed = {"qos_overrides./mask.publisher.reliability": "best_effort", "qos_overrides./mask.publisher.depth": 1}
    with remapped(graph, {}, **fixed) as endpoints:
        for topic in ("mask", "overlay"):
            endpoints.advertise(Image, topic, OUTPUT_QOS)

        def offered():
            found = [graph.peer.get_publishers_info_by_topic(topic) for topic in ("mask", "overlay")]
            return [publisher.qos_profile.reliability for publishers in found for publisher in publishers]

        graph.spin_until(lambda: len(offered()) == 2, "both publishers")
        assert offered() == [BEST_EFFORT, RELIABLE]


def test_other_nodes_that_publish_the_nodes_outputs_are_told_once_they_stay(graph, capfd, monkeypatch):
    others = [graph.peer.create_publisher(Image, topic, 10) for topic in ("/robot/mask", "/overlay")]
    with remapped(graph, {"mask": "/robot/mask"}) as endpoints, remapped(graph, {}) as of_the_same_name:
        for topic in ("mask", "overlay", "confidence"):
            endpoints.advertise(Image, topic, OUTPUT_QOS)
        of_the_same_name.advertise(Image, "/confidence", OUTPUT_QOS)
        topics = ("/robot/mask", "/overlay", "/confidence")
        graph.spin_until(lambda: [graph.peer.count_publishers(topic) for topic in topics] == [2, 2, 2], "all of them")
        assert endpoints.second_publishers() == [], "it may be the publisher of a node that has crashed"
        monkeypatch.setattr(qos, "_SECOND_AFTER_S", 0.0)
        peer, same = graph.spin_until(lambda: sorted(endpoints.second_publishers()), "the second publishers")
        assert peer.startswith("/peer also publishes on /overlay, /robot/mask; ")
        assert same.startswith("another node named /remapped also publishes on /confidence; ")
        for publisher in others:
            graph.peer.destroy_publisher(publisher)
        graph.spin_until(lambda: endpoints.second_publishers() == [same], "the end of the other one")
    logged = capfd.readouterr().err
    assert (logged.count(peer), logged.count(same)) == (1, 1)


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ({"deadline": Duration(seconds=1)}, {"deadline": 500_000_000}),
        ({"liveliness_lease_duration": Duration(seconds=1)}, {"liveliness_lease_duration": 500_000_000}),
        ({"liveliness": LivelinessPolicy.MANUAL_BY_TOPIC}, {"liveliness": "manual_by_topic"}),
    ],
)
def test_an_override_offers_what_a_subscriber_asks_for(graph, asked, offered):
    received = []
    graph.peer.create_subscription(Image, "mask", received.append, QoSProfile(depth=5, **asked))

    def publish(endpoints):
        publisher = endpoints.advertise(Image, "mask", OUTPUT_QOS)
        publisher.on_activate(None)
        return publisher

    with remapped(graph, {}) as endpoints:
        publisher = publish(endpoints)
        (line,) = graph.spin_until(endpoints.mismatches, "a mismatch")
        assert next(iter(asked)).replace("_", " ").removesuffix(" lease duration") in line
        publisher.publish(Image())
        graph.spin_for(0.3)
        assert received == []
    fixed = {f"qos_overrides./mask.publisher.{name}": value for name, value in offered.items()}
    with remapped(graph, {}, **fixed) as endpoints:
        publisher = publish(endpoints)
        graph.spin_until(lambda: publisher.publish(Image()) or received, "an image")
        assert endpoints.mismatches() == []


def test_a_missing_library_of_a_message_type_is_told_as_such(graph, monkeypatch):
    def create(*_arguments, **_options):
        raise RuntimeError("Failed to create publisher: Type support not from this implementation. Got: dlopen error")

    with remapped(graph, {}) as endpoints:
        monkeypatch.setattr(LifecycleNode, "create_lifecycle_publisher", create)
        with pytest.raises(ParameterError, match="opened; source the workspace that its message package was built in"):
            endpoints.advertise(Image, "mask", OUTPUT_QOS)


def test_a_topic_that_cannot_be_opened_leaves_none_of_the_others_open(graph):
    odd = ("/camera_info.subscription", "/segmentation/overlay.publisher")
    with remapped(graph, {}, **{f"qos_overrides.{name}.reliability": "odd" for name in odd}) as endpoints:
        with pytest.raises(ParameterError, match="topic /camera_info cannot be opened"):
            CameraInput(endpoints, "", "raw", print, print)
        with pytest.raises(ParameterError, match="topic segmentation/overlay cannot be opened"):
            HeadOutput(endpoints, "", "", None, print)
        graph.spin_for(0.1)
        assert graph.peer.count_subscribers("/image") == graph.peer.count_publishers("/segmentation/mask") == 0


def test_a_calibration_that_cannot_be_used_is_not_missing(graph):
    faults, infos = [], graph.peer.create_publisher(CameraInfo, "camera_info", LATCHED)
    infos.publish(CameraInfo(height=60, width=80, d=[float("nan")]))
    with remapped(graph, {}) as endpoints:
        camera = CameraInput(endpoints, "", "raw", print, lambda *fault: faults.append(fault))
        assert not camera.has_calibration
        graph.spin_until(lambda: camera.follow() or faults, "the fault")
        assert (camera.has_calibration, camera.calibration) == (True, None)
        assert faults[0][:2] == ("", "camera_info not finite")


def test_images_on_the_name_that_is_remapped_are_found(graph):
    graph.peer.create_publisher(Image, "/image", 10)
    with remapped(graph, {"image": "/camera/image_raw"}) as endpoints:
        found = graph.spin_until(endpoints.picture_topics, "an image topic")
        assert found == {"/image": "sensor_msgs/msg/Image"}
