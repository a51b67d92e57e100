"""Batches of whole sequences, for networks that read them in both directions."""

import numpy as np
import pytest

from service.callers.fair_queue import QUANTUM
from tests.support.scheduler import Scene


def batches(lengths, **limits):
    """The engine's calls for sequences that all wait when it becomes free."""
    made = Scene(kind="whole", **limits)
    made.add(*[(length, float(number)) for number, length in enumerate(lengths)])
    made.run().assert_right()
    made.assert_counted()
    return made.engine.calls


def lengths_of(calls):
    return [call.lengths for call in calls]


def test_like_lengths():
    """Of short and long ones that wait, each batch holds only one kind."""
    lengths = [5, 900, 5, 905, 6, 910, 4, 900]
    calls = lengths_of(batches(lengths, batch_rows=4, batch_steps=4096))
    assert sorted(map(sorted, calls)) == [[4, 5, 5, 6], [900, 900, 905, 910]]


def test_rows():
    """No batch has more rows than are set, and none is smaller than it must."""
    calls = batches([10] * 20, batch_rows=8)
    assert [len(call.lengths) for call in calls] == [8, 8, 4]


@pytest.mark.parametrize("seed", range(5))
def test_steps(seed):
    """No batch has more padded steps than are set, unless a single sequence does,
    and all are stepped once."""
    lengths = np.random.default_rng(seed).integers(1, 400, 120).tolist()
    calls = lengths_of(batches(lengths, batch_rows=16, batch_steps=500))
    for call in calls:
        assert len(call) <= 16
        assert len(call) == 1 or max(call) * len(call) <= 500
    assert sorted(length for call in calls for length in call) == sorted(lengths)


def test_one_over_the_budget():
    """A sequence that is longer than a batch may be is stepped alone."""
    calls = batches([1000, 10, 10], batch_steps=100)
    assert lengths_of(calls) == [[1000], [10, 10]]


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 60), (1, 60), (2, 60), (3, 1300), (4, 1300)]
)
def test_oldest_first(seed, count):
    """The oldest that waits is in the next batch, whatever its length: none is
    starved, also where more wait than are looked at together."""
    lengths = np.random.default_rng(seed).integers(1, 300, count).tolist()
    waiting = set(range(count))
    for call in batches(lengths, batch_rows=4):
        assert min(waiting) in call.firsts
        waiting -= set(map(int, call.firsts))
    assert not waiting


def test_newcomer():
    """However many sequences another caller has waiting, one that comes is in the next
    batch but one, whatever its length."""
    made = Scene(kind="whole", batch_rows=4)
    made.add(*[(50, float(number)) for number in range(1000)], caller=("", 1))
    made.run(ticks=3)
    for turn, length in enumerate([1, 50, 900]):
        made.add((length, 2000.0 + turn), caller=("", 2))
        made.run(ticks=2)
        firsts = made.engine.calls[-1].firsts + made.engine.calls[-2].firsts
        assert 2000.0 + turn in firsts
    made.run().assert_right()


def test_neighbours_of_all_callers():
    """Those that share a batch with the first are of whomever, and each is charged for
    its own: callers get as much as others."""
    made = Scene(kind="whole", batch_rows=8)
    for caller in (1, 2, 3):
        lengths = [10 + number % 40 for number in range(300)]
        firsts = [1000.0 * caller + number for number in range(300)]
        made.add(*zip(lengths, firsts, strict=True), caller=("", caller))
    made.run(ticks=60)
    steps = dict.fromkeys((1, 2, 3), 0)
    for call in made.engine.calls:
        for length, first in zip(call.lengths, call.firsts, strict=True):
            steps[first // 1000] += length
    assert max(steps.values()) - min(steps.values()) <= 2 * QUANTUM
    made.run().assert_right()


def test_gone_beyond_the_window():
    """Those that have gone are settled, however many there are and wherever."""
    made = Scene(kind="whole")
    made.add(*[(2, float(number)) for number in range(2000)])
    gone = [number for number in range(2000) if number % 3]
    for number in gone:
        made.scheduler.cancel(number)
    made.run().assert_counted()
    made.assert_right(*(set(range(2000)) - set(gone)))
