"""A frame that hangs is told once, and from one that is slow."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 here")

from dinov3_seg_ros.ros.cameras import hang_watch
from dinov3_seg_ros.ros.cameras.hang_watch import HangWatch
from dinov3_seg_ros.ros.cameras.worker import LatestFrameWorker, Pace

pytestmark = pytest.mark.ros


class Lines(list):
    """Takes the place of a logger."""

    def error(self, line):
        self.append(line)

    info = error


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def ends():
    return []


@pytest.fixture
def watch(lines, ends):
    return HangWatch(lines, lambda: ends.append(True))


def look(watch, pace, exit_after_s=0.0):
    """What the second of two looks says."""
    watch.look(pace, exit_after_s)
    return watch.look(pace, exit_after_s)


def test_a_hang_is_told_once_and_its_end_too(watch, lines, ends):
    assert look(watch, Pace(9.0, 0.1)) == ""
    assert "has not ended for 11 s" in look(watch, Pace(11.0, 0.1))
    assert "has not ended for 3600 s" in look(watch, Pace(3600.0, 0.1))
    assert len(lines) == 1 and watch.hangs
    assert watch.look(Pace(0.2, 3601.0), 0.0) == ""
    assert "has ended after all" in lines[1] and not watch.hangs
    assert watch.look(Pace(12.0, 0.1), 0.0) == "", "it may be the process again that was stopped"
    assert watch.look(Pace(13.0, 0.1), 0.0)
    assert len(lines) == 3 and ends == []


def test_frames_that_always_take_long_do_not_hang(watch, lines):
    assert look(watch, Pace(59.0, 12.0)) == ""
    assert look(watch, Pace(61.0, 12.0))
    assert len(lines) == 1


def test_a_process_that_was_stopped_for_a_while_does_not_hang(watch, lines, ends):
    for _ in range(2):
        assert watch.look(Pace(600.0, 0.1), 30.0) == "", "it goes on a moment later"
        assert watch.look(Pace(0.1, 600.0), 30.0) == ""
    assert lines == ends == []


def test_the_process_is_ended_once_and_only_after_a_hang(watch, ends):
    assert look(watch, Pace(9.0, 0.1), 5.0) == "" and ends == []
    for oldest_s in (11.0, 12.0):
        look(watch, Pace(oldest_s, 0.1), 11.5)
    look(watch, Pace(13.0, 0.1), 11.5)
    assert ends == [True]


def test_a_batch_may_take_as_many_times_longer_as_it_has_frames(watch, monkeypatch):
    monkeypatch.setattr(hang_watch, "LIMIT_S", 0.0)
    may_end, done = threading.Event(), threading.Semaphore(0)

    def start(items):
        def finish():
            if items[0][1] == "alone":
                time.sleep(0.1)
            else:
                assert may_end.wait(5)
            done.release()
            return 1  # nobody wants the others

        return finish

    worker = LatestFrameWorker(start, on_error=lambda slots, error: None, max_items=8)
    for slot in range(8):
        worker.put(str(slot), "alone")
    worker.start()
    assert done.acquire(timeout=5)
    for slot in range(8):
        worker.put(str(slot), "together")
    while worker.pace().oldest_s < 0.6:
        time.sleep(0.01)
    assert look(watch, worker.pace()) == ""
    may_end.set()
    worker.stop()
    assert worker.join(5)
