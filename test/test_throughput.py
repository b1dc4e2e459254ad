"""The search for the highest rate of a camera that the node holds."""

from __future__ import annotations

import json

import pytest
from test_benchmark import run_on_ros

from dinov3_seg_ros.benchmark.__main__ import main
from dinov3_seg_ros.benchmark.throughput import search
from dinov3_seg_ros.benchmark.trial import Trial
from dinov3_seg_ros.support.errors import TransportError
from dinov3_seg_ros.support.resources import resource_path


class Node:
    """Segments so many frames per second, and drops the rest; the camera reaches so many."""

    def __init__(self, capacity_hz: float, camera_hz: float = 1000.0) -> None:
        self.capacity_hz, self.camera_hz = capacity_hz, camera_hz
        self.seconds: list[float] = []

    def stream(self, rate_hz: float, seconds: float) -> Trial:
        self.seconds.append(seconds)
        rate_hz = min(rate_hz, self.camera_hz)
        sent = round(rate_hz * seconds)
        received = min(sent, round(self.capacity_hz * seconds))
        return Trial(rate_hz, sent, received, {"median": 1.0, "p95": 2.0})


@pytest.mark.parametrize("first_hz", [4.0, 30.0, 200.0])
def test_the_highest_rate_with_under_5_percent_drops_is_found(first_hz):
    node = Node(30.0)
    found, limited = search(node.stream, first_hz, 5.0)
    assert 30.0 <= found.rate_hz <= 30.0 / 0.95
    assert found.drops < 0.05
    assert found.rate_hz > 0.95 * 30.0 / 0.95
    assert not limited
    assert node.seconds[-1] > node.seconds[0], "the last trial is longer"


def test_a_camera_that_cannot_send_faster_is_named():
    found, limited = search(Node(500.0, camera_hz=120.0).stream, 50.0, 5.0)
    assert limited
    assert found.rate_hz == 120.0


def test_a_rate_that_was_held_by_luck_is_lowered():
    node = Node(30.0)

    def stream(rate_hz, seconds):
        node.capacity_hz = 30.0 if seconds < 10 else 28.0
        return node.stream(rate_hz, seconds)

    found, _ = search(stream, 20.0, 5.0)
    assert found.drops < 0.05
    assert 28.0 <= found.rate_hz <= 28.0 / 0.95


@pytest.mark.parametrize("holds_short_trials", [False, True])
def test_a_node_that_holds_no_rate_is_an_error(holds_short_trials):
    failed = []

    def stream(rate_hz, seconds):
        is_held = holds_short_trials and seconds < 10
        failed.extend([] if is_held else [rate_hz])
        return Trial(rate_hz, 100, 100 if is_held else 0, None)

    with pytest.raises(TransportError) as error:
        search(stream, 10.0, 5.0)
    assert f"even at {min(failed):.2f} Hz" in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "--throughput",
        "--throughput --ros --baseline",
        "--throughput --ros --picture a.png",
        "--throughput --choose",
        "--throughput --ros --frames 3",
        "--choose --frames 3",
        "--choose --frame-size 96 128",
        "--seconds 3",
        "demo",
    ],
)
def test_flags_that_do_not_go_together_are_refused(line, capsys):
    assert main([str(resource_path("weights/demo")), *line.split()]) == 2
    said = capsys.readouterr().err
    assert "--throughput" in said or "--frames" in said or "--choose" in said


@pytest.mark.ros
def test_a_real_nodes_highest_rate_is_found(tmp_path):
    file = tmp_path / "rates.json"
    run = run_on_ros(str(resource_path("weights/demo")), "--throughput", "--seconds", "1", "--json", str(file))
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(file.read_text())
    assert result["rate_hz"] > 1
    assert 0 <= result["drops"] < 0.05
    assert result["drops"] == pytest.approx(1 - result["received"] / result["sent"], abs=1e-4)
    assert 0 < result["latency_ms"]["median"] <= result["latency_ms"]["p95"]
    assert result["trials"][-1] == {key: result[key] for key in result["trials"][-1]}
    assert f"{result['rate_hz']:.2f} Hz" in run.stdout
