"""Lanes: sequences that join and leave a running batch between engine calls."""

from itertools import pairwise, product

import numpy as np

from service.worker.cost import LONE_LIMITS, Cost
from tests.service.worker.test_cost import max_steps
from tests.support.scheduler import TASKS, FakeEngine, SchedulerHarness

COST = Cost(call=100e-6, step=10e-6, row=10e-6)
LONG = 5000  # steps, of many calls


def lanes(task="classify", cost=COST, **limits):
    limits = {"max_steps": LONG, "queue_steps": 10**6} | limits
    return SchedulerHarness(FakeEngine(task), cost=cost, **limits)


def limit(rows):
    """The most steps of a call within which no lane ends."""
    return max_steps([10**6] * rows, COST)


class TestCalls:
    def test_short_sequence_alone(self):
        """A sequence alone of up to LONE_LIMITS calls is computed in one."""
        for share in (0.02, 1.0, LONE_LIMITS):
            harness = lanes()
            length = int(share * limit(1))
            harness.add((length, 1.0))
            harness.run().assert_right()
            assert [call.lengths for call in harness.engine.calls] == [[length]]

    def test_long_sequence_alone(self):
        """A longer one is computed in several calls with the same answer."""
        for task in TASKS:
            harness = lanes(task)
            harness.add((LONG, 1.0))
            harness.run().assert_right()
            harness.assert_settled()
            steps = [call.steps for call in harness.engine.calls]
            assert 10 < len(steps) <= -(-LONG // limit(1))
            assert max(steps) <= LONE_LIMITS * limit(1)

    def test_expensive_calls(self):
        """If calls cost much, there are fewer of them."""
        counts = []
        for call in (1e-4, 1e-2):
            harness = lanes(cost=Cost(call=call, step=10e-6, row=10e-6))
            harness.add((LONG, 1.0))
            counts.append(len(harness.run().engine.calls))
        assert counts[0] > 10 * counts[1]


class TestOrder:
    def test_oldest_first(self):
        """The oldest waiting sequence, whatever its length, gets the next free lane,
        and running sequences keep theirs."""
        for seed in range(2):
            lengths = np.random.default_rng(seed).integers(1, 300, 60).tolist()
            harness = lanes(batch_rows=4)
            harness.add(*[(length, float(n)) for n, length in enumerate(lengths)])
            harness.run().assert_right()
            started, running = 0, set()
            for call in harness.engine.calls:
                rows = list(zip(call.firsts, call.starts, call.lengths, strict=True))
                new = [first for first, start, _ in rows if not start]
                assert new == list(range(started, started + len(new)))
                assert running <= set(call.firsts)
                started += len(new)
                assert len(rows) == 4 or started == 60
                running = {f for f, start, n in rows if start + n < lengths[int(f)]}

    def test_long_sequence_delays_no_short_one(self):
        """While a long sequence runs, each short one is in the next call, and is
        answered after it."""
        harness = lanes()
        harness.add((LONG, 0.0))
        harness.run_batch()
        short = 0
        while LONG - harness.steps_of(0.0) > limit(2):  # until it ends itself
            (number,) = harness.add((1 + 17 * short % limit(2), 1.0 + short))
            harness.run_batch()
            harness.assert_right(number)
            short += 1
            assert 0.0 in harness.engine.calls[-1].firsts
        assert short > 10
        harness.run().assert_right()

    def test_short_sequences_delay_no_long_one(self):
        """While more short sequences come than there are lanes, a long one that runs
        is in every call."""
        harness = lanes(batch_rows=4)
        harness.add((1000, 0.0))
        while 0 not in harness.results:
            harness.add((3, 1.0), (1, 2.0), (2, 3.0), (1, 4.0), (3, 5.0))
            harness.run_batch()
            assert 0.0 in harness.engine.calls[-1].firsts
        harness.run().assert_right()


class TestLongSequences:
    def test_preempted(self):
        """If long sequences have all lanes and more of them wait, a short one is done
        long before them, and all have the right answers."""
        for task in TASKS:
            harness = lanes(task, batch_rows=4)
            harness.add(*((2000, float(number)) for number in range(1, 9)))
            harness.run(batches=3)
            harness.add((5, 20.0))
            harness.run(batches=10)
            assert set(harness.results) == {8}
            harness.run().assert_right()
            harness.assert_settled()

    def test_keep_half_of_the_lanes(self):
        """However many short sequences wait, long ones keep half of the lanes."""
        harness = lanes(batch_rows=4)
        harness.add(*((2000, float(number)) for number in range(1, 5)))
        for _ in range(20):
            harness.add(*((5, 20.0 + number) for number in range(8)))
            harness.run_batch()
            firsts = harness.engine.calls[-1].firsts
            assert sum(first < 20 for first in firsts) >= 2
        assert sum(first >= 20 for first in firsts) == 2
        harness.run().assert_right()


class TestCallers:
    def test_new_caller(self):
        """If one caller has all lanes and more waits, another's sequence, short or
        long, is in the next call."""
        for task, length, new in product(TASKS, (400, LONG), (2, LONG)):
            harness = lanes(task, batch_rows=8)
            harness.add(*((length, float(n)) for n in range(1, 17)), caller=("", 1))
            harness.run(batches=3)
            for number in range(3 if new == 2 else 1):
                harness.add((new, 20.0 + number), caller=("", 2))
                harness.run_batch()
                assert 20.0 + number in harness.engine.calls[-1].firsts
            harness.run().assert_right()
            harness.assert_settled()

    def test_many_sequences(self):
        """A caller with fewer lanes gets more again and again, though no lane becomes
        free by itself."""
        harness = lanes(batch_rows=8)
        harness.add(*((500, float(n)) for n in range(1, 17)), caller=("", 1))
        harness.run(batches=3)
        numbers = harness.add(*((1, 20.0 + n) for n in range(9)), caller=("", 2))
        harness.run(batches=8)
        assert {*numbers} == {*harness.results}
        harness.run().assert_right()

    def test_shares(self):
        """Of callers with many sequences, each is in every call, and none has less
        than half of another's lanes."""
        for others in ([("", 2), ("", 3)], [("a", 1), ("b", 1)]):
            harness = lanes(batch_rows=12)
            for place, caller in enumerate([("", 1), *others]):
                sequences = [(300, 100.0 * place + n) for n in range(40)]
                harness.add(*sequences, caller=caller)
                harness.run(batches=5)
            for _ in range(30):
                harness.run_batch()
                firsts = harness.engine.calls[-1].firsts
                places = [int(first // 100) for first in firsts]
                counts = [places.count(place) for place in range(3)]
                assert sum(counts) == 12
                assert 2 * (min(counts) + 1) >= max(counts) > 0
            harness.run().assert_right()
            harness.assert_settled()

    def test_owners(self):
        """An owner with many connections gets no more lanes than one with one."""
        harness = lanes(batch_rows=8)
        for connection in range(20):
            harness.add((300, float(connection)), caller=("a", connection))
        harness.run(batches=2)
        harness.add(*((300, 100.0 + n) for n in range(9)), caller=("b", 1))
        harness.run_batch()
        firsts = harness.engine.calls[-1].firsts
        assert sum(first >= 100 for first in firsts) >= 3
        harness.run().assert_right()

    def test_long_sequences_take_no_lanes_of_short_ones(self):
        """If long sequences have half of the lanes, a new caller's long sequence waits
        for a lane rather than preempt a short one."""
        harness = lanes(batch_rows=7)
        harness.add(*((LONG, float(n)) for n in range(3)), caller=("", 1))
        harness.add(*((450, 10.0 + n) for n in range(4)), caller=("", 2))
        harness.run_batch()
        harness.add((LONG, 20.0), caller=("", 3))
        harness.run_batch()
        firsts = harness.engine.calls[-1].firsts
        assert sorted(firsts) == [0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 13.0]
        while harness.steps_of(10.0) < 450:
            harness.run_batch()
        harness.run_batch()
        assert 20.0 in harness.engine.calls[-1].firsts
        harness.run().assert_right()
        harness.assert_settled()

    def test_preempted_at_most_once(self):
        """No sequence is preempted again and again."""
        harness = lanes(batch_rows=8)
        for caller in (1, 2, 3):
            sequences = [(200, 100.0 * caller + n) for n in range(30)]
            harness.add(*sequences, caller=("", caller))
            harness.run(batches=2)
        harness.run().assert_right()
        preemptions = dict.fromkeys((first for _, first in harness.jobs), 0)
        for call, next_call in pairwise(harness.engine.calls):
            for first, start, length in zip(
                call.firsts, call.starts, call.lengths, strict=True
            ):
                if start + length < 200 and first not in next_call.firsts:
                    preemptions[first] += 1
        assert max(preemptions.values()) == 1

    def test_cancelled_while_preempted(self):
        harness = lanes(batch_rows=2)
        harness.add((LONG, 1.0), (LONG, 2.0), caller=("", 1))
        harness.run_batch()
        harness.add((LONG, 3.0), caller=("", 2))
        harness.run_batch()
        (preempted,) = {1.0, 2.0} - {*harness.engine.calls[-1].firsts}
        number = int(preempted) - 1
        harness.scheduler.cancel(number)
        harness.run()
        harness.assert_failed(number, dropped=True)
        harness.assert_right(*({0, 1, 2} - {number}))
        harness.assert_settled()


def test_deadlines():
    """A sequence is dropped when its deadline has passed, before its first call or
    between two calls; others are answered."""
    harness = lanes(batch_rows=2)
    harness.add((LONG, 1.0), (LONG, 2.0))
    harness.run_batch()
    harness.add((3, 3.0), deadline=0.0)
    harness.scheduler._jobs[0].deadline = 0.0
    harness.run_batch()
    harness.assert_failed(0, dropped=True)
    harness.run()
    harness.assert_failed(2, dropped=True)
    harness.assert_right(1)
    assert harness.steps_of(3.0) == 0
    harness.assert_settled()


class TestIsolated:
    def test_no_neighbours(self):
        """An isolated sequence shares its calls with no other, and is announced before
        each; all have the right answers."""
        for task, kind in product(TASKS, ("lanes", "whole")):
            harness = SchedulerHarness(FakeEngine(task), kind=kind)
            harness.add((700, 1.0), (5, 2.0))
            harness.add((700, 3.0), (4, 4.0), isolated=True)
            announced = []
            while harness.scheduler.busy:
                announced.append(harness.scheduler.next_isolated)
                harness.run_batch()
                firsts = harness.engine.calls[-1].firsts
                if announced[-1] is not None:
                    assert firsts == [harness.jobs[announced[-1]][1]]
                else:
                    assert not {3.0, 4.0} & set(firsts)
            harness.assert_right()
            harness.assert_settled()
            assert list(dict.fromkeys(announced)) == [2, 3, None]

    def test_cancelled(self):
        harness = lanes()
        harness.add((700, 1.0), isolated=True)
        harness.scheduler.cancel(0)
        harness.run_batch()
        harness.assert_failed(0, dropped=True)
        assert harness.engine.calls == []


class TestCancel:
    def test_between_calls(self):
        """A cancelled sequence is not computed any further, and its remaining steps
        are settled at once."""
        harness = lanes()
        harness.add((LONG, 1.0), (LONG, 2.0))
        harness.run(batches=5)
        computed = harness.steps_of(2.0)
        harness.scheduler.cancel(1)
        assert harness.run_batch()
        harness.assert_failed(1, dropped=True)
        report = harness.reports[-1]
        assert report.settled == LONG - computed + report.useful
        harness.run().assert_right(0)
        harness.assert_settled()
        assert 0 < harness.steps_of(2.0) == computed < LONG

    def test_caller_is_not_charged(self):
        """A caller is not charged for a job that is cancelled while it waits."""
        harness = lanes(batch_rows=1)
        harness.add((50, 0.0), caller=("", 3))
        (cancelled,) = harness.add((400, 1.0), caller=("", 1))
        harness.add((10, 2.0), caller=("", 1))
        harness.add((10, 3.0), (10, 4.0), (10, 5.0), caller=("", 2))
        harness.scheduler.cancel(cancelled)
        harness.run()
        order = [call.firsts[0] for call in harness.engine.calls]
        assert order.index(2.0) < order.index(4.0)

    def test_frees_the_lane(self):
        """The lane goes to the oldest waiting sequence, in the same call."""
        harness = lanes(batch_rows=1)
        harness.add((LONG, 1.0), (LONG, 2.0))
        harness.run_batch()
        assert harness.engine.calls[-1].firsts == [1.0]
        harness.scheduler.cancel(0)
        harness.run_batch()
        assert harness.engine.calls[-1].firsts == [2.0]
        harness.run().assert_right(1)


def test_label_that_is_not_finite():
    """One label that is not finite fails the whole sequence."""
    harness = lanes("label")

    def hook(call, answer):
        answer[0, 1] = np.nan if call.starts[0] == 0 else answer[0, 1]
        return answer

    harness.engine.hook = hook
    harness.add((1000, 1.0))
    harness.run()
    harness.assert_failed(0)
    assert len(harness.engine.calls) > 2
