"""A silence is told after 5 s, at most once a minute, and at once when its reason is another; so is what is missing."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from dinov3_seg_ros.ros.cameras.watch import CameraWatch
from dinov3_seg_ros.ros.endpoints.silence import Silence
from dinov3_seg_ros.ros.health.camera_statistics import CameraStatistics
from dinov3_seg_ros.ros.health.fault_log import FaultLog

pytestmark = pytest.mark.ros


class Cameras:
    """One silent camera, what is logged of it, and the time; stands in for what `CameraWatch` uses of a node."""

    image_topic = "/front/image"
    info_topic = "/front/camera_info"

    def __init__(self):
        self.now = 1000.0
        self.silence = Silence("nobody publishes", "nobody publishes there")
        self.has_calibration, self.wants_calibration = False, False
        self.lines, self.follows, self.look = [], 0, None

    def monotonic(self):
        return self.now

    def warning(self, line):
        self.lines.append(line)

    info = warning

    def start_timer(self, _period_s, look):
        self.look = look

    def follow(self):
        self.follows += 1

    def explain_silence(self):
        return self.silence

    def wants(self, _camera):
        return self.wants_calibration

    def explain_missing_calibration(self):
        return "nobody publishes there"

    def wait(self, seconds):
        """Let time pass, with a look each half second; the lines logged meanwhile."""
        before = len(self.lines)
        for _ in range(int(2 * seconds)):
            self.now += 0.5
            self.look()
        return self.lines[before:]


@pytest.fixture
def camera(monkeypatch):
    camera = Cameras()
    for module in ("ros.health.camera_statistics", "ros.cameras.watch", "ros.health.fault_log", "support.timing"):
        monkeypatch.setattr(f"dinov3_seg_ros.{module}.time", camera)
    return camera


@pytest.fixture
def statistics(camera):
    statistics = CameraStatistics()
    CameraWatch(camera, {"front": camera}, {"front": statistics}, FaultLog(camera), camera.wants).start()
    return statistics


def test_a_silence_is_told_after_five_seconds_and_every_minute(camera, statistics):
    assert camera.wait(4.5) == []
    (line,) = camera.wait(1)
    assert line == "no image of camera 'front' on /front/image for 5 s: nobody publishes there"
    assert camera.wait(59) == []
    (line,) = camera.wait(1)
    assert "for 65 s" in line
    assert len(camera.wait(600)) == 10
    assert camera.follows == 2 * 665.5, "at each look"
    assert "nobody publishes there" in statistics.report("/front/image").message


def test_another_reason_is_told_at_the_next_look_for_it(camera, statistics):
    assert len(camera.wait(6)) == 1
    camera.silence = Silence("other type", "1 publisher: /driver")
    (line,) = camera.wait(5)
    assert line.endswith("1 publisher: /driver")
    assert statistics.report("/front/image").message.endswith("1 publisher: /driver")
    camera.silence = Silence("other type", "2 publishers: /driver, /other")
    assert camera.wait(50) == [], "of the same kind"
    assert statistics.report("/front/image").message.endswith("2 publishers: /driver, /other"), "but the status has it"
    (line,) = camera.wait(15)
    assert line.endswith("2 publishers: /driver, /other"), "after a minute"


def test_the_end_of_a_silence_is_told_and_the_next_one_after_a_minute(camera, statistics):
    camera.wait(6)
    statistics.received(1.0)
    assert camera.wait(1) == ["images of camera 'front' arrive on /front/image"]
    assert camera.wait(6) == []
    camera.now += 1
    assert statistics.report("/front/image").message.startswith("no further image on /front/image for 8 s")
    (line,) = camera.wait(55)
    assert "no image of camera 'front'" in line
    statistics.received(2.0)
    assert camera.wait(1) == ["images of camera 'front' arrive on /front/image"]


def test_the_next_silence_is_told_at_once_where_its_reason_is_another(camera, statistics):
    camera.wait(6)
    statistics.received(1.0)
    camera.wait(1)
    camera.silence = Silence("other type", "1 publisher: /driver")
    (line,) = camera.wait(6)
    assert line.endswith("1 publisher: /driver")


def test_a_camera_slower_than_the_watch_is_told_once_a_minute(camera, statistics):
    lines = []
    for image in range(75):
        statistics.received(float(image))
        lines += camera.wait(8)
    warnings = [line for line in lines if line.startswith("no image")]
    assert 9 <= len(warnings) <= 11
    assert len(lines) <= 2 * len(warnings)


def test_images_in_time_are_not_mentioned(camera, statistics):
    for second in range(20):
        statistics.received(float(second))
        assert camera.wait(1) == []


def play(camera, statistics, seconds):
    """Let images arrive, one a second; the lines logged meanwhile."""
    lines = []
    for second in range(seconds):
        statistics.received(1.0 + second)
        lines += camera.wait(1)
    return lines


def test_a_calibration_that_is_wanted_and_missing_is_told_once(camera, statistics):
    assert play(camera, statistics, 20) == [], "nobody wants it"
    camera.wants_calibration = True
    assert play(camera, statistics, 5) == []
    (line,) = play(camera, statistics, 200)
    assert line == (
        "no camera_info of camera 'front' on /front/camera_info, so none is published with the masks: "
        "nobody publishes there"
    )


def test_a_calibration_that_comes_late_or_without_images_is_not_missed(camera, statistics):
    camera.wants_calibration = True
    assert not any("camera_info" in line for line in camera.wait(60)), "there are no images"
    assert not any("camera_info" in line for line in play(camera, statistics, 4))
    camera.wait(6)
    assert not any("camera_info" in line for line in play(camera, statistics, 4)), "images began anew"
    camera.has_calibration = True
    assert play(camera, statistics, 60) == []
