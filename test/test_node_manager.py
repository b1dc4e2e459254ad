"""The node under a lifecycle manager: who is in charge, the bond, and answers while models load."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from diagnostics_reader import ERROR, OK, WARN, DiagnosticsReader
from exported_bundles import write_exported_bundle
from nav2_manager import RESET, SHUTDOWN, STARTUP, Nav2Manager
from ros_graph import Graph
from rosgraph_msgs.msg import Clock

from dinov3_seg_ros.ros.bond import HAS_BOND
from dinov3_seg_ros.ros.cameras.messages import seconds_of
from dinov3_seg_ros.ros.lifecycle import CONFIGURE_S

pytestmark = pytest.mark.ros

TROUBLED = str(Path(__file__).with_name("troubled_node.py"))
PICTURE = np.zeros((64, 96, 3), np.uint8)
needs_bond = pytest.mark.skipif(not HAS_BOND, reason="the messages of bond could not be made: no C++ compiler")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_exported_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def graph(tmp_path):
    with contextlib.closing(Graph(tmp_path)) as graph:
        yield graph


@needs_bond
def test_nav2s_manager_takes_over_a_node_that_started_itself(graph, bundle):
    node = graph.start_node(bundle=bundle.path)
    node.wait_for_state("active")
    manager = Nav2Manager(graph)
    graph.spin_for(0.6)
    assert manager.heartbeats == [], "nobody has taken charge"
    manager.change(STARTUP)
    manager.wait_for_bond()
    heartbeat = manager.heartbeats[-1]
    assert (heartbeat.id, heartbeat.active, heartbeat.heartbeat_period) == ("segmentation", True, 0.25)
    assert 0.0 <= time.monotonic() - seconds_of(heartbeat.header.stamp) < 30.0, "in steady time"
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.send_until_answered(camera.message(PICTURE), masks)
    first = heartbeat.instance_id
    manager.change(RESET)
    graph.spin_until(lambda: not manager.heartbeats[-1].active, "the end of the bond")
    manager.change(STARTUP)
    graph.spin_until(lambda: manager.heartbeats[-1].instance_id != first, "another bond")
    manager.change(RESET | SHUTDOWN)
    assert node.process.wait(timeout=20) == 0, node.log
    assert "Traceback" not in node.log


@needs_bond
@pytest.mark.parametrize(("period", "beats"), [(0.05, True), (0.0, False)])
def test_the_bonds_period_is_as_asked_for_whoever_activates(graph, bundle, period, beats):
    manager = Nav2Manager(graph)
    node = graph.start_node(bundle=bundle.path, bond_heartbeat_period=period)
    node.wait_for_state("active")
    if beats:
        graph.spin_until(lambda: len(manager.heartbeats) > 3, "heartbeats")
        assert manager.heartbeats[0].heartbeat_period == pytest.approx(period)
    else:
        manager.change(STARTUP)
        graph.spin_for(0.6)
        assert manager.heartbeats == []


def test_services_answer_and_configure_succeeds_while_models_load(graph, bundle, tmp_path):
    switch = tmp_path / "load"
    node = graph.start_node(program=(TROUBLED, "loading", str(switch)), bundle=bundle.path, autostart=False)
    node.wait_for_state("unconfigured")
    manager = Nav2Manager(graph)
    manager.change(STARTUP)
    assert CONFIGURE_S < 4.0, "the manager waits 5 s"
    assert node.get_parameter("overlay_alpha").double_value == 0.5
    reader = DiagnosticsReader(graph)
    status = reader.wait("segmentation", lambda status: status.values["runtime"] == "being loaded", "loading")
    assert status.level == WARN and "active: the models have been loading for" in status.message
    switch.touch()
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.send_until_answered(camera.message(PICTURE), masks)


def test_a_refused_request_does_not_stop_a_node_that_starts_itself(graph, bundle, tmp_path):
    switch = tmp_path / "load"
    node = graph.start_node(program=(TROUBLED, "loading", str(switch)), bundle=bundle.path)
    assert not node.change_state("activate"), "it is still unconfigured"
    switch.touch()
    node.wait_for_state("active")
    manager = Nav2Manager(graph)
    graph.spin_for(0.6)
    assert not manager.heartbeats, "nobody has taken charge"


def test_a_signal_while_models_load_is_not_kept_waiting(graph, bundle, tmp_path):
    node = graph.start_node(program=(TROUBLED, "loading", str(tmp_path / "load")), bundle=bundle.path)
    assert node.state() in ("unconfigured", "active"), "a slow machine asks only after the configuration"
    assert node.end() == 0, "models that are being loaded are not waited for"
    assert "Traceback" not in node.log


def test_models_that_cannot_be_loaded_later_deactivate_the_node(graph, bundle, tmp_path):
    switch = tmp_path / "load"
    node = graph.start_node(program=(TROUBLED, "loading", str(switch)), bundle=bundle.path)
    node.wait_for_state("active")
    switch.write_text("the graph is damaged")
    node.wait_for_state("inactive")
    reader = DiagnosticsReader(graph)
    status = reader.wait("segmentation", lambda status: status.level == ERROR, "the error")
    assert "the graph is damaged" in status.values["last error"]
    assert not node.change_state("activate")
    switch.write_text("")
    for transition in ("cleanup", "configure", "activate"):
        assert node.change_state(transition), node.log
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.send_until_answered(camera.message(PICTURE), masks)


def test_a_failing_runtime_is_tried_again_replaced_and_given_up(graph, bundle, tmp_path):
    switch = tmp_path / "fail"
    node = graph.start_node(program=(TROUBLED, "failing", str(switch)), bundle=bundle.path, runtime="onnx")
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.send_until_answered(camera.message(PICTURE), masks)
    switch.write_text("CUDA error: an illegal memory access was encountered")
    camera.send_until(camera.message(PICTURE), lambda: "tried again with the next frame" in node.log, "one failure")
    switch.unlink()
    camera.send_until_answered(camera.message(PICTURE), masks)
    assert node.state() == "active", "the second try succeeded"
    switch.write_text("out of memory")
    for said in ("the runtime failed twice", "the node cannot segment"):
        camera.send_until(camera.message(PICTURE), lambda said=said: said in node.log, said)
    node.wait_for_state("inactive")
    assert "end what else uses the memory" in node.log
    switch.unlink()
    for transition in ("cleanup", "configure", "activate"):
        assert node.change_state(transition), node.log
    camera.wait_for_subscriber()
    camera.send_until_answered(camera.message(PICTURE), masks)
    assert "Traceback" not in node.log


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_runtime_that_hangs_does_not_keep_the_process_alive(graph, bundle, tmp_path, signal_number):
    switch = tmp_path / "hang"
    node = graph.start_node(program=(TROUBLED, "hung", str(switch)), bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.send_until_answered(camera.message(PICTURE), masks)
    switch.touch()
    reader = DiagnosticsReader(graph)

    def is_replaced():
        camera.send(camera.message(PICTURE))
        graph.spin_for(0.1)
        status = reader.newest("segmentation: camera")
        return status and status.values.get("dropped: replaced by a newer one")

    graph.spin_until(is_replaced, "a frame that waits for the one that hangs")
    assert node.state() == "active", "services are still served"
    assert node.end(signal_number) == 1, node.log
    assert "the process ends all the same" in node.log


def test_a_node_that_cannot_be_closed_does_not_keep_the_process_alive(graph, bundle, tmp_path):
    node = graph.start_node(program=(TROUBLED, "unclosable", str(tmp_path / "none")), bundle=bundle.path)
    node.wait_for_state("active")
    assert node.end() == 1, node.log
    assert "the process ends all the same: the node could not be closed: ZeroDivisionError" in node.log


def test_a_frame_that_hangs_is_an_error_until_it_ends(graph, bundle, tmp_path):
    switch = tmp_path / "hang"
    node = graph.start_node(program=(TROUBLED, "hung", str(switch)), bundle=bundle.path)
    camera, masks, reader = graph.camera(), graph.listen("segmentation/mask"), DiagnosticsReader(graph)
    camera.send_until_answered(camera.message(PICTURE), masks)

    def hang():
        switch.touch()
        camera.send(camera.message(PICTURE))
        return reader.wait("segmentation", lambda status: status.level == ERROR, "the hang")

    status = hang()
    assert status.message.startswith("active: the frame being processed has not ended for ")
    graph.spin_for(2.0)
    assert node.log.count("start the process again (Ctrl-C ends it within seconds)") == 1
    assert node.state() == "active", "services are still served"
    switch.unlink()
    reader.wait("segmentation", lambda status: status.level == OK, "the end of the hang")
    assert node.log.count("the node goes on") == 1
    camera.send_until_answered(camera.message(PICTURE), masks)

    hang()
    assert node.log.count("start the process again (Ctrl-C ends it within seconds)") == 2, "another one"
    assert node.change_state("deactivate") and node.change_state("cleanup")
    assert not node.change_state("configure"), "what hangs still uses the runtime"
    assert "configure failed: the frame being processed has not ended" in node.log
    assert node.end() == 1, node.log
    assert "Traceback" not in node.log


def test_a_hang_ends_the_process_where_that_is_asked_for(graph, bundle, tmp_path):
    switch = tmp_path / "hang"
    node = graph.start_node(program=(TROUBLED, "hung", str(switch)), bundle=bundle.path, exit_after_hang=3.0)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    camera.send_until_answered(camera.message(PICTURE), masks)
    switch.touch()
    camera.send_until(camera.message(PICTURE), lambda: node.process.poll() is not None, "the end of the process")
    assert node.process.returncode == 1, node.log
    assert "the process ends, since exit_after_hang is 3 s" in node.log
    assert "the process ends all the same" in node.log and "Traceback" not in node.log
    assert "context is invalid" not in node.log


def test_max_rate_limits_the_masks_in_steady_time_and_can_change(graph, bundle):
    node = graph.start_node(bundle=bundle.path, max_rate=2.0, use_sim_time=True)
    camera, masks, reader = graph.camera(), graph.listen("segmentation/mask"), DiagnosticsReader(graph)
    camera.send_until_answered(camera.message(PICTURE), masks)
    began, count = time.monotonic(), len(masks)
    while (elapsed_s := time.monotonic() - began) < 3.0:
        camera.send(camera.message(PICTURE))
        graph.spin_for(0.03)
    counts = reader.settled_counts()
    assert 2 <= len(masks) - count <= 2.0 * elapsed_s + 1, "no simulated clock has come"
    assert counts["dropped: above max_rate"] > counts["frames segmented"]
    assert node.set_parameter("max_rate", 0.0).successful
    for _ in range(3):
        camera.send_until_answered(camera.message(PICTURE), masks)
    assert reader.settled_counts()["dropped: above max_rate"] == counts["dropped: above max_rate"]


@needs_bond
def test_clocks_that_stand_still_or_jump_change_nothing(graph, bundle):
    manager = Nav2Manager(graph)
    node = graph.start_node(bundle=bundle.path, use_sim_time=True, autostart=False)
    manager.change(STARTUP)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    reader = DiagnosticsReader(graph)
    clock = graph.peer.create_publisher(Clock, "/clock", 10)
    camera.send_until_answered(camera.message(PICTURE), masks)
    status = reader.wait(
        "segmentation: camera", lambda status: "noted: no time" in status.values, "the lack of a clock"
    )
    assert status.level == OK, "the masks are right all the same"
    for second in (None, 1_000, 1_000, 5_000_000, 10):  # none yet, it stands still, it jumps ahead, it jumps back
        if second is not None:
            assert "no time: use_sim_time is set, and nothing has arrived on /clock" in node.log
            message = Clock()
            message.clock.sec = second
            clock.publish(message)
        camera.send_until_answered(camera.message(PICTURE), masks)
        manager.wait_for_bond()
    status = reader.wait("segmentation: camera", lambda status: "latency in the node [ms]" in status.values, "latency")
    assert "stamp of another clock" in str(status.values)
    assert node.change_state("deactivate")
    assert "Traceback" not in node.log


def test_the_first_mask_does_not_wait_for_the_compiler(graph, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    node = graph.start_node(program=(TROUBLED, "compiling", str(tmp_path / "end")), bundle=bundle.path)
    camera, masks = graph.camera(), graph.listen("segmentation/mask")
    reader = DiagnosticsReader(graph)
    camera.send_until_answered(camera.message(PICTURE), masks)
    status = reader.wait("segmentation", lambda status: "loaded" not in status.values["decode"], "the decode")
    assert status.values["decode"] == "numpy"
    assert node.end() == 0, "nor does the end"
    assert "Traceback" not in node.log
