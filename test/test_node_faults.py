"""Nothing that arrives on a topic stops the node: it answers the next good frame, and counts what was wrong."""

from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from diagnostics_reader import ERROR, OK, WARN
from fuzzing import fuzz
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import Graph
from sensor_msgs.msg import CompressedImage

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.options import NodeOptions
from dinov3_seg_ros.ros import lifecycle
from dinov3_seg_ros.ros import model_loader as models
from dinov3_seg_ros.ros.cameras.ports import LabelInfo
from dinov3_seg_ros.ros.endpoints.qos import LATCHED_QOS
from dinov3_seg_ros.ros.lifecycle import SegmentationNode
from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import BundleError, RuntimeFailedError

pytestmark = pytest.mark.ros

CALIBRATION_FAULTS = {"camera_info not finite", "camera_info of another size"}
SUCCESS = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def bundle(small_exported_bundle):
    return small_exported_bundle


@pytest.mark.parametrize(
    ("transport", "faults"),
    [
        ("raw", {"unknown encoding", "no pixels", "odd size", "step too small", "wrong length of data"}),
        ("compressed", {"unknown format", "damaged data", "too many pixels"}),
    ],
)
def test_bad_messages_are_counted_and_the_next_good_frame_is_answered(bundle, tmp_path, transport, faults):
    graph = Graph(tmp_path)
    try:
        node = graph.start_node(bundle=bundle.path, image_transport=transport)
        counts = fuzz(graph, transport, 150)
        assert node.process.poll() is None
        assert "Traceback" not in node.log
        dropped = {key.removeprefix("dropped: "): count for key, count in counts.items() if key.startswith("dropped: ")}
        noted = {key.removeprefix("noted: ") for key in counts if key.startswith("noted: ")}
        assert counts["frames received"] > 100, "of 180; a loaded machine loses some before they are taken"
        assert counts["frames received"] == counts["frames segmented"] + sum(dropped.values())
        assert faults <= dropped.keys()
        assert "failed" not in dropped, node.log
        assert CALIBRATION_FAULTS | {"stamp runs backwards"} <= noted
    finally:
        graph.close()


@contextlib.contextmanager
def node_here(folder, **parameters):
    """An unconfigured node in this process, whose inside a test can break, and its graph."""
    graph = Graph(folder)
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    node = SegmentationNode(context=graph.context, parameter_overrides=overrides)
    try:
        yield graph, node
    finally:
        node.close()
        node.destroy_node()
        graph.close()


def start(node):
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS


@contextlib.contextmanager
def spun(graph, node):
    """Let the graph's executor serve the node too."""
    graph._executor.add_node(node)
    try:
        yield
    finally:
        graph._executor.remove_node(node)


def request(graph, transition):
    """Ask the node for a transition, over its service; whether it succeeded."""
    asked = ChangeState.Request(transition=Transition(id=transition))
    return graph.call_once(
        ChangeState,
        "/segmentation/change_state",
        asked,
        found=lambda: graph.call(GetState, "/segmentation/get_state", GetState.Request()),
    ).success


def values_of(node, camera=None):
    """What the node would say in /diagnostics, of itself or of a camera: its level, and its values."""
    own, *cameras = node._collect_diagnostics()
    status = next(s for s in cameras if s.name.endswith(f"camera {camera}")) if camera else own
    return status.level, {pair.key: pair.value for pair in status.values}


