"""Lanes: sequences that join and leave a running batch between chunks."""

import math
from itertools import pairwise

import numpy as np
import pytest

from service.worker.cost import (
    CALL_SECONDS,
    LONE_LIMITS,
    MAX_CALL_SECONDS,
    MIN_CALLS,
    ROWS_TO_DOUBLE,
    Cost,
)
from tests.support.scheduler import TASKS, FakeEngine, Scene

COST = Cost(call=100e-6, step=10e-6, row=10e-6)
LONG = 5000  # steps, of many chunks


def lanes(task="classify", cost=COST, **limits):
    limits = {"max_steps": LONG, "queue_steps": 10**6} | limits
    return Scene(FakeEngine(task), cost=cost, **limits)


def limit(rows, cost=COST):
    """The most steps of a tick that ends no lane."""
    seconds = min(CALL_SECONDS * (1 + rows / ROWS_TO_DOUBLE), MAX_CALL_SECONDS)
    budget = max(seconds, MIN_CALLS * cost.call)
    return max(1, int(budget / cost.seconds_per_step(rows)))


class TestTicks:
    @pytest.mark.parametrize("part", [0.02, 0.5, 1.0, LONE_LIMITS])
    def test_lone_sequence_of_one_tick(self, part):
        """A lone sequence of up to three ticks is stepped in one call."""
        made = lanes()
        length = int(part * limit(1))
        made.add((length, 1.0))
        made.run().assert_right()
        assert [call.lengths for call in made.engine.calls] == [[length]]

    @pytest.mark.parametrize("task", TASKS)
    def test_lone_sequence_of_many(self, task):
        """A longer one gets the answer that it would get in one call; it takes no
        more calls than its ticks, and none is longer than three."""
        made = lanes(task)
        made.add((LONG, 1.0))
        made.run().assert_right()
        made.assert_counted()
        steps = [call.steps for call in made.engine.calls]
        assert 10 < len(steps) <= -(-LONG // limit(1))
        assert max(steps) <= LONE_LIMITS * limit(1)

    def test_slow_calls_make_longer_ticks(self):
        """Where a call costs much, a sequence is cut into fewer."""
        counts = []
        for call in (1e-4, 1e-2):
            made = lanes(cost=Cost(call=call, step=10e-6, row=10e-6))
            made.add((LONG, 1.0))
            counts.append(len(made.run().engine.calls))
        assert counts[0] > 10 * counts[1]


class TestAdmission:
    @pytest.mark.parametrize("seed", range(5))
    def test_oldest_first(self, seed):
        """Of those that wait the oldest is admitted next, whatever its length, as
        soon as there is room; those under way are never put off for it."""
        lengths = np.random.default_rng(seed).integers(1, 300, 60).tolist()
        made = lanes(batch_rows=4)
        made.add(*[(length, float(age)) for age, length in enumerate(lengths)])
        made.run().assert_right()
        begun, under_way = 0, set()
        for call in made.engine.calls:
            new = [
                first
                for first, start in zip(call.firsts, call.starts, strict=True)
                if not start
            ]
            assert new == list(range(begun, begun + len(new)))
            assert under_way <= set(call.firsts)
            begun += len(new)
            assert len(call.firsts) == 4 or begun == 60
            under_way = {
                first
                for first, start, length in zip(
                    call.firsts, call.starts, call.lengths, strict=True
                )
                if start + length < lengths[int(first)]
            }

    def test_a_long_one_does_not_hold_up(self):
        """While one of thousands of steps is under way, each short one that comes is
        in the next call, and has its answer after it."""
        made = lanes()
        made.add((LONG, 0.0))
        made.tick()
        short = 0
        while LONG - made.steps_of(0.0) > limit(2):  # not where it ends itself
            length = 1 + 17 * short % limit(2)
            (number,) = made.add((length, 1.0 + short))
            made.tick()
            made.assert_right(number)
            short += 1
            assert 0.0 in made.engine.calls[-1].firsts
        assert short > 10
        made.run().assert_right()

    def test_many_short_ones_do_not_hold_up_a_long_one(self):
        """While more short ones come than there is room for, a long one that is under
        way is in every call."""
        made = lanes(batch_rows=4)
        made.add((1000, 0.0))
        while 0 not in made.told:
            made.add((3, 1.0), (1, 2.0), (2, 3.0), (1, 4.0), (3, 5.0))
            made.tick()
            assert 0.0 in made.engine.calls[-1].firsts
        made.run().assert_right()


class TestLongOnes:
    @pytest.mark.parametrize("task", TASKS)
    def test_stop_for_others(self, task):
        """Where long sequences have all lanes and more of them wait, a short one that
        comes is done long before them; all have their right answers."""
        made = lanes(task, batch_rows=4)
        made.add(*((2000, float(number)) for number in range(1, 9)))
        made.run(ticks=3)
        made.add((5, 20.0))
        made.run(ticks=10)
        assert set(made.told) == {8}
        made.run().assert_right()
        made.assert_counted()

    def test_have_half(self):
        """However many short ones wait, half of the lanes go on with long ones."""
        made = lanes(batch_rows=4)
        made.add(*((2000, float(number)) for number in range(1, 5)))
        for _ in range(20):
            made.add(*((5, 20.0 + number) for number in range(8)))
            made.tick()
            firsts = made.engine.calls[-1].firsts
            assert sum(first < 20 for first in firsts) >= 2
        assert sum(first >= 20 for first in firsts) == 2
        made.run().assert_right()


class TestShares:
    """Of the lanes, between callers."""

    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("length", [400, LONG])
    def test_newcomer(self, task, length):
        """Where one caller has all lanes and more that waits, the sequence of another
        is in the next call, and all have their right answers."""
        made = lanes(task, batch_rows=8)
        made.add(*((length, float(n)) for n in range(1, 17)), caller=("", 1))
        made.run(ticks=3)
        for turn in range(3):
            made.add((2, 20.0 + turn), caller=("", 2))
            made.tick()
            assert 20.0 + turn in made.engine.calls[-1].firsts
        made.run().assert_right()
        made.assert_counted()

    def test_newcomer_with_long_ones(self):
        """So is a long sequence of another, beside long ones."""
        made = lanes(batch_rows=8)
        made.add(*((LONG, float(n)) for n in range(1, 17)), caller=("", 1))
        made.run(ticks=3)
        made.add((LONG, 20.0), caller=("", 2))
        made.tick()
        assert 20.0 in made.engine.calls[-1].firsts
        made.run().assert_right()

    def test_many_of_one_request(self):
        """One with fewer lanes than others is given some again and again, while it
        waits with more, though no lane becomes free by itself."""
        made = lanes(batch_rows=8)
        made.add(*((500, float(n)) for n in range(1, 17)), caller=("", 1))
        made.run(ticks=3)
        numbers = made.add(*((1, 20.0 + n) for n in range(9)), caller=("", 2))
        made.run(ticks=8)
        assert {*numbers} == {*made.told}
        made.run().assert_right()

    @pytest.mark.parametrize("callers", [[("", 2), ("", 3)], [("a", 1), ("b", 1)]])
    def test_no_one_is_left_without(self, callers):
        """Of callers that all have much to do each is in every call, once it has come,
        and has no less than half the lanes of another."""
        made = lanes(batch_rows=12)
        for place, caller in enumerate([("", 1), *callers]):
            sequences = [(300, 100.0 * place + n) for n in range(40)]
            made.add(*sequences, caller=caller)
            made.run(ticks=5)
        for _ in range(30):
            made.tick()
            places = [int(first // 100) for first in made.engine.calls[-1].firsts]
            counts = [places.count(place) for place in range(3)]
            assert sum(counts) == 12
            assert 2 * (min(counts) + 1) >= max(counts) > 0
        made.run().assert_right()
        made.assert_counted()

    def test_owners(self):
        """An owner with many connections has no more lanes than one with one."""
        made = lanes(batch_rows=8)
        for connection in range(20):
            made.add((300, float(connection)), caller=("a", connection))
        made.run(ticks=2)
        made.add(*((300, 100.0 + n) for n in range(9)), caller=("b", 1))
        made.tick()
        firsts = made.engine.calls[-1].firsts
        assert sum(first >= 100 for first in firsts) >= 3
        made.run().assert_right()

    def test_stopped_seldom(self):
        """Nobody's sequence stops and goes on again and again: each once at most,
        where no one else comes."""
        made = lanes(batch_rows=8)
        for caller in (1, 2, 3):
            sequences = [(200, 100.0 * caller + n) for n in range(30)]
            made.add(*sequences, caller=("", caller))
            made.run(ticks=2)
        made.run().assert_right()
        stops = dict.fromkeys((first for _, first in made.jobs), 0)
        for call, after in pairwise(made.engine.calls):
            for first, start, length in zip(
                call.firsts, call.starts, call.lengths, strict=True
            ):
                if start + length < 200 and first not in after.firsts:
                    stops[first] += 1
        assert max(stops.values()) == 1

    def test_time_is_up_where_it_waits(self):
        """A stopped sequence is dropped as others are when its time is up."""
        made = lanes(batch_rows=2)
        made.add((LONG, 1.0), (LONG, 2.0), caller=("", 1))
        made.tick()
        made.add((LONG, 3.0), caller=("", 2))
        made.tick()
        (stopped,) = {1.0, 2.0} - {*made.engine.calls[-1].firsts}
        number = int(stopped) - 1
        made.scheduler.cancel(number)
        made.run()
        made.assert_failed(number, dropped=True)
        made.assert_right(*({0, 1, 2} - {number}))
        made.assert_counted()


class TestTimeIsUp:
    def test_dropped(self):
        """A sequence whose time is up is dropped between two chunks, or before its
        first; those that have time are answered."""
        made = lanes(batch_rows=2)
        made.add((LONG, 1.0), (LONG, 2.0), deadline=math.inf)
        made.tick()
        made.add((3, 3.0), deadline=0.0)
        made.scheduler._jobs[0].deadline = 0.0
        made.tick()
        made.assert_failed(0, dropped=True)
        made.run()
        made.assert_failed(2, dropped=True)
        made.assert_right(1)
        assert made.steps_of(3.0) == 0
        made.assert_counted()


class TestAlone:
    @pytest.mark.parametrize("kind", ["lanes", "whole"])
    @pytest.mark.parametrize("task", TASKS)
    def test_no_other(self, task, kind):
        """A sequence that must be alone shares its calls with no other, and is told
        before each; all have their right answers."""
        made = Scene(FakeEngine(task), kind=kind)
        made.add((700, 1.0), (5, 2.0))
        made.add((700, 3.0), (4, 4.0), isolated=True)
        trying = []
        while made.scheduler.busy:
            trying.append(made.scheduler.next_isolated)
            made.tick()
            firsts = made.engine.calls[-1].firsts
            if trying[-1] is not None:
                assert firsts == [made.jobs[trying[-1]][1]]
            else:
                assert not {3.0, 4.0} & set(firsts)
        made.assert_right()
        made.assert_counted()
        assert list(dict.fromkeys(trying)) == [2, 3, None]

    def test_in_vain(self):
        """It is dropped as others are."""
        made = lanes()
        made.add((700, 1.0), isolated=True)
        made.scheduler.cancel(0)
        made.tick()
        made.assert_failed(0, dropped=True)
        assert made.engine.calls == []


class TestCallersThatGo:
    def test_leave_between_chunks(self):
        """The lane of a caller that goes is not stepped any more, what it had left
        is settled at once, and nobody else is hurt."""
        made = lanes()
        made.add((LONG, 1.0), (LONG, 2.0))
        made.run(ticks=5)
        done = made.steps_of(2.0)
        made.scheduler.cancel(1)
        assert made.tick()
        made.assert_failed(1, dropped=True)
        assert made.ticks[-1].settled == LONG - done + made.ticks[-1].useful
        made.run().assert_right(0)
        made.assert_counted()
        assert 0 < made.steps_of(2.0) == done < LONG

    def test_make_room(self):
        """A lane that is left is taken by the oldest that waits, in the same tick."""
        made = lanes(batch_rows=1)
        made.add((LONG, 1.0), (LONG, 2.0))
        made.tick()
        assert made.engine.calls[-1].firsts == [1.0]
        made.scheduler.cancel(0)
        made.tick()
        assert made.engine.calls[-1].firsts == [2.0]
        made.run().assert_right(1)


class TestFaults:
    @pytest.mark.parametrize("task", TASKS)
    def test_in_mid_sequence(self, task):
        """A lane that the engine fails on in mid-sequence fails alone; the others, in
        mid-sequence too, go on to the right answers."""
        made = lanes(task)

        def hook(call, answer):
            for first, start in zip(call.firsts, call.starts, strict=True):
                if first == 3 and start > 100:
                    raise RuntimeError("poison")

        made.engine.hook = hook
        made.add(*[(500 + 37 * number, float(number)) for number in range(8)])
        made.run().assert_counted()
        made.assert_failed(3)
        made.assert_right(*(set(range(8)) - {3}))
        joined = [c for c in made.engine.calls if min(c.starts) > 100]
        assert max(len(call.firsts) for call in joined) == 8

    def test_not_finite_in_mid_sequence(self):
        """Where each step is labelled, one without a finite answer in mid-sequence
        makes the whole no answer."""
        made = lanes("label")

        def hook(call, answer):
            answer[0, 1] = np.nan if call.starts[0] == 0 else answer[0, 1]
            return answer

        made.engine.hook = hook
        made.add((1000, 1.0))
        made.run()
        made.assert_failed(0)
        assert len(made.engine.calls) > 2
