"""Batches of whole sequences, for networks that read them in both directions."""

import numpy as np

from service.callers.fair_queue import QUANTUM
from tests.support.scheduler import SchedulerHarness


def run(lengths, **limits):
    """Return the engine's calls for sequences that all wait."""
    harness = SchedulerHarness(kind="whole", **limits)
    harness.add(*[(length, float(number)) for number, length in enumerate(lengths)])
    harness.run().assert_right()
    harness.assert_settled()
    return harness.engine.calls


def test_similar_lengths():
    """Of short and long sequences, each batch has only one kind."""
    lengths = [5, 900, 5, 905, 6, 910, 4, 900]
    calls = run(lengths, batch_rows=4, batch_steps=4096)
    batches = sorted(sorted(call.lengths) for call in calls)
    assert batches == [[4, 5, 5, 6], [900, 900, 905, 910]]


def test_padding():
    """Sequences that all fit in a batch are divided where padding would cost more than
    another call."""
    calls = run([10, 40] * 4, batch_rows=8)
    assert [call.lengths for call in calls] == [[10] * 4, [40] * 4]
    calls = run([38, 40] * 4, batch_rows=8)
    assert len(calls) == 1


def test_limits():
    """Batches are as large as the limits of rows and padded steps allow. A sequence
    beyond the limit is computed alone."""
    calls = run([10] * 20, batch_rows=8)
    assert [len(call.lengths) for call in calls] == [8, 8, 4]
    calls = run([1000, 10, 10], batch_steps=100)
    assert [call.lengths for call in calls] == [[1000], [10, 10]]
    for seed in range(3):
        lengths = np.random.default_rng(seed).integers(1, 400, 120).tolist()
        calls = run(lengths, batch_rows=16, batch_steps=500)
        for call in calls:
            rows = len(call.lengths)
            assert rows <= 16
            assert rows == 1 or max(call.lengths) * rows <= 500
        assert sorted(n for call in calls for n in call.lengths) == sorted(lengths)


def test_oldest_first():
    """The oldest waiting sequence is in the next batch, whatever its length, even if
    more wait than are looked at together."""
    for seed, count in ((0, 60), (1, 60), (2, 1300)):
        lengths = np.random.default_rng(seed).integers(1, 300, count).tolist()
        waiting = set(range(count))
        for call in run(lengths, batch_rows=4):
            assert min(waiting) in call.firsts
            waiting -= set(map(int, call.firsts))
        assert not waiting


def test_new_caller():
    """However many sequences another caller has waiting, a new caller's is in one of
    the next two batches, whatever its length."""
    harness = SchedulerHarness(kind="whole", batch_rows=4)
    harness.add(*[(50, float(number)) for number in range(1000)], caller=("", 1))
    harness.run(batches=3)
    for number, length in enumerate([1, 50, 900]):
        harness.add((length, 2000.0 + number), caller=("", 2))
        harness.run(batches=2)
        calls = harness.engine.calls
        assert 2000.0 + number in calls[-1].firsts + calls[-2].firsts
    harness.run().assert_right()


def test_neighbours_of_all_callers():
    """A batch has sequences of several callers, and each caller is charged for its
    own: all get equal shares."""
    harness = SchedulerHarness(kind="whole", batch_rows=8)
    for caller in (1, 2, 3):
        lengths = [10 + number % 40 for number in range(300)]
        firsts = [1000.0 * caller + number for number in range(300)]
        harness.add(*zip(lengths, firsts, strict=True), caller=("", caller))
    harness.run(batches=60)
    steps = dict.fromkeys((1, 2, 3), 0)
    for call in harness.engine.calls:
        for length, first in zip(call.lengths, call.firsts, strict=True):
            steps[first // 1000] += length
    assert max(steps.values()) - min(steps.values()) <= 2 * QUANTUM
    harness.run().assert_right()


def test_cancelled_beyond_the_window():
    """Cancelled sequences are settled, however many there are and wherever."""
    harness = SchedulerHarness(kind="whole")
    harness.add(*[(2, float(number)) for number in range(2000)])
    cancelled = [number for number in range(2000) if number % 3]
    for number in cancelled:
        harness.scheduler.cancel(number)
    harness.run().assert_settled()
    harness.assert_right(*(set(range(2000)) - set(cancelled)))