def test_a_failing_frame_in_a_batch_drops_no_other_cameras_frame(bundle, tmp_path, monkeypatch, capfd):
    with node_here(tmp_path, bundle=str(bundle.path), cameras=["good", "bad"], max_batch=2) as (graph, node):
        start(node)
        cameras = {name: graph.camera(f"{name}/image") for name in ("good", "bad")}
        masks = {name: graph.listen(f"{name}/segmentation/mask") for name in cameras}
        for name in cameras:
            publisher = node._outputs.by_camera[name]["tiny"]._publishers["mask"]
            graph.spin_until(publisher.get_subscription_count, f"a subscription to the mask of {name}")
        batches, run = [], node._models.segmenter.runtime.start
        is_computing, may_end = threading.Event(), threading.Event()

        def start_dark_frames(canvases, heads):
            is_computing.set()
            assert may_end.wait(10)
            batches.append(len(canvases))
            if canvases.max() == 255:
                raise RuntimeError("made to fail")
            return run(canvases, heads)

        monkeypatch.setattr(node._models.segmenter.runtime, "start", start_dark_frames)
        pictures = {"good": np.zeros((32, 32, 3), np.uint8), "bad": np.full((32, 32, 3), 255, np.uint8)}
        messages = {name: cameras[name].message(pictures[name]) for name in cameras}
        statistics = node._loop.statistics
        node._loop._receive("good", messages["good"], 0)
        assert is_computing.wait(10)
        for name, message in messages.items():  # they wait together, as the network is busy
            node._loop._receive(name, message, 0)
        may_end.set()
        graph.spin_until(lambda: statistics["bad"].summary() == "1 received, 1 runtime failed", "the bad frame's end")
        graph.spin_until(lambda: statistics["good"].summary() == "2 received, 2 segmented", "the good frames' end")
        graph.spin_until(lambda: len(masks["good"]) == 2, "the masks of the good frames")
        assert all(mask.header == messages["good"].header for mask in masks["good"])
        assert batches == [1, 2, 1, 1], "one alone, then both together, then each alone"
        assert masks["bad"] == []
    assert "the runtime is tried again" not in capfd.readouterr().err, "it has made a mask"


def test_a_camera_counts_as_silent_from_its_subscription_on(bundle, tmp_path, monkeypatch):
    with node_here(tmp_path, bundle=str(bundle.path)) as (_, node):
        assert node.trigger_configure() == SUCCESS
        segmenter = node._models.segmenter
        with monkeypatch.context() as patch:
            patch.setattr(type(node._models), "segmenter", None)
            assert node.trigger_activate() == SUCCESS
        assert node._loop.reports() == {}, "the models are still being loaded"
        much_later = time.monotonic() + 60.0
        clock = SimpleNamespace(monotonic=lambda: much_later)
        monkeypatch.setattr("dinov3_seg_ros.ros.health.camera_statistics.time", clock)
        node._loop.use(segmenter)
        assert node._loop.reports()[""].message == "0.0 of 0.0 frames per second segmented"
        assert node._loop.statistics[""].silence_s() == 0.0


@pytest.fixture
def slow_bundle(monkeypatch):
    """Bundles that are read only once this event is set, for which a configuration does not wait long."""
    monkeypatch.setattr(lifecycle, "CONFIGURE_S", 0.1)
    is_there = threading.Event()

    def load(path):
        assert is_there.wait(60)
        return load_bundle(path)

    monkeypatch.setattr(models, "load_bundle", load)
    return is_there


def end_loading(node):
    """Let the node do what its executor would, were there one."""
    assert node._models.wait(60)
    node._follow_models()


def test_a_bundle_that_comes_late_is_published_from_then_on(bundle, tmp_path, slow_bundle):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        start(node)
        level, values = values_of(node)
        assert (level, values["state"], values["runtime"]) == (WARN, "active", "being loaded")
        node._follow_models()  # as anything may wake it
        assert node._outputs.by_camera == {}
        slow_bundle.set()
        end_loading(node)
        assert list(node.get_parameter("class_names").value) == list(bundle.manifest.classes.names)
        if LabelInfo:
            class_names = []
            graph.peer.create_subscription(LabelInfo, "segmentation/label_info", class_names.append, LATCHED_QOS)
            graph.spin_until(lambda: class_names, "the class names")
        masks = graph.listen("segmentation/mask")
        publisher = node._outputs.by_camera[""]["tiny"]._publishers["mask"]
        graph.spin_until(publisher.get_subscription_count, "a subscription to the mask")
        image = graph.camera("other").message(np.zeros((32, 32, 3), np.uint8))
        image.header.stamp.sec = image.header.stamp.nanosec = 0
        node._loop._receive("", image, 0)
        graph.spin_until(lambda: masks, "a mask")
        graph.spin_until(lambda: "segmented" in node._loop.statistics[""].summary(), "the end of the frame")
        values = values_of(node)[1] | node._loop.reports()[""].values
        assert "noted: no stamp" in values and "noted: stamp of another clock" not in values
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        assert node._outputs.by_camera == {}


