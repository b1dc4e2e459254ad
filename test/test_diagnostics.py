"""Every frame is counted once as received and once as what became of it; levels say what an operator must know."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from dinov3_seg_ros.ros.health.camera_statistics import LIMITED, REPLACED, UNWANTED, CameraStatistics, Fault
from dinov3_seg_ros.ros.health.diagnostics import camera_status, node_status, stages_of
from dinov3_seg_ros.ros.health.fault_log import FaultLog
from dinov3_seg_ros.support.timing import Rate

pytestmark = pytest.mark.ros

OK, WARN, ERROR, STALE = (bytes([level]) for level in range(4))


class Clock:
    """Stands in for the module `time`; moves only when told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("dinov3_seg_ros.ros.health.camera_statistics.time", clock)
    monkeypatch.setattr("dinov3_seg_ros.ros.health.fault_log.time", clock)
    monkeypatch.setattr("dinov3_seg_ros.support.timing.time", clock)
    return clock


def status_of(statistics):
    status = camera_status("node: camera front", statistics.report("/front/image"))
    return status.level, status.message, {pair.key: pair.value for pair in status.values}


def test_a_rate_follows_its_window_and_falls_to_zero(clock):
    rate = Rate(window_s=5.0)
    for _ in range(100):
        clock.now += 0.1
        rate.add()
    assert rate.per_second() == pytest.approx(10, abs=0.3)
    clock.now += 2.5
    assert rate.per_second() == pytest.approx(5, abs=0.3)
    clock.now += 5
    assert rate.per_second() == 0


def test_frames_are_counted_by_what_became_of_them(clock):
    statistics = CameraStatistics()
    for number in range(10):
        statistics.received(stamp=number)
    for latency in (0.010, 0.020, 0.030):
        statistics.segmented(received=clock.now - latency, delay=2 * latency)
    for _ in range(6):
        statistics.dropped(REPLACED)
    assert status_of(statistics)[:2] == (OK, "3.0 of 10.0 frames per second segmented")
    statistics.dropped("damaged data", "it is damaged")
    level, message, values = status_of(statistics)
    assert (level, message) == (WARN, "faults in the last 10 s: damaged data")
    assert (values["frames received"], values["frames segmented"]) == ("10", "3")
    assert (values["input rate [Hz]"], values["output rate [Hz]"]) == ("10.0", "3.0")
    assert (values[f"dropped: {REPLACED}"], values["dropped: damaged data"]) == ("6", "1")
    assert values["frames dropped by the transport"] == "0"
    assert values["latency in the node [ms]"] == "median 20.00, 95th percentile 29.00"
    assert values["latency end to end [ms]"] == "median 40.00, 95th percentile 58.00"
    assert values["last error"] == "it is damaged"
    assert statistics.summary() == f"10 received, 3 segmented, 6 {REPLACED}, 1 damaged data"


def test_frames_dropped_by_the_transport_are_counted(clock):
    statistics = CameraStatistics()
    for stamp, lost in ((1.0, 0), (5.0, 3), (6.0, 0)):
        statistics.received(stamp, lost)
        statistics.segmented(clock.now, delay=0.0)
    values = status_of(statistics)[2]
    assert (values["frames received"], values["frames dropped by the transport"]) == ("3", "3")
    assert statistics.summary() == "3 received, 3 segmented, 3 dropped by the transport"


def test_a_loss_is_a_warning_from_three_images_and_five_percent_on(clock):
    statistics = CameraStatistics()

    def receive(count, lost=0):
        for _ in range(count):
            clock.now += 0.05
            statistics.received(clock.now, lost)
            statistics.segmented(clock.now, delay=0.0)

    receive(1, lost=2)
    assert statistics.loss() is None and status_of(statistics)[0] == OK, "two may be an accident"
    receive(1, lost=1)
    assert statistics.loss() == (3, 5)
    assert status_of(statistics)[:2] == (WARN, "images dropped by the transport: 3 of 5 in the last 10 s")
    receive(60)
    assert statistics.loss() is None, "3 of 65"
    receive(10, lost=1)
    assert status_of(statistics)[0] == WARN
    receive(210)
    assert status_of(statistics)[0] == OK, "it is over"


def test_the_reason_of_a_silence_is_told_until_an_image_arrives(clock):
    statistics = CameraStatistics()
    assert not statistics.receives(within_s=5.0), "there has been no image"
    clock.now += 6
    assert statistics.silence_s() == 6
    statistics.explain_silence("nobody publishes there")
    assert status_of(statistics)[1] == "no image yet on /front/image for 6 s: nobody publishes there"
    statistics.received(1.0)
    clock.now += 4
    assert statistics.receives(within_s=5.0) and not statistics.receives(within_s=4.0)
    assert status_of(statistics)[1] == "no further image on /front/image for 4 s"


def test_silence_is_stale_and_faults_alone_are_an_error(clock):
    statistics = CameraStatistics()
    clock.now += 5
    assert status_of(statistics)[:2] == (STALE, "no image yet on /front/image for 5 s")
    statistics.received(1.0)
    statistics.dropped("unknown encoding", "32FC1")
    assert status_of(statistics)[:2] == (ERROR, "no frame could be segmented: unknown encoding")
    statistics.received(2.0)
    statistics.segmented(clock.now, delay=0.0)
    assert status_of(statistics)[0] == WARN
    clock.now += 11
    statistics.received(3.0)
    assert status_of(statistics)[0] == OK
    clock.now += 4
    assert status_of(statistics)[:2] == (STALE, "no further image on /front/image for 4 s")


