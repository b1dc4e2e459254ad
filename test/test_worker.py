"""The worker takes the newest item of each slot, fairly, and survives what goes wrong."""

from __future__ import annotations

import threading
import time

import pytest

from dinov3_seg_ros.ros.cameras.worker import LatestFrameWorker


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
        return self._finish

    def _finish(self):
        self.finished.release()
        return True

    def wait(self, calls):
        for _ in range(calls):
            assert self.finished.acquire(timeout=5)


def end(worker):
    """Stop a worker and wait for its end; the slots whose items were dropped."""
    dropped = worker.stop()
    assert worker.join(5)
    return dropped


def run(gate, puts, calls, max_items=1):
    """Put one item, and ``puts`` while it is in work, for ``calls`` more calls; which of the puts replaced another."""
    worker = LatestFrameWorker(gate, on_error=lambda slots, error: None, max_items=max_items)
    worker.start()
    worker.put("first", 0)
    assert gate.entered.wait(5)
    replaced = [worker.put(slot, item) for slot, item in puts]
    gate.open.set()
    gate.wait(1 + calls)
    assert end(worker) == []
    return replaced


def test_only_the_newest_item_is_taken_and_put_tells_of_the_replaced():
    gate = Gate()
    assert run(gate, [("a", 1), ("b", 1), ("a", 2), ("a", 3)], calls=2) == [False, False, True, True]
    assert gate.calls[1:] == [[("a", 3)], [("b", 1)]]


def test_a_fast_slot_does_not_starve_a_slow_one():
    gate = Gate()
    run(gate, [("fast", 1), ("slow", 1), ("fast", 2), ("fast", 3)], calls=2)
    assert gate.calls[1:] == [[("fast", 3)], [("slow", 1)]]


def test_slots_always_filled_in_one_order_share_the_drops():
    turn, done, taken = threading.Semaphore(0), threading.Semaphore(0), []

    def process(items):
        assert turn.acquire(timeout=5)
        taken.extend(slot for slot, _ in items)
        return done.release

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
    end(worker)
    counts = sorted(taken.count(slot) for slot in ("front", "left", "rear"))
    assert counts[-1] - counts[0] <= 2


def test_waiting_slots_are_handed_over_together_up_to_the_limit():
    gate = Gate()
    run(gate, [("a", 1), ("b", 2), ("c", 3)], calls=2, max_items=2)
    assert gate.calls[1:] == [[("a", 1), ("b", 2)], [("c", 3)]]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("when", ["started", "finished"])
@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_error_is_reported_with_its_slots_and_the_next_item_is_taken(overlap, when, kind):
    errors, done = [], threading.Semaphore(0)

    def start(items):
        def finish():
            if items[0][1] == "bad":
                raise kind("bad item")
            done.release()

        if when == "started":
            finish()
            return lambda: None
        return finish

    def note(slots, error):
        errors.append((slots, str(error)))
        done.release()
        raise RuntimeError("a report that fails")

    worker = LatestFrameWorker(start, note, overlap=overlap)
    worker.start()
    for item in ("bad", "good", "bad", "good", "bad", "good"):  # more than may be under way
        worker.put("a", item)
        assert done.acquire(timeout=5)
    end(worker)
    assert errors == 3 * [(["a"], "bad item")]


class Turns:
    """Notes what is started and finished; nothing is finished before it is let."""

    def __init__(self):
        self.started, self.finished = [], []
        self.step, self.let = threading.Condition(), threading.Semaphore(0)

    def start(self, items):
        self._note(self.started, items)
        return lambda: self._finish(items)

    def _finish(self, items):
        assert self.let.acquire(timeout=5)
        self._note(self.finished, items)

    def _note(self, notes, items):
        with self.step:
            notes.extend(item for _, item in items)
            self.step.notify_all()

    def wait(self, started, finished):
        with self.step:
            assert self.step.wait_for(lambda: (len(self.started), len(self.finished)) >= (started, finished), 5)


@pytest.mark.parametrize(("overlap", "under_way"), [(False, 1), (True, 2)])
def test_with_overlap_two_items_are_in_flight_and_no_more(overlap, under_way):
    turns = Turns()
    worker = LatestFrameWorker(turns.start, on_error=lambda slots, error: None, overlap=overlap)
    worker.start()
    for item in range(under_way):
        worker.put("a", item)
        turns.wait(started=item + 1, finished=0)
    # What comes now is taken only once there is room, and then it is the newest.
    for item in ("late", "later", "newest"):
        worker.put("a", item)
    time.sleep(0.05)
    assert turns.started == list(range(under_way))
    turns.let.release()
    turns.wait(started=under_way + 1, finished=1)
    assert turns.started[-1] == "newest"
    for _ in range(under_way):
        turns.let.release()
    turns.wait(started=under_way + 1, finished=under_way + 1)
    end(worker)
    assert turns.finished == turns.started


def test_an_item_that_never_ends_is_not_waited_for():
    may_end, has_begun = threading.Event(), threading.Event()

    def start(items):
        has_begun.set()
        return may_end.wait

    worker = LatestFrameWorker(start, on_error=lambda slots, error: None)
    worker.start()
    worker.put("a", 1)
    assert has_begun.wait(5)
    worker.stop()
    assert not worker.join(0.1)
    may_end.set()
    assert worker.join(5)


