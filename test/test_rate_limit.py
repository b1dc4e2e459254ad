"""max_rate: how many of a camera's frames are admitted."""

from __future__ import annotations

import time

import pytest

from dinov3_seg_ros.support.timing import RateLimit


@pytest.fixture
def clock(monkeypatch):
    """Steady time that a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def admitted(clock, limit, rate_hz, frames_hz, seconds):
    count, start = 0, clock[0]
    for frame in range(int(frames_hz * seconds)):
        clock[0] = start + frame / frames_hz
        count += limit.admits(rate_hz)
    return count


@pytest.mark.parametrize(("rate_hz", "expected"), [(0.0, 300), (5.0, 50), (20.0, 200), (29.0, 290), (60.0, 300)])
def test_the_rate_is_kept_whatever_the_cameras_is(clock, rate_hz, expected):
    assert abs(admitted(clock, RateLimit(), rate_hz, 30.0, 10.0) - expected) <= 1


def test_a_pause_is_not_made_up_for(clock):
    limit = RateLimit()
    admitted(clock, limit, 10.0, 30.0, 1.0)
    clock[0] += 60.0
    assert admitted(clock, limit, 10.0, 30.0, 1.0) <= 11


def test_a_higher_rate_takes_effect_at_once(clock):
    limit = RateLimit()
    assert limit.admits(0.01)
    clock[0] += 1.0
    assert limit.admits(10.0)
    assert not limit.admits(10.0)
    clock[0] += 0.2
    assert abs(admitted(clock, limit, 10.0, 30.0, 2.0) - 20) <= 1
