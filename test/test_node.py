"""The node in a process of its own, spoken to over real ROS 2."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from exported_bundles import write_exported_bundle

pytest.importorskip("rclpy", reason="no ROS 2 here")

from lifecycle_msgs.srv import ChangeState
from ros_graph import Graph, image_of
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from dinov3_seg_ros.segmenter import Segmenter

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_exported_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def graph(tmp_path):
    graph = Graph(tmp_path)
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def running(bundle, tmp_path_factory):
    """One active node that several tests share, with its graph and a camera."""
    with contextlib.closing(Graph(tmp_path_factory.mktemp("running"))) as graph:
        node = graph.start_node(bundle=bundle.path)
        camera = graph.camera()
        camera.wait_for_subscriber()
        yield graph, node, camera


@pytest.fixture(scope="module")
def segmenter(bundle):
    return Segmenter.from_bundle(bundle.path)


def picture(height=480, width=640, seed=0):
    """Smooth blobs of colour: the random weights give several classes on them."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (6, 8, 3), np.uint8)
    return np.repeat(np.repeat(small, -(-height // 6), axis=0), -(-width // 8), axis=1)[:height, :width].copy()


def test_every_best_effort_frame_gets_its_mask_with_its_own_header(running, segmenter):
    graph, _, camera = running
    masks = graph.listen("segmentation/mask")
    for seed in range(5):
        sent = camera.message(picture(seed=seed))
        mask = camera.send_until_answered(sent, masks)
        assert mask.header == sent.header
        assert (mask.encoding, mask.step) == ("mono8", 640)
        expected = segmenter.segment([picture(seed=seed)])[0].labels
        assert len(np.unique(expected)) > 1
        assert np.array_equal(image_of(mask), expected)


def test_confidence_and_overlay_have_the_frames_header_and_size(running, segmenter):
    graph, _, camera = running
    masks = graph.listen("segmentation/mask", reliable=True)
    confidences = graph.listen("segmentation/confidence")
    overlays = graph.listen("segmentation/overlay", reliable=True)
    sent = camera.message(picture())
    camera.send_until(sent, lambda: masks and confidences and overlays, "mask, confidence and overlay")
    assert confidences[-1].header == overlays[-1].header == sent.header
    assert confidences[-1].encoding == "mono8"
    assert np.array_equal(image_of(confidences[-1]), segmenter.segment([picture()])[0].confidence)
    assert overlays[-1].encoding == "bgr8"
    assert image_of(overlays[-1]).shape == (480, 640, 3)


def test_frames_of_any_size_encoding_and_padding_are_read_correctly(running, segmenter):
    graph, node, camera = running
    masks = graph.listen("segmentation/mask")
    for height, width in ((120, 200), (333, 77), (64, 96)):
        rgb = picture(height, width)
        expected = segmenter.segment([rgb])[0].labels
        padded = camera.message(rgb[:, :, ::-1].copy(), "bgr8")
        rows = np.full((height, width * 3 + 13), 99, np.uint8)
        rows[:, : width * 3] = image_of(padded).reshape(height, -1)
        padded.step = rows.shape[1]
        del padded.data[:]
        padded.data.frombytes(rows)
        for message in (camera.message(rgb), padded):
            assert np.array_equal(image_of(camera.send_until_answered(message, masks)), expected)
    camera.send_until_answered(camera.message(16 * picture(64, 96)[..., 0].astype(np.uint16), "mono16"), masks)
    assert "[segmentation]: 16-bit images on /image have 12 significant bits" in node.log


def test_bad_frames_are_logged_and_the_next_good_one_is_answered(running):
    graph, node, camera = running
    masks = graph.listen("segmentation/mask")
    unknown, short, narrow = (camera.message(picture(60, 80)) for _ in range(3))
    unknown.encoding = "64FC7"
    short.data = short.data[:100]
    narrow.step = 10
    empty = Image(header=Header(frame_id="empty"))
    camera.send_until(unknown, lambda: "64FC7" in node.log, "a line in the log")
    assert node.set_parameter("max_pixels", 4799).successful
    large = camera.message(picture(60, 80))
    camera.send_until(large, lambda: "4799" in node.log, "a line in the log")
    assert node.set_parameter("max_pixels", 1 << 25).successful
    for message in (unknown, short, narrow, empty):
        camera.send(message)
        graph.spin_for(0.1)  # otherwise the good frame may replace the bad one before it is looked at
        good = camera.message(picture(60, 80))
        assert camera.send_until_answered(good, masks).header == good.header


def test_class_names_can_be_read_and_not_be_set(running, bundle):
    _, node, _ = running
    assert list(node.get_parameter("class_names").string_array_value) == bundle.manifest.classes.names
    result = node.set_parameter("class_names", ["other"])
    assert not result.successful
    assert "read-only" in result.reason


def test_without_label_info_the_log_says_what_is_missing(running):
    _, node, _ = running
    is_missing = importlib.util.find_spec("vision_msgs") is None
    assert is_missing == ("segmentation/label_info is not published" in node.log)
    assert is_missing == ("vision_msgs cannot be used: No module named 'vision_msgs'; sudo apt install" in node.log)


def test_overlay_alpha_changes_while_running_within_its_range(running):
    graph, node, camera = running
    overlays = graph.listen("segmentation/overlay")
    assert node.set_parameter("overlay_alpha", 0.0).successful
    overlay = camera.send_until_answered(camera.message(picture()), overlays)
    assert np.array_equal(image_of(overlay)[:, :, ::-1], picture())
    assert not node.set_parameter("overlay_alpha", 1.5).successful


def test_a_late_subscriber_gets_the_class_names_with_their_ids(running, bundle):
    vision_msgs = pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")
    from dinov3_seg_ros.ros.endpoints.qos import LATCHED_QOS

    graph, node, _ = running
    received = []
    graph.peer.create_subscription(vision_msgs.LabelInfo, "segmentation/label_info", received.append, LATCHED_QOS)
    graph.spin_until(lambda: received, "the label info")
    found = {entry.class_id: entry.class_name for entry in received[0].class_map}
    assert found == dict(enumerate(bundle.manifest.classes.names))
    assert received[0].threshold == 0.0
    assert received[0].header.stamp.sec > 0
    for threshold in (0.5, 0.0):
        assert node.set_parameter("confidence_threshold", threshold).successful
        graph.spin_until(lambda wanted=threshold: received[-1].threshold == wanted, "the new threshold")
        assert received[-1].class_map == received[0].class_map


def test_a_failed_configuration_says_why_and_can_be_tried_again(graph, bundle, tmp_path):
    node = graph.start_node(bundle=tmp_path / "nowhere")
    graph.spin_until(lambda: "the node waits" in node.log, "the message")
    assert "there is no such folder" in node.log
    assert node.state() == "unconfigured"
    assert node.set_parameter("bundle", str(bundle.path)).successful
    assert node.change_state("configure")
    assert node.change_state("activate")
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.wait_for_subscriber()
    camera.send_until_answered(camera.message(picture()), masks)


def test_each_state_holds_what_it_should(graph, bundle):
    node = graph.start_node(bundle=bundle.path, autostart=False)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    assert node.state() == "unconfigured"
    assert not node.change_state("activate"), "an invalid request is refused"
    assert node.state() == "unconfigured", "and does not end the process"
    for _ in range(2):
        assert node.change_state("configure")
        assert camera._publisher.get_subscription_count() == 0
        assert node.change_state("activate")
        camera.wait_for_subscriber()
        camera.send_until_answered(camera.message(picture()), masks)
        assert node.change_state("deactivate")
        assert "frames since activation: " in node.log
        graph.spin_until(
            lambda: not camera._publisher.get_subscription_count() and not graph.peer.count_subscribers("/camera_info"),
            "the end of the subscriptions",
        )
        assert node.change_state("cleanup")
    assert node.state() == "unconfigured"
    graph.spin_until(lambda: not graph.peer.count_publishers("/segmentation/mask"), "the end of the topics")
    graph.spin_until(lambda: "/segmentation/heads/tiny/enable" not in services(graph), "the end of the head's switch")
    assert "/segmentation/enable" in services(graph)
    assert node.process.poll() is None


def services(graph):
    return [name for name, _ in graph.peer.get_service_names_and_types()]


def test_an_unknown_transition_does_not_end_the_process(graph, bundle):
    node = graph.start_node(bundle=bundle.path)
    node.wait_for_state("active")
    request = ChangeState.Request()
    request.transition.id = 77
    assert not graph.call(ChangeState, "/segmentation/change_state", request).success
    assert node.state() == "active"


def test_cameras_and_heads_have_topics_of_their_own_in_one_process(graph, bundle, tmp_path):
    further = write_exported_bundle(tmp_path / "further", name="further", num_classes=3, seed=9)
    graph.start_node(
        namespace="robot",
        bundles=f"['{bundle.path}', '{further.path}']",
        cameras="[front, rear]",
        mask_size="80x60",
    )
    front, rear = graph.camera("/robot/front/image"), graph.camera("/robot/rear/image")
    outputs = {
        topic: graph.listen(f"/robot/{topic}")
        for topic in ("front/segmentation/mask", "rear/segmentation/mask", "rear/segmentation/further/mask")
    }
    front.wait_for_subscriber()
    rear.wait_for_subscriber()
    sent = front.message(picture(seed=1))
    assert front.send_until_answered(sent, outputs["front/segmentation/mask"]).header == sent.header
    assert outputs["rear/segmentation/mask"] == []
    rgb = picture(100, 90, seed=2)
    masks, further_masks = outputs["rear/segmentation/mask"], outputs["rear/segmentation/further/mask"]
    rear.send_until(rear.message(rgb), lambda: masks and further_masks, "the masks of both heads")
    expected = Segmenter.from_bundle([bundle.path, further.path]).segment([rgb], size=(60, 80))[0].heads
    assert np.array_equal(image_of(masks[0]), expected["tiny"].labels)
    assert np.array_equal(image_of(further_masks[0]), expected["further"].labels)


def test_compressed_images_are_read(graph, bundle, segmenter):
    cv2 = pytest.importorskip("cv2")
    node = graph.start_node(bundle=bundle.path, image_transport="compressed")
    camera, masks = graph.camera("image/compressed", CompressedImage), graph.listen("segmentation/mask")
    camera.wait_for_subscriber()
    rgb = picture()
    broken = CompressedImage(format="png", data=b"no picture")
    camera.send_until(broken, lambda: "10 bytes" in node.log, "a line in the log")
    camera.send_until_answered(
        CompressedImage(format="png", data=cv2.imencode(".png", rgb[:, :, ::-1])[1].tobytes()), masks
    )
    assert np.array_equal(image_of(masks[0]), segmenter.segment([rgb])[0].labels)


def test_the_node_takes_the_value_range_of_its_bundle(graph, tmp_path):
    bundle = write_exported_bundle(tmp_path / "thermal", value_range=(28000, 30040))
    node = graph.start_node(bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.wait_for_subscriber()
    grey = picture()[..., 0]
    mask = camera.send_until_answered(camera.message(28000 + 8 * np.uint16(grey), "mono16"), masks)
    expected = Segmenter.from_bundle(bundle.path).segment([np.dstack(3 * [grey])])[0].labels
    assert np.array_equal(image_of(mask), expected)
    assert node.set_parameter("value_range", [0, 255]).successful
    mask = camera.send_until_answered(camera.message(np.uint16(grey), "mono16"), masks)
    assert np.array_equal(image_of(mask), expected), "the parameter goes before"


def test_the_node_runs_with_rclpy_as_humble_has_it(graph, bundle, segmenter):
    node = graph.start_node(program=(str(Path(__file__).with_name("humble_node.py")),), bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    calibrations, scaled = graph.peer.create_publisher(CameraInfo, "camera_info", 1), []
    graph.peer.create_subscription(CameraInfo, "segmentation/camera_info", scaled.append, 1)
    calibrations.publish(CameraInfo(height=480, width=640))
    camera.wait_for_subscriber()

    def has_both():
        calibrations.publish(CameraInfo(height=480, width=640))
        return masks and scaled

    camera.send_until(camera.message(picture()), has_both, "a mask and a calibration")
    assert np.array_equal(image_of(masks[-1]), segmenter.segment([picture()])[0].labels)
    for transition in ("deactivate", "activate"):
        assert node.change_state(transition)
    assert node.end() == 0, node.log
    assert "Traceback" not in node.log


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_repeated_signals_in_mid_stream_end_the_process_with_code_zero(graph, bundle, signal_number):
    node = graph.start_node(bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.wait_for_subscriber()
    camera.send_until_answered(camera.message(picture()), masks)
    for _ in range(10):
        camera.send(camera.message(picture()))
    deadline = time.monotonic() + 20
    while node.process.poll() is None and time.monotonic() < deadline:
        node.process.send_signal(signal_number)
    assert node.process.poll() == 0, node.log
    assert "Traceback" not in node.log
    assert "Exception" not in node.log
    assert "dropped" not in node.log


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGHUP])
def test_a_process_that_ends_removes_its_shared_memory(graph, bundle, signal_number):
    node = graph.start_node(bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.wait_for_subscriber()
    camera.send_until_answered(camera.message(picture()), masks)
    opened = {os.path.realpath(link) for link in Path(f"/proc/{node.process.pid}/fd").iterdir()}
    locks = {Path(path) for path in opened if re.search(r"/fast(dds|rtps)_[0-9a-f]{16}_el$", path)}
    assert locks, opened
    assert node.end(signal_number) == 0, node.log
    assert not [lock for lock in locks if lock.exists()]
    assert not [lock for lock in locks if lock.with_name(lock.name.removesuffix("_el")).exists()]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_models_load_ends_the_process_with_code_zero(graph, tmp_path, signal_number):
    slow = tmp_path / "slow"
    slow.mkdir()
    os.mkfifo(slow / "bundle.json")  # whoever reads it waits until somebody writes
    node = graph.start_node(bundle=slow)
    writer = graph.spin_until(lambda: _opened_by_its_reader(slow / "bundle.json"), "loading")
    graph.spin_for(0.5)  # it has opened the file; only a read that has begun is cut short
    assert node.end(signal_number) == 0, node.log
    os.close(writer)
    assert "Traceback" not in node.log


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_humble_answers_a_request_ends_the_process(graph, tmp_path, signal_number):
    slow = tmp_path / "slow"
    slow.mkdir()
    os.mkfifo(slow / "bundle.json")
    program = (str(Path(__file__).with_name("humble_node.py")),)
    node = graph.start_node(program=program, bundle=slow, autostart=False)
    node.wait_for_state("unconfigured")
    client = graph.peer.create_client(ChangeState, "/segmentation/change_state")
    graph.spin_until(client.service_is_ready, "the service")
    request = ChangeState.Request()
    request.transition.id = 1  # configure
    client.call_async(request)
    writer = graph.spin_until(lambda: _opened_by_its_reader(slow / "bundle.json"), "loading")
    graph.spin_for(0.5)
    assert node.end(signal_number) == 0, node.log
    os.close(writer)
    assert "Traceback" not in node.log


def test_a_failing_callback_is_logged_with_its_cause_and_ends_nothing(graph, bundle):
    broken = (
        "import dinov3_seg_ros.node as node; from dinov3_seg_ros.ros.cameras.frame_loop import FrameLoop; "
        "FrameLoop._receive = lambda *_: 1 / 0; node.main()"
    )
    node = graph.start_node(program=("-c", broken), bundle=bundle.path)
    camera = graph.camera()
    camera.wait_for_subscriber()
    line = "could not be handled: ZeroDivisionError: division by zero"
    camera.send_until(camera.message(picture()), lambda: line in node.log, "the log's line")
    assert node.state() == "active"
    assert node.end() == 0, node.log


def _opened_by_its_reader(fifo):
    with contextlib.suppress(OSError):  # nobody reads yet
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)


def test_camera_names_that_cannot_be_topics_are_refused(graph, bundle):
    node = graph.start_node(bundle=bundle.path, cameras="[front, front]")
    graph.spin_until(lambda: "the node waits" in node.log, "the message")
    assert "cameras holds 'front'" in node.log
    assert node.state() == "unconfigured"