def test_models_that_come_between_configuring_and_activating_get_one_worker(bundle, tmp_path, slow_bundle):
    with node_here(tmp_path, bundle=str(bundle.path)) as (_, node):
        assert node.trigger_configure() == SUCCESS
        slow_bundle.set()
        assert node._models.wait(60)
        before = set(threading.enumerate())
        assert node.trigger_activate() == SUCCESS
        node._follow_models()
        assert [thread.name for thread in set(threading.enumerate()) - before] == ["segmentation_worker"]


def test_models_that_nobody_wants_any_more_are_closed_before_others_are_loaded(bundle, monkeypatch):
    steps, may_load, from_bundle, close = [], threading.Event(), Segmenter.from_bundle, OnnxRuntime.close

    def load(*given, **options):
        steps.append("load")
        assert may_load.wait(60)
        return from_bundle(*given, **options)

    monkeypatch.setattr(Segmenter, "from_bundle", load)
    monkeypatch.setattr(OnnxRuntime, "close", lambda runtime: (steps.append("close"), close(runtime)))
    loader = models.Models(lambda: None, pytest.fail)
    for _ in range(2):
        loader.load(NodeOptions(bundle=str(bundle.path)))
        time.sleep(0.1)
    assert steps == ["load"]
    may_load.set()
    assert loader.wait(60)
    assert steps == ["load", "close", "load"]
    loader.release()
    assert loader.join(60)


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"bundle": "/nowhere/at/all"}, "there is no such folder"), ({"class_list": "/nowhere.yaml"}, "cannot be read")],
)
def test_a_late_bundle_that_cannot_be_used_deactivates_the_node(bundle, tmp_path, slow_bundle, given, reason):
    with node_here(tmp_path, **{"bundle": str(bundle.path), **given}) as (_, node):
        start(node)
        slow_bundle.set()
        end_loading(node)
        level, values = values_of(node)
        assert (level, values["state"]) == (ERROR, "inactive")
        assert reason in values["last error"]
        assert node.trigger_cleanup() == SUCCESS
        correct = [Parameter("bundle", value=str(bundle.path)), Parameter("class_list", value="")]
        assert all(result.successful for result in node.set_parameters(correct))
        start(node)
        end_loading(node)
        assert node._outputs.by_camera


class _Slow:
    """A computation that ends only once the next one was started."""

    def __init__(self, computed, next_one):
        self._computed, self._next_one = computed, next_one

    def logits(self):
        assert self._next_one.wait(10), "the next frame was not started meanwhile"
        return self._computed.logits()

    def seconds(self):
        return self._computed.seconds()


