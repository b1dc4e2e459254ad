"""What was lost on the way is counted by the gaps in publishers' numbers, and never by anything else."""

from __future__ import annotations

import pytest

from dinov3_seg_ros.ros.endpoints.sequence import NewestFirst, SequenceGaps


def info(number, publisher=None):
    named = {} if publisher is None else {"publisher_gid": {"implementation_identifier": "any", "data": publisher}}
    return {"source_timestamp": 0, "publication_sequence_number": number, **named}


def lost(infos, publishers=1):
    gaps = SequenceGaps()
    return [gaps.before(each, publishers) for each in infos]


def test_a_gap_counts_lost_messages_and_the_first_has_no_gap():
    assert lost([info(7), info(8), info(12), info(13)]) == [0, 0, 3, 0]


def test_a_restarted_publisher_counts_from_its_own_first_message():
    assert lost([info(50), info(1), info(2), info(5)]) == [0, 0, 0, 2]
    assert lost([info(50, b"a"), info(60, b"b"), info(62, b"b")]) == [0, 0, 1]


def test_publishers_without_identity_are_not_counted_together():
    assert lost([info(1, b"a"), info(90, b"b"), info(2, b"a"), info(93, b"b")], publishers=2) == [0, 0, 0, 2]
    assert lost([info(1), info(90), info(2), info(93)], publishers=2) == [0, 0, 0, 0]


def test_numbers_of_two_publishers_without_identity_are_forgotten():
    gaps = SequenceGaps()
    assert [gaps.before(info(n), p) for n, p in ((1, 1), (2, 1), (90, 2), (91, 1), (93, 1))] == [0, 0, 0, 0, 1]


def test_many_publishers_do_not_fill_the_memory():
    gaps = SequenceGaps()
    for number in range(1000):
        gaps.before(info(1, b"%d" % number), 1)
    assert len(gaps._last) <= 16
    assert gaps.before(info(4, b"999"), 1) == 2


def test_a_middleware_without_numbers_counts_nothing():
    assert lost([info(None), info(None)]) == [0, 0]
    assert lost([{"source_timestamp": 0}, {"source_timestamp": 0}]) == [0, 0]


@pytest.mark.parametrize(
    ("infos", "stamps", "expected"),
    [
        # Of two publishers, each with numbers of its own.
        (
            [info(7, b"a"), info(8, b"a"), info(8, b"a"), info(3, b"b"), info(7, b"a"), info(9, b"a")],
            [(1, 0)] * 6,
            [True, True, False, True, False, True],
        ),
        # Their publisher is unknown: the time of sending counts.
        ([{"source_timestamp": t, "publication_sequence_number": 1} for t in (5, 5, 4, 6)], [(1, 0)] * 4, [1, 0, 0, 1]),
        # Nothing is known: the stamp counts.
        ([{}] * 4, [(1, 5), (1, 5), (0, 9), (2, 0)], [True, False, False, True]),
        # Nothing is known, and the driver leaves stamps empty: a message that comes twice is better than none.
        ([{}] * 3, [(0, 0)] * 3, [True, True, True]),
    ],
)
def test_a_message_that_came_by_another_subscription_is_no_newer(infos, stamps, expected):
    order = NewestFirst()
    found = []
    for each, stamp in zip(infos, stamps, strict=True):
        found.append(order.is_newer(each, stamp))
        if found[-1]:
            order.remember(each, stamp)
    assert found == [bool(each) for each in expected]
