"""The scheduler, however it batches: each job gets its own answer, and no failure
reaches another's."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import errors
from service.worker import scheduler
from service.worker.cost import Cost
from tests.support.scheduler import (
    KINDS,
    TASKS,
    FakeEngine,
    Scene,
    frames,
    poisoned,
    state_of,
)

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
            caller = ("ab"[number % 2], number // 2 % 3)
            made.add((arrivals[number][1], float(number + 1)), caller=caller)
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


def assert_kept(made, number):
    """The state after a job was told, where that was asked, and is the right one."""
    steps, first = made.jobs[number]
    after = state_of(made.starts[number] + steps, first)
    assert made.told[number].state == after.tobytes()


@pytest.mark.parametrize("task", TASKS)
class TestGoesOn:
    @pytest.mark.parametrize("start", [0, 1, 700])
    @pytest.mark.parametrize("steps", [1, 2, 900])
    def test_from_a_state(self, task, start, steps):
        """A job that goes on from a state is answered as the end of the whole
        sequence, and its new state is that of the whole."""
        made = Scene(FakeEngine(task))
        number = made.go_on(steps, 3.0, start)
        made.run().assert_right()
        assert_kept(made, number)
        made.assert_counted()
        assert made.engine.calls[0].starts == [start]
        assert made.steps_of(3.0) == steps

    @settings(max_examples=60)
    @given(
        parts=st.lists(
            st.lists(st.integers(1, 200), min_size=1, max_size=5),
            min_size=1,
            max_size=8,
        ),
        others=ARRIVALS.map(sorted),
        cost=COSTS,
        rows=st.integers(1, 8),
    )
    def test_in_parts(self, task, parts, others, cost, rows):
        """Sequences that come in parts, each from the state that the part before it
        has left, get the answers of the whole, whoever is stepped with them."""
        made = Scene(FakeEngine(task), cost=cost, batch_rows=rows)

        def talk(first, lengths):
            taken = 0
            for steps in lengths:
                number = made.go_on(steps, first, taken)
                while number not in made.told:
                    yield
                assert_kept(made, number)
                taken += steps

        talks = [talk(1.0 + place, lengths) for place, lengths in enumerate(parts)]
        tick = 0
        while talks or others or made.scheduler.busy:
            while others and others[0][0] <= tick:
                made.add((others.pop(0)[1], 1000.0 + len(made.jobs)))
            talks = [one for one in talks if next(one, "over") is None]
            assert tick < 100_000, "it gets nowhere"
            if made.scheduler.busy:
                made.tick()
            tick += 1
        made.assert_right()
        made.assert_counted()
        for place, lengths in enumerate(parts):
            assert made.steps_of(1.0 + place) == sum(lengths)

    def test_state_is_told_when_asked(self, task):
        """Only who asks for the new state is told it."""
        made = Scene(FakeEngine(task))
        asked = [
            made.go_on(3, float(n), n % 3, return_state=n % 2 == 0) for n in range(8)
        ]
        made.run().assert_right()
        for number in asked:
            if number % 2:
                assert made.told[number].state == b""
            else:
                assert_kept(made, number)

    def test_given_state_is_let_be(self, task):
        """The state that a job goes on from is only read: another may begin there
        too, and where a job begins stays where it was."""
        made = Scene(FakeEngine(task))
        state = state_of(5, 2.0)
        state.setflags(write=False)
        rest = frames(12, 2.0)[5:]
        for number in range(3):
            made.scheduler.add(number, rest, state, return_state=True)
            made.jobs.append((7, 2.0))
            made.starts[number] = 5
        made.run().assert_right()
        assert state.tolist() == state_of(5, 2.0).tolist()
        made.add((4, 6.0))
        made.run().assert_right()
        made.assert_counted()

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("steps", [3, 900])
    def test_state_not_finite(self, task, wrong, steps):
        """A new state that is no number fails its own job, though the answer is one:
        nobody could go on from it. Those beside it are right."""
        made = Scene(FakeEngine(task))

        def spoil(call, after):
            after[np.array(call.firsts) == 3, 1] = wrong

        made.engine.spoil = spoil
        for first in range(1, 7):
            made.go_on(steps if first == 3 else 5, float(first), 0 if first == 3 else 4)
        made.run()
        made.assert_failed(2)
        made.assert_right(*(set(range(6)) - {2}))
        assert not made.scheduler.busy

    def test_state_too_far(self, task):
        """Where the sequence's own numbers are the reason for that, it is told."""
        made = Scene(FakeEngine(task))

        def spoil(call, after):
            after[:] = np.inf

        made.engine.spoil = spoil
        made.scheduler.add(0, np.full((2, 1), 3e38, np.float32), return_state=True)
        made.jobs.append((2, 3e38))
        made.run()
        made.assert_failed(0, extreme=True)

    def test_cancelled(self, task):
        """A job that goes on and is cancelled is dropped, and hurts none that goes on
        from the same state."""
        made = Scene(FakeEngine(task))
        gone, kept = made.go_on(900, 1.0, 40), made.go_on(900, 1.0, 40)
        made.tick()
        made.scheduler.cancel(gone)
        made.run()
        made.assert_failed(gone, dropped=True)
        made.assert_right(kept)
        assert_kept(made, kept)
        made.assert_counted()


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


def test_time_spent(kind, monkeypatch):
    """The time between two calls counts while jobs wait, and not when none did."""
    now = [100.0]
    monkeypatch.setattr(scheduler.time, "perf_counter", lambda: now[0])
    made = Scene(kind=kind, batch_rows=1)

    def takes(call, answer):
        now[0] += 1

    made.engine.hook = takes
    made.add((3, 1.0), (3, 2.0))
    for _ in range(2):
        now[0] += 10
        made.tick()
    made.add((3, 3.0))
    now[0] += 10
    made.tick()
    assert not made.scheduler.busy
    assert [tick.seconds for tick in made.ticks] == [1, 1, 1]
    assert [tick.spent for tick in made.ticks] == [1, 11, 1]