def test_on_a_gpu_the_next_frame_starts_before_the_last_mask_is_sent(bundle, tmp_path, monkeypatch):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        assert node.trigger_configure() == SUCCESS
        runtime, started = node._models.segmenter.runtime, [threading.Event() for _ in range(4)]
        run, indices = runtime.start, iter(range(3))

        def start_slowly(canvases, heads):
            index = next(indices)
            started[index].set()
            return _Slow(run(canvases, heads), started[min(index + 1, 2)])

        monkeypatch.setattr(runtime, "device", "cuda")
        monkeypatch.setattr(runtime, "start", start_slowly)
        assert node.trigger_activate() == SUCCESS
        camera, masks = graph.camera("image"), graph.listen("segmentation/mask", reliable=True)
        publisher = node._outputs.by_camera[""]["tiny"]._publishers["mask"]
        graph.spin_until(publisher.get_subscription_count, "a subscription to the mask")
        sent = [camera.message(np.full((32, 32, 3), 60 * index, np.uint8)) for index in range(3)]
        for index, message in enumerate(sent):
            node._loop._receive("", message, 0)
            graph.spin_until(started[index].is_set, f"frame {index} on its way")
        graph.spin_until(lambda: len(masks) == 3, "three masks")
        assert [mask.header for mask in masks] == [message.header for message in sent]
        statistics = node._loop.statistics[""]
        graph.spin_until(lambda: "3 segmented" in statistics.summary(), "the end of the frames")
        assert statistics.summary() == "3 received, 3 segmented"


@pytest.fixture
def unclosable(monkeypatch):
    """Runtimes that cannot be closed; a call for each attempt."""
    attempts = []

    def close(runtime):
        attempts.append(runtime)
        raise RuntimeError("the device does not answer")

    monkeypatch.setattr(OnnxRuntime, "close", close)
    return attempts


def test_a_node_whose_models_cannot_be_closed_can_be_started_again(bundle, tmp_path, unclosable):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        for attempt in (1, 2):
            start(node)
            assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
            assert len(unclosable) == attempt
            assert values_of(node)[1]["state"] == "unconfigured"
            assert values_of(node)[1]["runtime"] == "none loaded"
            graph.spin_until(lambda: not graph.peer.count_publishers("/segmentation/mask"), "the end of the topics")
            assert node.set_parameters([Parameter("mask_size", value="8x8")])[0].successful


def test_a_failed_configuration_keeps_its_reason_if_closing_fails_too(bundle, tmp_path, unclosable):
    (tmp_path / "classes.yaml").write_text("classes: [dragon]")
    with node_here(tmp_path, bundle=str(bundle.path), class_list=str(tmp_path / "classes.yaml")) as (_, node):
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert unclosable
        level, values = values_of(node)
        assert level == ERROR
        assert "the class list names 'dragon', which no bundle has" in values["last error"]
        assert node.set_parameters([Parameter("class_list", value="")])[0].successful
        start(node)


@pytest.mark.parametrize("transition", ["on_shutdown", "on_error"])
def test_a_node_that_cannot_be_closed_ends_its_process(bundle, tmp_path, monkeypatch, transition):
    with node_here(tmp_path, bundle=str(bundle.path)) as (_, node):
        start(node)
        ended = []
        with monkeypatch.context() as patch:
            patch.setattr(node, "_end_process", lambda: ended.append(True))
            patch.setattr(node._bond, "close", lambda: 1 / 0)
            assert getattr(node, transition)(None) == TransitionCallbackReturn.FAILURE
        assert ended == [True]
        assert values_of(node)[1]["state"] == "finalized"


