"""The scheduler, however it batches: each job gets its own answer, and no failure
reaches another's."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_fixtures import KINDS, TASKS, FakeEngine, Scene, frames, poisoned

from service import errors, scheduler
from service.cost import Cost

# Sequences, each with the tick before which it comes.
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 12), st.one_of(st.integers(1, 30), st.integers(1, 900))),
    min_size=1,
    max_size=24,
)
SMALL = st.floats(-6, -3).map(lambda power: 10**power)
COSTS = st.builds(Cost, call=SMALL, step=SMALL, row=SMALL)


@pytest.fixture(params=KINDS)
def kind(request):
    """A network that is stepped in lanes, or whole."""
    return request.param


def arrive(made, arrivals, each=lambda made: None):
    """Jobs come when they do, between the ticks, until all is done."""
    tick = 0
    while made.scheduler.busy or len(made.jobs) < len(arrivals):
        while len(made.jobs) < len(arrivals) and arrivals[len(made.jobs)][0] <= tick:
            number = len(made.jobs)
            made.add((arrivals[number][1], float(number + 1)))
        each(made)
        if made.scheduler.busy:
            made.tick()
        tick += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
class TestAnswers:
    def test_lone(self, kind, task):
        """A lone job is answered though no other ever comes, in one tick."""
        made = Scene(FakeEngine(task), kind=kind)
        made.add((5, 3.0))
        assert made.scheduler.busy
        made.tick()
        made.assert_right()
        made.assert_counted()
        assert [call.lengths for call in made.engine.calls] == [[5]]

    @settings(max_examples=150)
    @given(
        arrivals=ARRIVALS.map(sorted),
        cost=COSTS,
        rows=st.integers(1, 8),
        steps=st.integers(1, 1500),
    )
    def test_whenever_they_come(self, kind, task, arrivals, cost, rows, steps):
        """Sequences of any lengths that come at any time each get their own answer,
        each of their steps is computed once, no call has more rows than are set, and
        what is told is what was computed."""
        limits = {"batch_rows": rows, "batch_steps": steps}
        made = Scene(FakeEngine(task), kind=kind, cost=cost, **limits)
        arrive(made, arrivals)
        made.assert_right()
        made.assert_counted()
        for number, (length, first) in enumerate(made.jobs):
            assert made.steps_of(first) == length, number
        for call, told in zip(made.engine.calls, made.ticks, strict=True):
            assert len(call.lengths) <= rows
            size = (len(call.lengths), call.steps, sum(call.lengths))
            assert (told.rows, told.steps, told.useful) == size
            assert told.settled == told.useful
            assert told.seconds > 0

    def test_lengths_and_order(self, kind, task):
        """Answers that are stepped together are each cut to their length."""
        made = Scene(FakeEngine(task), kind=kind, batch_rows=3)
        made.add(*[(length, 10.0 * length) for length in (9, 1, 30, 2, 9, 31, 1)])
        made.run().assert_right()
        made.assert_counted()
        assert any(len(set(call.lengths)) > 1 for call in made.engine.calls)


class TestMemory:
    def test_nothing_is_kept(self, kind, monkeypatch):
        """Of jobs that are answered, have failed or were dropped nothing is kept."""
        # A log record that a test's runner keeps has the failure's frames.
        monkeypatch.setattr(scheduler.log, "disabled", True)
        made = Scene(kind=kind)
        made.engine.hook = poisoned([2.0])
        kept = []
        for number in range(4):
            given = frames(300, float(number))
            kept.append(weakref.ref(given))
            made.scheduler.add(number, given)
            made.jobs.append((300, float(number)))
        del given
        made.scheduler.cancel(3)
        made.run().assert_counted()
        made.engine.calls.clear()
        gc.collect()
        assert all(one() is None for one in kept)


class TestCancel:
    @pytest.mark.parametrize("seed", range(5))
    def test_before_it_runs(self, kind, seed):
        """A job that was cancelled never reaches the engine, and no other is hurt."""
        rng = np.random.default_rng(seed)
        made = Scene(kind=kind, batch_rows=4)
        lengths = rng.integers(1, 20, 40).tolist()
        made.add(*[(n, float(i)) for i, n in enumerate(lengths)])
        gone = set(rng.choice(40, 15, replace=False).tolist())
        for number in gone:
            made.scheduler.cancel(number)
        made.run().assert_counted()
        made.assert_right(*(set(range(40)) - gone))
        for number in gone:
            made.assert_failed(number, dropped=True)
            assert made.steps_of(number) == 0

    @settings(max_examples=100)
    @given(ARRIVALS.map(sorted), st.data())
    def test_at_any_time(self, arrivals, data):
        """Whenever jobs are cancelled, each is answered or dropped, the others are
        right, and nothing of a job is computed after it was dropped."""
        for kind in KINDS:
            made = Scene(kind=kind, batch_rows=3)
            seen = {}  # steps computed when it was cancelled

            def each(made, seen=seen):
                alive = [n for n in range(len(made.jobs)) if n not in made.told]
                for number in (
                    data.draw(st.sets(st.sampled_from(alive))) if alive else ()
                ):
                    if data.draw(st.booleans()):
                        made.scheduler.cancel(number)
                        seen.setdefault(number, made.steps_of(made.jobs[number][1]))

            arrive(made, arrivals, each)
            made.assert_counted()
            for number in range(len(made.jobs)):
                if number in seen:
                    made.assert_failed(number, dropped=True)
                    assert made.steps_of(made.jobs[number][1]) == seen[number]
                else:
                    made.assert_right(number)

    def test_all(self, kind):
        """When all who wait have gone nothing runs, and their steps are settled."""
        made = Scene(kind=kind)
        for number in made.add(*[(9, 1.0), (8, 2.0)] * 10):
            made.scheduler.cancel(number)
        made.run().assert_counted()
        assert made.engine.calls == []
        assert sum(told.rows for told in made.ticks) == 0
        made.add((2, 4.0))
        made.run().assert_right(20)

    def test_done_or_unknown(self, kind):
        """To cancel what is answered already, or was never there, changes nothing."""
        made = Scene(kind=kind)
        made.add((3, 1.0))
        made.scheduler.cancel(99)
        made.run()
        made.scheduler.cancel(0)
        made.add((4, 2.0))
        made.run().assert_right()
        made.assert_counted()


class TestFaults:
    @pytest.mark.parametrize("place", [0, 13, 31])
    def test_poison(self, kind, place):
        """One sequence that the engine fails on, among 31 good ones in its batch,
        fails by itself; the others are right."""
        made = Scene(kind=kind)
        made.engine.hook = poisoned([place])
        made.add(*[(6, float(number)) for number in range(32)])
        made.run().assert_counted()
        made.assert_failed(place)
        made.assert_right(*(set(range(32)) - {place}))

    @pytest.mark.parametrize(
        "fault", [RuntimeError, MemoryError, errors.InvalidRequest, ValueError]
    )
    def test_always_raises(self, kind, fault):
        """An engine that fails for all fails every job, and serves when it is well
        again."""
        made = Scene(kind=kind)

        def hook(call, answer):
            raise fault("poison")

        made.engine.hook = hook
        made.add(*[(3, 1.0), (400, 2.0)] * 20)
        made.run()
        for number in range(40):
            made.assert_failed(number)
        made.engine.hook = lambda call, answer: None
        made.add((3, 1.0))
        made.run().assert_right(40)
        made.assert_counted()

    @settings(max_examples=60)
    @given(ARRIVALS.map(sorted), st.sets(st.integers(1, 24)), st.integers(0, 300))
    def test_from_some_step_on(self, arrivals, bad, step):
        """Sequences that the engine fails on from some step on fail by themselves,
        whoever is stepped with them and however far the others are."""
        for kind in KINDS:
            made = Scene(kind=kind, batch_rows=5)

            def hook(call, answer):
                for first, start, length in zip(
                    call.firsts, call.starts, call.lengths, strict=True
                ):
                    if first in bad and start + length > step:
                        raise RuntimeError("poison")

            made.engine.hook = hook
            arrive(made, arrivals)
            made.assert_counted()
            for number, (length, first) in enumerate(made.jobs):
                if first in bad and length > step:
                    made.assert_failed(number)
                else:
                    made.assert_right(number)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("task", TASKS)
    def test_not_finite(self, kind, task, wrong):
        """An answer that is no number fails its own job only; no caller sees it."""
        made = Scene(FakeEngine(task), kind=kind)

        def hook(call, answer):
            answer[np.array(call.firsts) == 3, ..., 2] = wrong
            return answer

        made.engine.hook = hook
        made.add(*[(6, float(number)) for number in range(8)])
        made.run().assert_counted()
        made.assert_failed(3)
        made.assert_right(*(set(range(8)) - {3}))

    def test_extreme_numbers(self, kind):
        """Where a sequence holds numbers so large that the network overflows, that
        is told to be the reason."""
        made = Scene(kind=kind)
        made.engine.hook = lambda call, answer: np.full_like(answer, np.nan)
        made.add((3, 3e38), (3, 1.0))
        made.run()
        made.assert_failed(0, extreme=True)
        made.assert_failed(1)

    def test_not_finite_in_the_padding(self, kind):
        """What the engine says of steps past the end harms nobody."""
        made = Scene(FakeEngine("label"), kind=kind)

        def hook(call, answer):
            for row, length in zip(answer, call.lengths, strict=True):
                row[length:] = np.nan
            return answer

        made.engine.hook = hook
        made.add((2, 1.0), (5, 2.0), (3, 4.0), (4, 4.0))
        made.run().assert_right()
        made.assert_counted()

    @pytest.mark.parametrize(
        "shape", [(0, 3), (1, 3), (200, 3), ()], ids=["none", "one", "more", "scalar"]
    )
    @pytest.mark.parametrize("task", TASKS)
    def test_wrong_rows(self, kind, task, shape):
        """An engine that answers another number of rows gives nobody another's
        answer: each is asked for alone, and fails or is right."""
        made = Scene(FakeEngine(task), kind=kind)
        made.engine.hook = lambda call, answer: (
            np.zeros(shape) if len(call.lengths) > 1 or call.firsts == [3.0] else None
        )
        made.add(*[(6, float(number)) for number in range(8)])
        made.run().assert_counted()
        if task == "label" or shape != (1, 3):
            made.assert_failed(3)
        made.assert_right(*(set(range(8)) - {3}))

    def test_reason(self, kind):
        """A failure's reason tells what was raised, for the log."""
        made = Scene(kind=kind)
        made.engine.hook = poisoned([1.0])
        made.add((3, 1.0))
        made.run()
        assert "RuntimeError" in made.told[0].reason
