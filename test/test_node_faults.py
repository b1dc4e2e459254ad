"""Nothing that arrives on a topic stops the node: it answers the next good frame, and counts what was wrong."""

from __future__ import annotations

import pytest
from bundles import write_tiny_bundle

pytest.importorskip("rclpy", reason="no ROS 2 here")

from fuzzing import fuzz
from ros_graph import Graph

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