def compute_until_told(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make the runtime's next frames wait: an event that is set once one is computed, and one that lets them end."""
    is_computing, may_end, run = threading.Event(), threading.Event(), OnnxRuntime.start

    def compute_long(runtime, canvases, heads):
        is_computing.set()
        assert may_end.wait(60)
        return run(runtime, canvases, heads)

    monkeypatch.setattr(OnnxRuntime, "start", compute_long)
    return is_computing, may_end


def test_a_failed_runtime_is_closed_only_when_no_frame_uses_it(bundle, tmp_path, monkeypatch):
    closed, close = [], OnnxRuntime.close

    def note_close(runtime):
        closed.append(runtime)
        close(runtime)

    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        start(node)
        graph.listen("segmentation/mask")
        publisher = node._outputs.by_camera[""]["tiny"]._publishers["mask"]
        graph.spin_until(publisher.get_subscription_count, "a subscription to the mask")
        monkeypatch.setattr(OnnxRuntime, "close", note_close)
        is_computing, may_end = compute_until_told(monkeypatch)
        segmenter, loop = node._models.segmenter, node._loop
        loop._receive("", graph.camera("other").message(np.zeros((32, 32, 3), np.uint8)), 0)
        assert is_computing.wait(60)
        for _ in range(2):  # as of frames before, where several are in flight
            node._note_turn(segmenter, RuntimeFailedError("out of memory"))
        assert node.trigger_deactivate() == SUCCESS
        node._follow_models()
        assert not node._models.join(0.3)
        assert closed == []
        may_end.set()
        assert node._models.join(60)
        assert closed == [segmenter.runtime]
        assert node._models.wait(60)


def test_a_frame_that_waits_for_a_failed_runtime_counts_as_dropped_for_its_replacement(bundle, tmp_path, monkeypatch):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        start(node)
        graph.listen("segmentation/mask")
        publisher = node._outputs.by_camera[""]["tiny"]._publishers["mask"]
        graph.spin_until(publisher.get_subscription_count, "a subscription to the mask")
        is_computing, may_end = compute_until_told(monkeypatch)
        loop, image = node._loop, graph.camera("other").message(np.zeros((32, 32, 3), np.uint8))
        loop._receive("", image, 0)
        assert is_computing.wait(60)
        loop._receive("", image, 0)  # waits
        for _ in range(2):
            node._note_turn(node._models.segmenter, RuntimeFailedError("out of memory"))
        may_end.set()
        assert "the runtime is being replaced" in loop.statistics[""].summary()
        assert "deactivated" not in loop.statistics[""].summary()


def test_a_frame_that_ends_after_the_node_was_cleaned_up_is_left_out(bundle, tmp_path, monkeypatch, capfd):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        start(node)
        masks = graph.listen("segmentation/mask")
        publisher = node._outputs.by_camera[""]["tiny"]._publishers["mask"]
        graph.spin_until(publisher.get_subscription_count, "a subscription to the mask")
        is_computing, may_end = compute_until_told(monkeypatch)
        loop = node._loop
        loop._receive("", graph.camera("other").message(np.zeros((32, 32, 3), np.uint8)), 0)
        assert is_computing.wait(60)
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        may_end.set()
        assert loop.join(60)
        assert loop.statistics[""].summary() == "1 received, 1 unfinished when the node was deactivated"
        assert masks == []
        assert "a frame was dropped" not in capfd.readouterr().err


def test_a_node_that_is_destroyed_while_active_leaves_no_thread(bundle, tmp_path, capfd):
    with node_here(tmp_path, bundle=str(bundle.path), bond_heartbeat_period=0.05) as (_, node):
        start(node)
        ours = {"segmentation_worker", "bond"}
        assert "segmentation_worker" in {thread.name for thread in threading.enumerate()}
        node.destroy_node()
        assert not ours & {thread.name for thread in threading.enumerate()}
        time.sleep(0.2)
        assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("broken", ["_wanted_heads", "_start_segmenting", "_finish", "_publish"])
def test_an_unexpected_error_drops_one_frame_and_the_level_recovers(bundle, tmp_path, monkeypatch, broken):
    with node_here(tmp_path, bundle=str(bundle.path), cameras=["front"]) as (graph, node):
        start(node)
        masks = graph.listen("front/segmentation/mask")
        publisher = node._outputs.by_camera["front"]["tiny"]._publishers["mask"]
        graph.spin_until(publisher.get_subscription_count, "a subscription to the mask")
        message, statistics = (
            graph.camera("other").message(np.zeros((32, 32, 3), np.uint8)),
            node._loop.statistics["front"],
        )

        def fail(*_):
            raise ZeroDivisionError("made to fail")

        with monkeypatch.context() as patch:
            patch.setattr(node._loop, broken, fail)
            node._loop._receive("front", message, 0)
            graph.spin_until(lambda: "failed" in statistics.summary(), "the end of the frame")
        assert statistics.summary() == "1 received, 1 failed"
        level, values = values_of(node, "front")
        assert level == ERROR
        assert "ZeroDivisionError: made to fail" in values["last error"]
        assert values_of(node)[0] == OK, "no transition failed"

        node._loop._receive("front", message, 0)
        graph.spin_until(lambda: masks, "a mask")
        graph.spin_until(lambda: "segmented" in statistics.summary(), "the end of the frame")
        assert statistics.summary() == "2 received, 1 segmented, 1 failed"
        level, values = values_of(node, "front")
        assert level == WARN
        assert "made to fail" in values["last error"]


@pytest.mark.parametrize(
    "transition", [Transition.TRANSITION_UNCONFIGURED_SHUTDOWN, Transition.TRANSITION_INACTIVE_SHUTDOWN]
)
def test_a_shutdown_of_another_state_leaves_an_active_node_segmenting(bundle, tmp_path, transition):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node), spun(graph, node):
        start(node)
        assert not request(graph, transition)
        assert node.state == "active"
        camera, masks = graph.camera(), graph.listen("segmentation/mask")
        camera.send_until_answered(camera.message(np.zeros((32, 32, 3), np.uint8)), masks)


