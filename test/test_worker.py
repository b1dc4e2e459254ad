"""The worker takes the newest item of each slot, fairly, and survives what goes wrong."""

from __future__ import annotations

import threading

from dinov3_seg_ros.worker import LatestFrameWorker


class Gate:
    """A process function that waits in its first call until it is opened, so that items pile up."""

    def __init__(self):
        self.calls = []
        self.entered, self.open = threading.Event(), threading.Event()
        self.finished = threading.Semaphore(0)

    def __call__(self, items):
        self.entered.set()
        assert self.open.wait(5)
        self.calls.append(list(items))
        self.finished.release()

    def wait(self, calls):
        for _ in range(calls):
            assert self.finished.acquire(timeout=5)


def run(gate, puts, calls, max_items=1):
    """Put one item, and ``puts`` while it is in work, for ``calls`` more calls; which of the puts replaced another."""
    worker = LatestFrameWorker(gate, on_error=lambda slots, error: None, max_items=max_items)
    worker.start()
    worker.put("first", 0)
    assert gate.entered.wait(5)
    replaced = [worker.put(slot, item) for slot, item in puts]
    gate.open.set()
    gate.wait(1 + calls)
    assert worker.stop() == []
    return replaced


def test_only_the_newest_item_is_taken_and_whoever_replaces_one_is_told():
    gate = Gate()
    assert run(gate, [("a", 1), ("b", 1), ("a", 2), ("a", 3)], calls=2) == [False, False, True, True]
    assert gate.calls[1:] == [[("a", 3)], [("b", 1)]]


def test_a_fast_slot_does_not_starve_a_slow_one():
    gate = Gate()
    run(gate, [("fast", 1), ("slow", 1), ("fast", 2), ("fast", 3)], calls=2)
    assert gate.calls[1:] == [[("fast", 3)], [("slow", 1)]]


def test_of_slots_that_are_filled_in_one_order_again_and_again_none_bears_all_the_losses():
    turn, done, taken = threading.Semaphore(0), threading.Semaphore(0), []

    def process(items):
        assert turn.acquire(timeout=5)
        taken.extend(slot for slot, _ in items)
        done.release()

    worker = LatestFrameWorker(process, on_error=lambda slots, error: None)
    worker.start()
    for step in range(80):
        # Six come while it does five.
        if step % 5 in (0, 2):
            for slot in ("front", "left", "rear"):
                worker.put(slot, step)
        turn.release()
        assert done.acquire(timeout=5)
    turn.release()
    worker.stop()
    counts = sorted(taken.count(slot) for slot in ("front", "left", "rear"))
    assert counts[-1] - counts[0] <= 2


def test_slots_that_wait_together_are_handed_over_together_up_to_the_limit():
    gate = Gate()
    run(gate, [("a", 1), ("b", 2), ("c", 3)], calls=2, max_items=2)
    assert gate.calls[1:] == [[("a", 1), ("b", 2)], [("c", 3)]]


def test_an_error_is_reported_with_its_slots_and_the_next_item_is_taken():
    errors, failed, done = [], threading.Event(), threading.Event()

    def process(items):
        if items[0][1] == "bad":
            raise ValueError("bad item")
        done.set()

    def note(slots, error):
        errors.append((slots, str(error)))
        failed.set()

    worker = LatestFrameWorker(process, note)
    worker.start()
    worker.put("a", "bad")
    assert failed.wait(5)
    worker.put("a", "good")
    assert done.wait(5)
    worker.stop()
    assert errors == [(["a"], "bad item")]


def test_stopping_lets_the_item_in_work_finish_and_tells_what_was_waiting():
    gate, waiting = Gate(), []
    worker = LatestFrameWorker(gate, on_error=lambda slots, error: None)
    worker.start()
    worker.put("a", 1)
    assert gate.entered.wait(5)
    stopper = threading.Thread(target=lambda: waiting.extend(worker.stop()))
    stopper.start()
    worker.put("a", 2)
    gate.open.set()
    stopper.join(5)
    assert not stopper.is_alive()
    assert gate.calls == [[("a", 1)]]
    assert waiting == ["a"]
