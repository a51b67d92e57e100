"""The scheduler in both ways of batching: each job gets its own answer, and a failure
reaches no other job."""

import gc
import weakref
from itertools import product

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
    SchedulerHarness,
    frames,
    poisoned,
    state_of,
)

# Sequence lengths, each with the number of batches before it arrives.
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 12), st.one_of(st.integers(1, 30), st.integers(1, 900))),
    min_size=1,
    max_size=24,
).map(sorted)
SECONDS = st.floats(-6, -3).map(lambda power: 10**power)
COSTS = st.builds(Cost, call=SECONDS, step=SECONDS, row=SECONDS)
LIMITS = st.fixed_dictionaries(
    {"batch_rows": st.integers(1, 8), "batch_steps": st.integers(1, 1500)}
)
NOT_FINITE = (np.nan, np.inf, -np.inf)


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    """The way of batching: lanes, or whole sequences."""
    return request.param


def run_arrivals(harness, arrivals, before_batch=lambda: None):
    """Add jobs as they arrive, and run batches until all are done."""
    batches = 0
    while harness.scheduler.busy or len(harness.jobs) < len(arrivals):
        while (number := len(harness.jobs)) < len(arrivals) and (
            arrivals[number][0] <= batches
        ):
            caller = ("ab"[number % 2], number // 2 % 3)
            harness.add((arrivals[number][1], float(number + 1)), caller=caller)
        before_batch()
        if harness.scheduler.busy:
            harness.run_batch()
        batches += 1


class TestAnswers:
    def test_single_job(self, kind):
        """A single job is answered by one batch, though no other job comes."""
        harness = SchedulerHarness(kind=kind)
        harness.add((5, 3.0))
        assert harness.scheduler.busy
        harness.run_batch()
        harness.assert_right()
        harness.assert_settled()
        assert [call.lengths for call in harness.engine.calls] == [[5]]

    @settings(max_examples=100)
    @given(st.sampled_from(TASKS), ARRIVALS, COSTS, LIMITS)
    def test_any_arrivals(self, kind, task, arrivals, cost, limits):
        """Sequences of any lengths at any time get their own answers. Each step is
        computed once, batches keep their limits, and reports are right."""
        harness = SchedulerHarness(FakeEngine(task), kind=kind, cost=cost, **limits)
        run_arrivals(harness, arrivals)
        harness.assert_right()
        harness.assert_settled()
        for length, first in harness.jobs:
            assert harness.steps_of(first) == length
        for call, report in zip(harness.engine.calls, harness.reports, strict=True):
            assert len(call.lengths) <= limits["batch_rows"]
            size = (len(call.lengths), call.steps, sum(call.lengths))
            assert (report.rows, report.steps, report.useful) == size
            assert report.settled == report.useful
            assert report.seconds > 0


class TestStates:
    @given(
        st.sampled_from(TASKS),
        st.lists(
            st.lists(st.integers(1, 200), min_size=1, max_size=5),
            min_size=1,
            max_size=8,
        ),
        ARRIVALS,
        COSTS,
        st.integers(1, 8),
    )
    def test_in_parts(self, task, parts, others, cost, rows):
        """Sequences in parts, each from the state after the previous one, get the
        answers of the whole sequences, whatever is in the same batches."""
        harness = SchedulerHarness(FakeEngine(task), cost=cost, batch_rows=rows)

        def stream(first, lengths):
            start = 0
            for steps in lengths:
                number = harness.resume(steps, first, start)
                while number not in harness.results:
                    yield
                harness.assert_state(number)
                start += steps

        streams = [stream(1.0 + n, lengths) for n, lengths in enumerate(parts)]
        batches, others = 0, list(others)
        while streams or others or harness.scheduler.busy:
            while others and others[0][0] <= batches:
                harness.add((others.pop(0)[1], 1000.0 + len(harness.jobs)))
            streams = [s for s in streams if next(s, "ended") is None]
            assert batches < 100_000, "no progress"
            if harness.scheduler.busy:
                harness.run_batch()
            batches += 1
        harness.assert_right()
        harness.assert_settled()
        for number, lengths in enumerate(parts):
            assert harness.steps_of(1.0 + number) == sum(lengths)

    def test_only_if_requested(self):
        """Only jobs that request their new state get it."""
        harness = SchedulerHarness()
        for n in range(8):
            harness.resume(3, float(n), n % 3, return_state=n % 2 == 0)
        harness.run().assert_right()
        for n in range(0, 8, 2):
            harness.assert_state(n)
            assert harness.results[n + 1].state == b""

    def test_states_are_not_changed(self):
        """The state that a job continues from is only read: other jobs may continue
        from it too, and new sequences still begin in the initial state."""
        harness = SchedulerHarness()
        state = state_of(5, 2.0)
        state.setflags(write=False)
        for number in range(3):
            harness.scheduler.add(number, frames(12, 2.0)[5:], state, return_state=True)
            harness.jobs.append((7, 2.0))
            harness.starts[number] = 5
        harness.run().assert_right()
        assert state.tolist() == state_of(5, 2.0).tolist()
        harness.add((4, 6.0))
        harness.run().assert_right()
        harness.assert_settled()

    def test_not_finite(self):
        """A new state with NaN or infinity fails its own job, though the answer is
        finite: no one could continue from it."""
        for wrong, steps in product(NOT_FINITE, (3, 900)):
            harness = SchedulerHarness()

            def spoil(call, new_state, wrong=wrong):
                new_state[np.array(call.firsts) == 3, 1] = wrong

            harness.engine.spoil = spoil
            for first in range(1, 7):
                long = first == 3
                harness.resume(steps if long else 5, float(first), 0 if long else 4)
            harness.run()
            harness.assert_failed(2)
            harness.assert_right(*(set(range(6)) - {2}))
            assert not harness.scheduler.busy

    def test_not_finite_because_of_extreme_numbers(self):
        harness = SchedulerHarness()

        def spoil(call, new_state):
            new_state[:] = np.inf

        harness.engine.spoil = spoil
        harness.scheduler.add(0, np.full((2, 1), 3e38, np.float32), return_state=True)
        harness.jobs.append((2, 3e38))
        harness.run()
        harness.assert_failed(0, extreme=True)


def test_memory_is_freed(kind, monkeypatch):
    """The frames of answered, failed and cancelled jobs are freed."""
    # A log record that pytest keeps has the failure's frames.
    monkeypatch.setattr(scheduler.log, "disabled", True)
    harness = SchedulerHarness(kind=kind)
    harness.engine.hook = poisoned([2.0])
    references = []
    for number in range(4):
        sequence = frames(300, float(number))
        references.append(weakref.ref(sequence))
        harness.scheduler.add(number, sequence)
        harness.jobs.append((300, float(number)))
    del sequence
    harness.scheduler.cancel(3)
    harness.run().assert_settled()
    harness.engine.calls.clear()
    gc.collect()
    assert all(reference() is None for reference in references)


class TestCancel:
    @settings(max_examples=50)
    @given(ARRIVALS, st.data())
    def test_at_any_time(self, kind, arrivals, data):
        """Whenever jobs are cancelled, no further step of them is computed, and all
        other jobs are answered."""
        harness = SchedulerHarness(kind=kind, batch_rows=3)
        computed = {}  # steps of each cancelled job at that time

        def cancel_some():
            pending = set(range(len(harness.jobs))) - harness.results.keys()
            if pending and data.draw(st.booleans()):
                for number in data.draw(st.sets(st.sampled_from(sorted(pending)))):
                    harness.scheduler.cancel(number)
                    steps = harness.steps_of(harness.jobs[number][1])
                    computed.setdefault(number, steps)

        run_arrivals(harness, arrivals, cancel_some)
        harness.assert_settled()
        for number, (_, first) in enumerate(harness.jobs):
            if number in computed:
                harness.assert_failed(number, dropped=True)
                assert harness.steps_of(first) == computed[number]
            else:
                harness.assert_right(number)

    def test_all(self, kind):
        """If all jobs are cancelled, no engine call is made, and the steps are
        settled."""
        harness = SchedulerHarness(kind=kind)
        for number in harness.add(*[(9, 1.0), (8, 2.0)] * 10):
            harness.scheduler.cancel(number)
        harness.run().assert_settled()
        assert harness.engine.calls == []
        assert sum(report.rows for report in harness.reports) == 0
        harness.add((2, 4.0))
        harness.run().assert_right(20)

    def test_done_or_unknown(self, kind):
        """Cancelling a job that is done, or does not exist, has no effect."""
        harness = SchedulerHarness(kind=kind)
        harness.add((3, 1.0))
        harness.scheduler.cancel(99)
        harness.run()
        harness.scheduler.cancel(0)
        harness.add((4, 2.0))
        harness.run().assert_right()
        harness.assert_settled()


class TestFaults:
    def test_poison(self, kind):
        """Of 32 sequences in a batch, the one that the engine fails on fails alone,
        with the reason."""
        harness = SchedulerHarness(kind=kind)
        harness.engine.hook = poisoned([13])
        harness.add(*[(6, float(number)) for number in range(32)])
        harness.run().assert_settled()
        harness.assert_failed(13)
        assert "RuntimeError" in harness.results[13].reason
        harness.assert_right(*(set(range(32)) - {13}))

    def test_always_raises(self, kind):
        """An engine that always fails, with whatever exception, fails every job. When
        it works again, it serves."""
        for exception in (MemoryError, errors.InvalidRequest):
            harness = SchedulerHarness(kind=kind)

            def hook(call, answer, exception=exception):
                raise exception("poison")

            harness.engine.hook = hook
            harness.add(*[(3, 1.0), (400, 2.0)] * 20)
            harness.run()
            for number in range(40):
                harness.assert_failed(number)
            harness.engine.hook = lambda call, answer: None
            harness.add((3, 1.0))
            harness.run().assert_right(40)
            harness.assert_settled()

    @given(ARRIVALS, st.sets(st.integers(1, 24)), st.integers(0, 300))
    def test_after_some_step(self, kind, arrivals, bad, step):
        """Sequences that the engine fails on after some step fail alone, whatever is
        in the same batches."""
        harness = SchedulerHarness(kind=kind, batch_rows=5)

        def hook(call, answer):
            for first, start, length in zip(
                call.firsts, call.starts, call.lengths, strict=True
            ):
                if first in bad and start + length > step:
                    raise RuntimeError("poison")

        harness.engine.hook = hook
        run_arrivals(harness, arrivals)
        harness.assert_settled()
        for number, (length, first) in enumerate(harness.jobs):
            if first in bad and length > step:
                harness.assert_failed(number)
            else:
                harness.assert_right(number)

    def test_not_finite(self, kind):
        """An answer with NaN or infinity fails its own job only."""
        for task, wrong in product(TASKS, NOT_FINITE):
            harness = SchedulerHarness(FakeEngine(task), kind=kind)

            def hook(call, answer, wrong=wrong):
                answer[np.array(call.firsts) == 3, ..., 2] = wrong
                return answer

            harness.engine.hook = hook
            harness.add(*[(6, float(number)) for number in range(8)])
            harness.run().assert_settled()
            harness.assert_failed(3)
            harness.assert_right(*(set(range(8)) - {3}))

    def test_extreme_numbers(self, kind):
        """A failure tells whether the sequence's own numbers are the cause."""
        harness = SchedulerHarness(kind=kind)
        harness.engine.hook = lambda call, answer: np.full_like(answer, np.nan)
        harness.add((3, 3e38), (3, 1.0))
        harness.run()
        harness.assert_failed(0, extreme=True)
        harness.assert_failed(1)

    def test_not_finite_in_the_padding(self, kind):
        """The engine's output for padding has no effect."""
        harness = SchedulerHarness(FakeEngine("label"), kind=kind)

        def hook(call, answer):
            for row, length in zip(answer, call.lengths, strict=True):
                row[length:] = np.nan
            return answer

        harness.engine.hook = hook
        harness.add((2, 1.0), (5, 2.0), (3, 4.0), (4, 4.0))
        harness.run().assert_right()
        harness.assert_settled()

    def test_wrong_rows(self, kind):
        """If an engine returns a wrong number of rows, no job gets another's answer:
        each is computed alone, and fails or is right."""
        for task, shape in product(TASKS, [(0, 3), (1, 3), (200, 3), ()]):
            harness = SchedulerHarness(FakeEngine(task), kind=kind)
            harness.engine.hook = lambda call, answer, shape=shape: (
                np.zeros(shape)
                if len(call.lengths) > 1 or call.firsts == [3.0]
                else None
            )
            harness.add(*[(6, float(number)) for number in range(8)])
            harness.run().assert_settled()
            if task == "label" or shape != (1, 3):
                harness.assert_failed(3)
            harness.assert_right(*(set(range(8)) - {3}))


def test_time_spent(kind, monkeypatch):
    """The time between two calls counts if jobs were waiting, and only then. A result
    has the times of its first and its last call."""
    now = [100.0]
    monkeypatch.setattr(scheduler.time, "perf_counter", lambda: now[0])
    harness = SchedulerHarness(kind=kind, batch_rows=1)

    def hook(call, answer):
        now[0] += 1

    harness.engine.hook = hook
    harness.add((3, 1.0), (3, 2.0))
    for _ in range(2):
        now[0] += 10
        harness.run_batch()
    harness.add((3, 3.0))
    now[0] += 10
    harness.run_batch()
    assert not harness.scheduler.busy
    assert [report.seconds for report in harness.reports] == [1, 1, 1]
    assert [report.spent for report in harness.reports] == [1, 11, 1]
    (number,) = harness.add((900, 4.0))
    first_call = now[0]
    harness.run()
    result = harness.results[number]
    assert (result.started, result.ended) == (first_call, now[0])