def test_parameters_cannot_change_once_models_are_being_loaded(bundle, tmp_path, slow_bundle, monkeypatch):
    monkeypatch.setattr(lifecycle, "CONFIGURE_S", 60.0)
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node), spun(graph, node):
        started = graph._executor.create_task(node.start())
        graph.spin_until(lambda: node._models.are_wanted, "the start")
        result = node.set_parameters([Parameter("mask_size", value="8x8")])[0]
        assert (node.state, result.successful) == ("unconfigured", False)
        assert "mask_size is read when the node is configured" in result.reason
        slow_bundle.set()
        graph.spin_until(started.done, "the end of the start")
        assert node.state == "active"


def test_parameters_may_change_after_a_start_that_failed(tmp_path):
    with node_here(tmp_path, bundle="/nowhere/at/all") as (graph, node), spun(graph, node):
        started = graph._executor.create_task(node.start())
        graph.spin_until(started.done, "the end of the start")
        assert node.state == "unconfigured"
        assert node.set_parameters([Parameter("mask_size", value="8x8")])[0].successful


def test_a_manager_gets_new_models_from_a_node_whose_models_failed(bundle, tmp_path):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node), spun(graph, node):
        started = graph._executor.create_task(node.start())
        graph.spin_until(started.done, "the end of the start")
        assert node.state == "active"
        node._give_up("out of memory")
        assert request(graph, Transition.TRANSITION_CONFIGURE)
        assert node.state == "inactive"
        assert request(graph, Transition.TRANSITION_ACTIVATE)


def test_a_manager_is_told_that_models_fail_again(bundle, tmp_path, monkeypatch):
    def refuse(path):
        raise BundleError(f"{path} is damaged")

    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node), spun(graph, node):
        started = graph._executor.create_task(node.start())
        graph.spin_until(started.done, "the end of the start")
        node._give_up("out of memory")
        monkeypatch.setattr(models, "load_bundle", refuse)
        assert not request(graph, Transition.TRANSITION_CONFIGURE)
        assert node.state == "unconfigured"


def read_with_other_classes(path):
    """Read a bundle as if a training had overwritten it."""
    read = load_bundle(path)
    read.manifest.classes.names.reverse()
    return read