def test_stopping_finishes_all_overlapping_items():
    turns, waiting = Turns(), []
    worker = LatestFrameWorker(turns.start, on_error=lambda slots, error: None, overlap=True)
    worker.start()
    for item in range(2):
        worker.put("a", item)
        turns.wait(started=item + 1, finished=0)
    worker.put("a", 2)
    stopper = threading.Thread(target=lambda: waiting.extend(end(worker)))
    stopper.start()
    deadline = time.monotonic() + 5
    while not worker._stopping:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    turns.let.release(2)
    stopper.join(5)
    assert not stopper.is_alive()
    assert turns.finished == [0, 1]
    assert waiting == ["a"]


def test_stopping_finishes_the_current_item_and_names_what_waited():
    gate, waiting = Gate(), []
    worker = LatestFrameWorker(gate, on_error=lambda slots, error: None)
    worker.start()
    worker.put("a", 1)
    assert gate.entered.wait(5)
    worker.put("a", 2)
    stopper = threading.Thread(target=lambda: waiting.extend(end(worker)))
    stopper.start()
    deadline = time.monotonic() + 5
    while not worker._stopping:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert worker.put("a", 3), "it is dropped itself"
    gate.open.set()
    stopper.join(5)
    assert not stopper.is_alive()
    assert gate.calls == [[("a", 1)]]
    assert waiting == ["a"]


@pytest.mark.parametrize("overlap", [False, True])
def test_the_pace_tells_how_long_the_oldest_turn_takes_and_the_last_took(overlap):
    gate = Gate()
    worker = LatestFrameWorker(gate, on_error=lambda slots, error: None, overlap=overlap)
    worker.start()
    assert worker.pace() == (0.0, 0.0)
    began = time.monotonic()
    worker.put("a", 0)
    assert gate.entered.wait(5)
    time.sleep(0.05)
    assert 0.05 <= worker.pace().oldest_s <= time.monotonic() - began
    gate.open.set()
    gate.wait(1)
    end(worker)
    assert worker.pace().oldest_s == 0.0
    assert 0.05 <= worker.pace().expected_s <= time.monotonic() - began


def test_a_turn_that_fails_is_over_for_the_pace():
    failed = threading.Event()

    def fail(items):
        raise ZeroDivisionError

    worker = LatestFrameWorker(fail, on_error=lambda slots, error: failed.set())
    worker.start()
    worker.put("a", 0)
    assert failed.wait(5)
    end(worker)
    assert worker.pace().oldest_s == 0.0


class CountedWorker(LatestFrameWorker):
    """Tells of the end of each turn."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.done = threading.Semaphore(0)

    def _leave(self, *turn):
        super()._leave(*turn)
        self.done.release()

    def pace_after(self, item):
        """How long the next turn may be expected to take, once the turn of an item is over."""
        self.put("a", item)
        assert self.done.acquire(timeout=5)
        return self.pace().expected_s


def sleeping_worker(**options):
    """A worker whose turns end after as many seconds as their first item says."""
    worker = CountedWorker(
        lambda items: lambda: time.sleep(items[0][1]) or 1, on_error=lambda slots, error: None, **options
    )
    worker.start()
    return worker


def test_the_pace_is_that_of_one_item_where_several_are_computed_together():
    worker = CountedWorker(
        lambda items: lambda: time.sleep(0.02 * len(items)) or len(items), lambda slots, error: None, max_items=4
    )
    for slot in "abcd":
        worker.put(slot, 0)
    worker.start()
    assert worker.done.acquire(timeout=5)
    end(worker)
    assert 0.02 <= worker.pace().expected_s < 0.08


@pytest.mark.parametrize("overlap", [False, True])
def test_a_turn_that_hung_is_no_measure_for_the_next_one(overlap):
    worker = sleeping_worker(overlap=overlap)
    paces = [worker.pace_after(seconds) for seconds in (0.01, 0.5, 0.5)]
    end(worker)
    assert paces[1] < 0.5 <= paces[2], "from then on, turns take as long"


def test_a_turn_that_waited_while_another_hung_counts_from_the_end_of_that():
    worker = sleeping_worker(overlap=True)
    worker.pace_after(0.01)
    worker.put("a", 1.0)
    time.sleep(0.1)
    worker.put("a", 0.3)
    assert worker.done.acquire(timeout=5)
    assert worker.pace().oldest_s < 0.3
    assert worker.done.acquire(timeout=5)
    assert worker.pace().expected_s < 1.0
    end(worker)


def test_turns_that_compute_nothing_do_not_lower_the_pace():
    finishes = iter([lambda: True, lambda: False, lambda: 1 / 0])

    def start(items):
        finish = next(finishes, None)
        if finish is None:
            raise ZeroDivisionError
        time.sleep(0.1 if items[0][1] == "slow" else 0.0)
        return finish

    worker = CountedWorker(start, on_error=lambda slots, error: None, expected_s=50.0)
    worker.start()
    assert worker.pace().expected_s == 50.0, "before the first turn"
    paces = [worker.pace_after(item) for item in ("slow", "skipped", "failed at the end", "failed at the start")]
    end(worker)
    assert 0.1 <= paces[0] < 50.0
    assert all(pace >= paces[0] for pace in paces)


def test_turns_that_compute_nothing_and_always_take_long_count():
    def start(items):
        time.sleep(0.02)
        return lambda: 0

    worker = CountedWorker(start, on_error=lambda slots, error: None)
    worker.start()
    paces = [worker.pace_after("skipped") for _ in range(2)]
    end(worker)
    assert all(pace >= 0.02 for pace in paces)
