"""The wire contract: every topic, switch, parameter and quality of service of a node in a process of its own."""

from __future__ import annotations

import contextlib
import time

import cv2
import numpy as np
import pytest
import yaml
from exported_bundles import write_exported_bundle

pytest.importorskip("rclpy", reason="no ROS 2 here")

from diagnostic_msgs.msg import DiagnosticArray
from diagnostics_reader import ERROR, OK, STALE, WARN, DiagnosticsReader
from nav2_consumer import Nav2Consumer
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import Graph, image_of
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dinov3_seg_ros import decode
from dinov3_seg_ros.frames.smoothing import TemporalSmoother
from dinov3_seg_ros.ros.cameras.messages import seconds_of
from dinov3_seg_ros.segmenter import Segmenter

pytestmark = pytest.mark.ros

SIZE = (60, 80)
MASK_SIZE = (30, 40)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    options = {"network_size": (96, 128), "num_classes": 5}
    # These random weights find all classes in the picture.
    first = write_exported_bundle(folder / "first", name="first", seed=95, **options)
    return [first, write_exported_bundle(folder / "further", name="further", seed=9, **options)]


@pytest.fixture(scope="module")
def segmenter(bundles):
    return Segmenter.from_bundle([bundle.path for bundle in bundles])


@pytest.fixture(scope="module")
def running(bundles, tmp_path_factory):
    """One node with two heads, whose classes 1 and 3 are merged, 0 is kept and 2 and 4 are left out."""
    folder = tmp_path_factory.mktemp("running")
    chosen = {"classes": {"merged": ["class_1", "class_3"], "class_0": ["class_0"]}, "palette": {"class_0": [1, 2, 3]}}
    (folder / "classes.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False))
    paths = ", ".join(f"'{bundle.path}'" for bundle in bundles)
    with contextlib.closing(Graph(folder)) as graph:
        node = graph.start_node(
            bundles=f"[{paths}]", class_list=folder / "classes.yaml", mask_size=f"{MASK_SIZE[1]}x{MASK_SIZE[0]}"
        )
        camera = graph.camera()
        camera.wait_for_subscriber()
        yield graph, node, camera


@pytest.fixture
def quiet(running):
    """The running node, whose subscriptions of earlier tests are gone, at its first settings."""
    graph, node, camera = running
    yield graph, node, camera
    for subscription in list(graph.peer.subscriptions):
        graph.peer.destroy_subscription(subscription)
    for name, value in {"confidence_threshold": 0.0, "overlay_names": False, "jpeg_quality": 80}.items():
        assert node.set_parameter(name, value).successful
    for name in ("enable", "heads/first/enable", "heads/further/enable"):
        node.switch(name, True)


def picture(seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (SIZE[1], SIZE[0]), interpolation=cv2.INTER_NEAREST)


def published(segmenter, rgb, head="first"):
    """Labels and confidence that the class list makes of a head's answer, computed here in another way."""
    return as_published(segmenter.segment([rgb], size=MASK_SIZE)[0].heads[head])


def as_published(found):
    probabilities = np.exp(np.asarray(found.logits, np.float64))
    apart = [probabilities[:, 0], probabilities[:, 1] + probabilities[:, 3], probabilities[:, 2], probabilities[:, 4]]
    labels, confidence = decode.upsample_argmax_confidence(np.log(np.stack(apart, 1)), MASK_SIZE, found.window)
    labels = np.choose(labels[0], [1, 0, 255, 255]).astype(np.uint8)
    return labels, np.where(labels == 255, 0, confidence[0])


def middle_confidence(segmenter):
    """A threshold that some of the labelled pixels reach."""
    labels, confidence = published(segmenter, picture())
    return int(np.median(confidence[labels < 255])) + 1


def decoded(message):
    return cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_every_topic_has_the_published_classes_and_the_frames_header(quiet, segmenter):
    graph, _, camera = quiet
    topics = {"mask": Image, "confidence": Image, "color_mask": Image, "overlay": Image}
    topics |= {"mask/compressed": CompressedImage, "overlay/compressed": CompressedImage}
    received = {
        name: graph.listen(f"segmentation/{name}", reliable=True, message_type=kind) for name, kind in topics.items()
    }
    sent = camera.message(picture())
    camera.send_until(sent, lambda: all(received.values()), "all outputs")
    newest = {name: messages[-1] for name, messages in received.items()}
    assert all(message.header == sent.header for message in newest.values())
    labels, confidence = published(segmenter, picture())
    assert set(np.unique(labels)) == {0, 1, 255}
    assert np.array_equal(image_of(newest["mask"]), labels)
    assert np.array_equal(image_of(newest["confidence"]), confidence)
    assert newest["color_mask"].encoding == "bgr8"
    colours = image_of(newest["color_mask"])[..., ::-1]
    assert (colours[labels == 1] == [1, 2, 3]).all()
    assert (colours[labels == 255] == 0).all(), "unlabelled"
    assert newest["mask/compressed"].format == "mono8; png compressed"
    assert np.array_equal(decoded(newest["mask/compressed"]), labels)
    overlay = image_of(newest["overlay"])
    large = cv2.resize(labels, SIZE[::-1], interpolation=cv2.INTER_NEAREST)
    expected = np.rint((picture()[..., ::-1] + np.array([3.0, 2.0, 1.0])) / 2)
    assert np.abs(overlay - expected)[large == 1].max() <= 1, "the palette of the class list is blended in"
    assert np.array_equal(overlay[large == 255], picture()[..., ::-1][large == 255])
    assert newest["overlay/compressed"].format == "bgr8; jpeg compressed bgr8"
    assert np.abs(decoded(newest["overlay/compressed"]).astype(int) - overlay).mean() < 15


def test_class_names_are_those_published(quiet):
    _, node, _ = quiet
    assert list(node.get_parameter("class_names").string_array_value) == ["merged", "class_0"]


def test_camera_info_is_scaled_to_the_mask_and_sent_with_masks_only(quiet):
    graph, _, camera = quiet
    calibrations = graph.publisher(CameraInfo, "camera_info")
    info = CameraInfo(height=SIZE[0], width=SIZE[1], distortion_model="plumb_bob", d=[0.1, 0.2, 0.3, 0.4, 0.5])
    info.k = [50.0, 0, 40, 0, 50, 30, 0, 0, 1]
    received = graph.listen("segmentation/camera_info", message_type=CameraInfo)
    graph.spin_until(lambda: graph.peer.count_publishers("segmentation/camera_info"), "the topic")
    bad = CameraInfo(height=SIZE[0], width=SIZE[1], d=[float("nan")])

    def arrived():
        for message in (info, bad):
            calibrations.publish(message)
            graph.spin_for(0.1)
        return received

    arrived()
    camera.send(camera.message(picture()))
    graph.spin_for(0.3)
    assert received == [], "nobody wants the frame itself"
    graph.listen("segmentation/mask")
    sent = camera.message(picture())
    camera.send_until(sent, arrived, "the calibration")
    assert received[0].header == sent.header
    assert (received[0].height, received[0].width) == MASK_SIZE
    assert received[0].k.tolist() == [25.0, 0, 20, 0, 25, 15, 0, 0, 1]
    assert list(received[0].d) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert "camera_info is not used: d of camera_info is not finite" in quiet[1].log


def test_a_confidence_threshold_unlabels_doubtful_pixels_at_once(quiet, segmenter):
    graph, node, camera = quiet
    masks, confidences = graph.listen("segmentation/mask"), graph.listen("segmentation/confidence")
    labels, confidence = published(segmenter, picture())
    least = middle_confidence(segmenter)
    assert node.set_parameter("confidence_threshold", least / 255).successful
    camera.send_until(camera.message(picture()), lambda: masks and confidences, "mask and confidence")
    doubtful = confidence < least
    assert 0 < doubtful.sum() < doubtful.size
    assert np.array_equal(image_of(masks[-1]), np.where(doubtful, 255, labels))
    assert np.array_equal(image_of(confidences[-1]), np.where(doubtful, 0, confidence))


def test_masks_are_smoothed_over_time_where_that_is_wanted(quiet, segmenter):
    graph, node, camera = quiet
    rng, masks, smoother = np.random.default_rng(3), graph.listen("segmentation/mask"), TemporalSmoother(0.8)
    frames = [np.clip(picture() + rng.integers(-25, 26, (*SIZE, 3)), 0, 255).astype(np.uint8) for _ in range(3)]
    assert node.set_parameter("temporal_smoothing", 0.8).successful
    for number, frame in enumerate(frames):
        message = camera.message(frame)
        message.header.stamp.sec, message.header.stamp.nanosec = 100, 10**8 * number
        found = image_of(camera.send_until_answered(message, masks))
        result = segmenter.segment([frame], size=MASK_SIZE)[0]
        smoothed = result.smoothed(smoother, frame, 100 + number / 10)
        assert np.array_equal(found, as_published(smoothed.heads["first"])[0])
    alone = as_published(result.heads["first"])[0]
    assert not np.array_equal(found, alone), "smoothing changed nothing, so this shows nothing"
    for frame in frames:
        message = camera.message(frame)
        message.header.stamp.sec = message.header.stamp.nanosec = 0
        found = image_of(camera.send_until_answered(message, masks))
    assert not np.array_equal(found, alone), "of a driver that leaves stamps empty, the arrival counts"
    assert "no smoothing" not in node.log
    for second in range(200, 211):  # the first is a step back
        message = camera.message(frame)
        message.header.stamp.sec, message.header.stamp.nanosec = second, 0
        camera.send_until_answered(message, masks)
    graph.spin_until(lambda: "no smoothing: the last 10 frames came more than 0.5 s" in node.log, "the note")
    for number, (frame, weight) in enumerate(((frames[0], 0.8), (frames[-1], 0.0), (frames[-1], 0.8))):
        assert node.set_parameter("temporal_smoothing", weight).successful
        message = camera.message(frame)
        message.header.stamp.sec, message.header.stamp.nanosec = 300, 10**8 * number
        found = image_of(camera.send_until_answered(message, masks))
    assert np.array_equal(found, alone), "what was before it was switched off is forgotten"
    assert node.set_parameter("temporal_smoothing", 0.0).successful
    message = camera.message(frames[-1])
    assert np.array_equal(image_of(camera.send_until_answered(message, masks)), alone)


def test_names_in_the_overlay_and_its_quality_change_at_once(quiet):
    graph, node, camera = quiet
    overlays = graph.listen("segmentation/overlay")
    pictures = graph.listen("segmentation/overlay/compressed", message_type=CompressedImage)
    found = []
    for names, quality in ((False, 80), (True, 5)):
        assert node.set_parameter("overlay_names", names).successful
        assert node.set_parameter("jpeg_quality", quality).successful
        overlays.clear(), pictures.clear()
        camera.send_until(camera.message(picture()), lambda: overlays and pictures, "both overlays")
        found.append((image_of(overlays[-1]), len(pictures[-1].data)))
    assert not np.array_equal(found[0][0], found[1][0]), "without names, and with them"
    assert found[0][1] > 1.3 * found[1][1]


def test_heads_and_the_whole_node_are_switched_while_running(quiet):
    graph, node, camera = quiet
    first, further = graph.listen("segmentation/mask"), graph.listen("segmentation/further/mask")
    camera.send_until(camera.message(picture()), lambda: first and further, "the masks of both heads")
    assert node.switch("heads/further/enable", False) == "head 'further' is off"
    sent = [camera.message(picture()) for _ in range(3)]
    for message in sent:
        camera.send_until_answered(message, first)
    graph.spin_for(0.2)
    assert not [mask for mask in further if mask.header in [message.header for message in sent]]
    assert node.switch("enable", False) == "segmentation is off"
    last = camera.send(camera.message(picture()))
    graph.spin_for(0.3)
    assert last.header not in [mask.header for mask in first]
    node.switch("enable", True)
    node.switch("heads/further/enable", True)
    camera.send_until_answered(camera.message(picture()), further)


def test_changes_that_would_have_no_effect_are_refused_with_the_reason(quiet):
    _, node, _ = quiet
    refused = node.set_parameter("mask_size", "64x48")
    assert not refused.successful
    assert "read when the node is configured" in refused.reason
    assert not node.set_parameter("jpeg_quality", 0).successful
    assert not node.set_parameter("autostart", False).successful


def test_a_costmap_layer_accepts_every_frame(quiet, segmenter):
    graph, node, camera = quiet
    names = dict(enumerate(node.get_parameter("class_names").string_array_value))
    consumer = Nav2Consumer(graph, "segmentation", MASK_SIZE, names)
    assert node.set_parameter("confidence_threshold", middle_confidence(segmenter) / 255).successful
    masks = graph.listen("segmentation/mask")
    for seed in range(5):
        camera.send_until_answered(camera.message(picture(seed)), masks)
    graph.spin_until(lambda: len(consumer.accepted) + len(consumer.refused) >= 5, "five decisions")
    assert consumer.refused == []
    assert consumer.class_names == {0: "merged", 1: "class_0"}
    assert {label for frame in consumer.accepted.values() for label in frame} == {0, 1, 255}


def test_a_subscriber_that_does_not_match_is_named_with_both_sides(quiet):
    graph, node, _ = quiet
    reader = DiagnosticsReader(graph)
    graph.listen("segmentation/mask")  # this one matches
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = graph.peer.create_subscription(Image, "segmentation/mask", lambda _: None, latched)
    status = reader.wait("segmentation", lambda status: "mismatch 1" in status.values, "a mismatch")
    line = status.values["mismatch 1"]
    assert (status.level, "mismatch 2" in status.values) == (WARN, False)
    assert "publisher /segmentation (reliable, volatile) and subscriber /peer (reliable, transient local)" in line
    assert line.endswith("nothing passes between them: ERROR: Volatile publisher and transient local subscription")
    assert line in node.log
    graph.peer.destroy_subscription(subscription)
    reader.wait("segmentation", lambda status: status.level == OK, "the end of the mismatch")


def test_diagnostics_tell_rates_latency_runtime_and_silence(quiet):
    graph, _, camera = quiet
    reader, masks = DiagnosticsReader(graph), graph.listen("segmentation/mask")
    arrays = graph.listen("/diagnostics", reliable=True, message_type=DiagnosticArray)
    name = "segmentation: camera"
    camera.send_until_answered(camera.message(picture()), masks)
    status = reader.wait(name, lambda status: status.values["output rate [Hz]"] > "0.0", "a rate")
    values = status.values
    assert values["topic"] == "/image"
    dropped = sum(int(value) for key, value in values.items() if key.startswith("dropped: "))
    assert int(values["frames received"]) == int(values["frames segmented"]) + dropped
    assert values["latency in the node [ms]"].startswith("median ")
    node_status = reader.newest("segmentation")
    assert (node_status.level, node_status.values["state"]) == (OK, "active")
    assert "fp32" in node_status.values["runtime"]
    assert node_status.values["decode"] == decode.backend()
    assert "median" in node_status.values["stage backbone [ms]"]
    status = reader.wait(name, lambda status: status.level == STALE, "silence")
    assert "no further image on /image for" in status.message
    assert abs(time.time() - seconds_of(arrays[-1].header.stamp)) < 30.0


def test_a_failed_transition_is_an_error_until_one_succeeds(bundles, tmp_path):
    graph = Graph(tmp_path)
    try:
        node = graph.start_node(bundle=tmp_path / "nowhere", **{"qos_overrides./image.subscription.reliability": "odd"})
        reader = DiagnosticsReader(graph)
        status = reader.wait("segmentation", lambda status: status.level == ERROR, "an error")
        assert "there is no such folder" in status.values["last error"]
        assert node.set_parameter("bundle", str(bundles[0].path)).successful
        assert node.change_state("configure")
        graph.spin_until(lambda: "; runtime: " in node.log, "the models")  # a slow machine activates without them
        assert not node.change_state("activate")
        assert "check its qos_overrides" in node.log
        assert node.state() == "inactive"
        assert node.change_state("cleanup")
        reader.wait("segmentation", lambda status: status.level == WARN, "the end of the error")
        graph.spin_until(
            lambda: (
                not graph.peer.count_subscribers("/camera_info")
                and not graph.peer.count_publishers("/segmentation/mask")
            ),
            "the end of the topics",
        )
    finally:
        graph.close()


def test_providers_reach_onnx_runtime_and_other_names_are_refused(bundles, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    graph = Graph(tmp_path)
    try:
        node = graph.start_node(bundle=bundles[0].path, runtime="onnx", providers="[OtherExecutionProvider]")
        graph.spin_until(lambda: "the node waits" in node.log, "the message")
        assert "this build of ONNX Runtime has no OtherExecutionProvider; it has: " in node.log
        for refused in (["cuda"], 2 * ["CPUExecutionProvider"]):
            result = node.set_parameter("providers", refused)
            assert not result.successful
            assert f"providers holds '{refused[0]}'" in result.reason
        assert node.set_parameter("providers", ["CUDAExecutionProvider", "CPUExecutionProvider"]).successful
    finally:
        graph.close()


def test_switches_are_on_again_after_a_cleanup(bundles, tmp_path):
    graph = Graph(tmp_path)
    try:
        node = graph.start_node(bundle=bundles[0].path)
        node.wait_for_state("active")
        node.switch("enable", False)
        node.switch("heads/first/enable", False)
        reader = DiagnosticsReader(graph)
        reader.wait("segmentation", lambda status: "off: segmentation, head first" in status.message, "the switches")
        for transition in ("deactivate", "cleanup", "configure", "activate"):
            assert node.change_state(transition)
        reader.wait("segmentation", lambda status: status.message == "active", "the switches' reset")
        masks, camera = graph.listen("segmentation/mask"), graph.camera()
        camera.wait_for_subscriber()
        camera.send_until_answered(camera.message(picture()), masks)
    finally:
        graph.close()