@pytest.mark.parametrize(("read", "state"), [(read_with_other_classes, "inactive"), (load_bundle, "active")])
def test_models_read_again_with_other_classes_are_not_published(bundle, tmp_path, monkeypatch, read, state):
    with node_here(tmp_path, bundle=str(bundle.path)) as (_, node):
        start(node)
        monkeypatch.setattr(models, "load_bundle", read)
        failed, failure = node._models.segmenter, RuntimeFailedError("out of memory")
        for _ in range(3):  # another frame was under way
            node._note_turn(failed, failure)
        node._follow_models()
        end_loading(node)
        node._note_turn(failed, failure)
        node._follow_models()
        assert node.state == state
        assert ("the bundle was changed on disk" in node.last_error) == (state == "inactive")


def test_failures_before_a_cleanup_do_not_count_after_it(bundle, tmp_path, capfd):
    with node_here(tmp_path, bundle=str(bundle.path)) as (_, node):
        start(node)
        for _ in range(2):
            node._note_turn(node._models.segmenter, RuntimeFailedError("out of memory"))
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        start(node)
        node._note_turn(node._models.segmenter, RuntimeFailedError("out of memory"))
        node._follow_models()
        assert (node.state, node.last_error) == ("active", "")
    assert "the runtime failed twice" not in capfd.readouterr().err


def test_a_failed_activation_leaves_nothing_behind(bundle, tmp_path):
    odd = {"qos_overrides./image.subscription.reliability": "odd"}
    with node_here(tmp_path, bundle=str(bundle.path), **odd) as (_, node):
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == TransitionCallbackReturn.FAILURE
        assert "segmentation_worker" not in {thread.name for thread in threading.enumerate()}
        assert len(node._collect_diagnostics()) == 1, "nothing is told of a camera"


def test_each_camera_has_a_rate_of_its_own(bundle, tmp_path):
    with node_here(tmp_path, bundle=str(bundle.path), cameras=["front", "left"], max_rate=0.1) as (graph, node):
        start(node)
        image = graph.camera("other").message(np.zeros((32, 32, 3), np.uint8))
        for _ in range(2):
            for camera in ("front", "left"):
                node._loop._receive(camera, image, 0)
        for statistics in node._loop.statistics.values():
            graph.spin_until(lambda found=statistics: found.summary().count(" 1 ") == 2, "the end of the frames")
            assert "1 above max_rate" in statistics.summary()


def test_a_slow_frame_after_the_warm_up_or_skipped_frames_does_not_hang(bundle, tmp_path):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        assert node.trigger_configure() == SUCCESS
        assert node._models.segmenter.warm_up_s > 0
        node._models.segmenter.warm_up_s = 100.0
        node._models.segmenter.times.add("backbone", 1.0)
        assert node.trigger_activate() == SUCCESS
        assert not [key for key in values_of(node)[1] if key.startswith("stage ")], "of an earlier activation"
        for _ in range(2):
            assert node._loop.pace().expected_s == 100.0
            node._loop._receive("", graph.camera("other").message(np.zeros((32, 32, 3), np.uint8)), 0)
            graph.spin_until(lambda: not node._loop._worker._waiting and not node._loop._worker._taken, "its end")
        assert node._loop.statistics[""].summary() == "2 received, 2 nobody subscribes"


def test_a_frame_whose_heads_are_switched_off_is_told_from_one_that_nobody_wants(bundle, tmp_path):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        start(node)
        image, statistics = graph.camera("other").message(np.zeros((32, 32, 3), np.uint8)), node._loop.statistics[""]
        node._loop._receive("", image, 0)
        graph.spin_until(lambda: statistics.summary() == "1 received, 1 nobody subscribes", "the end of the frame")
        graph.listen("segmentation/mask")
        publisher = node._outputs.by_camera[""]["tiny"]._publishers["mask"]
        graph.spin_until(publisher.get_subscription_count, "a subscription to the mask")
        node._switches._switch_head("tiny", False)
        node._loop._receive("", image, 0)
        graph.spin_until(lambda: statistics.summary().count(" 1 ") == 2, "the end of the frame")
        assert statistics.summary() == "2 received, 1 nobody subscribes, 1 switched off"