def test_a_node_that_makes_no_mask_for_ten_seconds_is_a_warning(clock):
    statistics = CameraStatistics()
    for second in range(12):
        clock.now += 1
        statistics.received(float(second))
        statistics.dropped(REPLACED)
        statistics.dropped(LIMITED)  # max_rate goes before
    assert status_of(statistics)[:2] == (WARN, "no mask for 11 s: the frames take too long")
    statistics.segmented(clock.now, delay=0.0)
    assert status_of(statistics)[0] == OK
    statistics.dropped(REPLACED)
    for second in range(12):
        clock.now += 1
        statistics.received(12.0 + second)
        statistics.dropped(UNWANTED)
    assert status_of(statistics)[0] == OK, "it makes none because nobody subscribes"


def test_stamps_that_run_backwards_or_of_another_clock_are_noted(clock):
    statistics = CameraStatistics()
    for stamp, level in ((5.0, OK), (6.0, OK), (6.0, OK), (1.0, WARN)):
        statistics.received(stamp)
        statistics.segmented(clock.now, delay=-3.0)
        assert status_of(statistics)[0] == level, "of another clock, masks are right all the same"
    values = status_of(statistics)[2]
    assert (values["noted: stamp runs backwards"], values["noted: stamp of another clock"]) == ("1", "4")
    assert "latency end to end [ms]" not in values


def test_a_stamp_just_ahead_of_the_clock_is_neither_fault_nor_latency(clock):
    """As in simulation, where images come between two messages on /clock."""
    statistics = CameraStatistics()
    assert statistics.segmented(clock.now, delay=-0.1) is None
    assert "latency end to end [ms]" not in status_of(statistics)[2]
    assert statistics.segmented(clock.now, delay=0.2) is None
    assert status_of(statistics)[2]["latency end to end [ms]"].startswith("median 200.00")


def test_a_driver_that_leaves_stamps_empty_is_named_as_such(clock):
    statistics = CameraStatistics()
    for _ in range(3):
        fault = statistics.received(0.0)
        assert statistics.segmented(clock.now, delay=None) is None
    assert fault.name == "no stamp" and "correct the driver" in fault.details
    level, _, values = status_of(statistics)
    assert (level, values["noted: no stamp"]) == (OK, "3")
    assert not {"noted: stamp of another clock", "latency end to end [ms]"} & values.keys()


@pytest.mark.parametrize(
    ("state", "last_error", "peers", "off", "expected"),
    [
        ("active", "", {}, False, (OK, "active")),
        ("active", "", {}, True, (OK, "active; off: head a")),
        ("inactive", "", {}, False, (WARN, "inactive")),
        ("active", "", {"mismatch": ["a and b differ"]}, False, (WARN, "active: a and b differ")),
        ("active", "", {"mismatch": [], "second publisher": ["b too"]}, False, (WARN, "active: b too")),
        ("unconfigured", "no bundle\nin detail", {"mismatch": ["m"]}, False, (ERROR, "unconfigured: no bundle")),
    ],
)
def test_the_nodes_level_is_that_of_its_worst_fault(state, last_error, peers, off, expected):
    stages = {"backbone": {"median": 10.0, "p95": 12.3}}
    status = node_status("node", state, last_error, "torch", "numpy", {"head a": not off}, stages, peers)
    assert (status.level, status.message) == expected
    values = {pair.key: pair.value for pair in status.values}
    assert (values["runtime"], values["decode"]) == ("torch", "numpy")
    assert all(values[f"{kind} 1"] == line for kind, lines in peers.items() for line in lines)
    assert values["stage backbone [ms]"] == "median 10.00, 95th percentile 12.30"
    assert stages_of(status) == stages


def test_an_active_node_whose_models_still_load_is_a_warning():
    def status(state):
        return node_status("node", state, "", "being loaded", "being loaded", {}, {}, {}, loading_s=83.2)

    assert (status("active").level, status("active").message) == (WARN, "active: the models have been loading for 83 s")
    assert (status("inactive").level, status("inactive").message) == (WARN, "inactive")


def test_a_fault_that_drops_no_frame_is_a_warning_at_most(clock):
    statistics = CameraStatistics()
    statistics.received(1.0)
    statistics.dropped(UNWANTED)
    assert statistics.noted("camera_info not finite", "NaN").details == "NaN"
    assert status_of(statistics)[:2] == (WARN, "faults in the last 10 s: camera_info not finite")


def test_a_faulty_stamp_is_returned_to_be_logged(clock):
    statistics = CameraStatistics()
    assert statistics.received(5.0) is None
    assert statistics.received(4.0).details == "stamp 4.000 follows 5.000"
    assert statistics.segmented(clock.now, delay=59.0) is None
    assert "differ by 61.000 s" in statistics.segmented(clock.now, delay=61.0).details


class Lines(list):
    """Takes the place of a logger."""

    def error(self, line):
        self.append(line)

    warning = error


def test_faults_are_logged_once_in_a_while_by_camera_and_kind(clock):
    lines = Lines()
    log = FaultLog(lines)

    def logged():
        del lines[:]
        for camera in ("front", "left"):
            log.drop(camera, "damaged data", "cut off")
            log.note(camera, Fault("no stamp", "it is 0", clock.now))
            log.note(camera, None)
        return list(lines)

    drops, notes = ([f"{kind.format(camera)}" for camera in ("front", "left")] for kind in (
        "a frame of camera '{}' was dropped: cut off", "no stamp of camera '{}': it is 0"
    ))  # fmt: skip
    assert sorted(logged()) == drops + notes
    assert logged() == []
    clock.now += 5
    assert logged() == drops, "frames are lost"
    log.drop("left", "no pixels", "0x0")
    assert lines[2:] == ["a frame of camera 'left' was dropped: 0x0"]
    clock.now += 55
    assert sorted(logged()) == drops + notes
