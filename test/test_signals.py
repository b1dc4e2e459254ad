"""Ctrl-C as a request to end."""

from __future__ import annotations

import signal

import pytest

from dinov3_seg_ros.ros.signals import end_on_hangup, ignore_until_exit, interruptible, leave_ending_to_rclpy

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _handlers_of_this_process():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    leave_ending_to_rclpy()
    end_on_hangup()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_nothing_outside_what_may_be_interrupted(number):
    signal.raise_signal(number)
    with interruptible():
        pass
    signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_only_the_first_signal_interrupts(number):
    cleared_up = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            cleared_up = True
    assert cleared_up


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_the_very_end_is_ignored_by_the_process(number):
    ignore_until_exit()
    assert signal.getsignal(number) == signal.SIG_IGN


def test_a_process_under_nohup_stays_when_its_terminal_closes():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_on_hangup()
    with interruptible():
        signal.raise_signal(signal.SIGHUP)