def test_a_picture_too_wide_for_jpeg_costs_no_other_output(bundle, tmp_path, capfd):
    with node_here(tmp_path, bundle=str(bundle.path)) as (graph, node):
        start(node)
        masks = graph.listen("segmentation/mask")
        overlays = graph.listen("segmentation/overlay/compressed", message_type=CompressedImage)
        publishers, statistics = node._outputs.by_camera[""]["tiny"]._publishers, node._loop.statistics[""]
        for name in ("mask", "overlay/compressed"):
            graph.spin_until(publishers[name].get_subscription_count, f"a subscription to {name}")
        camera = graph.camera("other")
        for _ in range(2):
            node._loop._receive("", camera.message(np.zeros((8, 66000, 3), np.uint8)), 0)
            graph.spin_until(lambda: masks, "the mask")
            masks.clear()
        node._loop._receive("", camera.message(np.zeros((32, 32, 3), np.uint8)), 0)
        graph.spin_until(lambda: overlays, "the overlay of a smaller frame")
        graph.spin_until(lambda: statistics.summary() == "3 received, 3 segmented", "the end of the frames")
        assert len(overlays) == 1
        assert values_of(node)[0] == OK
    said = capfd.readouterr().err
    assert said.count("overlay/compressed is not sent: JPEG holds at most 65500 pixels a side") == 1
    assert "Traceback" not in said and "imencode" not in said


def test_an_output_whose_sending_holds_up_the_next_frame_is_noted_with_a_smaller_one(bundle, tmp_path, capfd):
    with node_here(tmp_path, bundle=str(bundle.path), cameras=["front"]) as (graph, node):
        start(node)
        outputs = ("mask", "confidence")
        received = {name: graph.listen(f"front/segmentation/{name}") for name in outputs}
        publishers = node._outputs.by_camera["front"]["tiny"]._publishers
        for name in outputs:
            graph.spin_until(publishers[name].get_subscription_count, f"a subscription to {name}")
            publishers[name] = _SlowLink(publishers[name])
        node._loop._receive("front", graph.camera("other").message(np.zeros((32, 32, 3), np.uint8)), 0)
        graph.spin_until(lambda: all(received.values()), "both images")
        statistics = node._loop.statistics["front"]
        graph.spin_until(lambda: statistics.summary() == "1 received, 1 segmented", "the end of the frame")
        level, values = values_of(node)
        assert level == OK, "the node itself is well"
        level, values = values_of(node, "front")
        assert level == WARN
        assert values["noted: slow subscriber"] == "2"
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "slow subscriber" in line]
    assert "sending an image on /front/segmentation/mask took 0." in said
    assert said.endswith("read /front/segmentation/mask/compressed there")


class _SlowLink:
    """A publisher whose messages take as long as over a slow network."""

    def __init__(self, publisher):
        self._publisher = publisher

    def publish(self, message):
        time.sleep(0.15)
        self._publisher.publish(message)

    def __getattr__(self, name):
        return getattr(self._publisher, name)


def test_a_runtime_that_fails_now_and_then_does_not_fill_the_log(bundle, tmp_path, capfd):
    with node_here(tmp_path, bundle=str(bundle.path)) as (_, node):
        start(node)
        for _ in range(20):
            node._note_turn(node._models.segmenter, RuntimeFailedError("out of memory"))
            node._note_turn(node._models.segmenter, None)
        assert node.state == "active"
    said = "the runtime is tried again with the next frame: out of memory"
    assert capfd.readouterr().err.count(said) == 1


def test_a_failed_configuration_leaves_segmentation_switched_off(bundle, tmp_path):
    with node_here(tmp_path, bundle="/nowhere/at/all") as (_, node):
        node._switches._switch_all(False)
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert node.set_parameters([Parameter("bundle", value=str(bundle.path))])[0].successful
        start(node)
        assert not node._switches.is_on
        assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
        assert node._switches.is_on
