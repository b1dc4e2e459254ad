"""Nothing that arrives on a topic stops the node: it answers the next good frame, and counts what was wrong."""

from __future__ import annotations

import numpy as np
import pytest
from bundles import write_tiny_bundle

pytest.importorskip("rclpy", reason="no ROS 2 here")

import rclpy
from fuzzing import fuzz
from rclpy.parameter import Parameter
from ros_graph import Graph

from dinov3_seg_ros.node import SegmentationNode

pytestmark = pytest.mark.ros

CALIBRATION_FAULTS = {"camera_info not finite", "camera_info of another size"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", network_size=(32, 32))


@pytest.mark.parametrize(
    ("transport", "faults"),
    [
        ("raw", {"unknown encoding", "no pixels", "odd size", "step too small", "wrong length of data"}),
        ("compressed", {"unknown format", "damaged data", "too many pixels"}),
    ],
)
def test_after_every_bad_message_the_next_good_frame_is_answered_and_each_fault_is_counted(
    bundle, tmp_path, transport, faults
):
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


def test_a_frame_that_fails_in_a_batch_costs_no_other_cameras_frame(bundle, tmp_path, monkeypatch):
    graph = Graph(tmp_path)
    parameters = {"bundle": str(bundle.path), "cameras": ["good", "bad"], "max_batch": 2}
    node = SegmentationNode(
        context=graph.context, parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()]
    )
    try:
        assert node.trigger_configure() == node.trigger_activate() == rclpy.lifecycle.TransitionCallbackReturn.SUCCESS
        cameras = {name: graph.camera(f"{name}/image") for name in ("good", "bad")}
        masks = {name: graph.listen(f"{name}/segmentation/mask") for name in cameras}
        for name in cameras:
            publisher = node._outputs[name]["tiny"]._publishers["mask"]
            graph.spin_until(publisher.get_subscription_count, f"a subscription to the mask of {name}")
        batches, features = [], node._segmenter.runtime.features

        def features_of_dark_frames(canvases):
            batches.append(len(canvases))
            if canvases.max() == 255:
                raise RuntimeError("made to fail")
            return features(canvases)

        monkeypatch.setattr(node._segmenter.runtime, "features", features_of_dark_frames)
        pictures = {"good": np.zeros((32, 32, 3), np.uint8), "bad": np.full((32, 32, 3), 255, np.uint8)}
        messages = {name: cameras[name].message(pictures[name]) for name in cameras}
        node._process([(name, (message, 0.0)) for name, message in messages.items()])
        graph.spin_until(lambda: masks["good"], "the mask of the good frame")
        assert masks["good"][0].header == messages["good"].header
        assert batches == [2, 1, 1], "first together, then each alone"
        assert masks["bad"] == []
        assert node._statistics["bad"].summary() == "1 failed"
        assert node._statistics["good"].summary() == "1 segmented"
    finally:
        node.close()
        node.destroy_node()
        graph.close()
