"""The scheduler over an engine that shows which row it was given, and can fail."""

import concurrent.futures
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import SECONDS, FakeEngine, make_metadata, value, wait

from service import errors
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.settings import Settings

TASKS = ("classify", "label")


class Scene:
    """A scheduler, its engine and its metrics."""

    def __init__(self, engine: FakeEngine, **limits):
        self.engine = engine
        self.metrics = Metrics()
        limits = {"max_steps": 1000, "queue_steps": 100_000} | limits
        self.scheduler = Scheduler(
            engine, make_metadata(engine.task), Settings(**limits), self.metrics
        )

    def submit(self, *sequences):
        """Sequences given as (length, value); the request's future."""
        return self.scheduler.submit([frames(*one) for one in sequences])

    def value(self, name, **labels):
        text = self.metrics.text().decode()
        return value(text, f"unrolled_{name}", model="made", **labels)

    @property
    def waiting(self):
        return self.value("waiting_steps")

    def block(self):
        """Occupy the engine until `gate.set()`, so that what comes next must wait."""
        self.engine.closed()
        future = self.submit((1, -1.0))
        assert self.engine.entered.acquire(timeout=SECONDS)
        return future

    def settled(self):
        """Everything admitted has been answered or dropped, and counted so."""
        wait(lambda: self.waiting == 0, "nothing waits", 10)
        # Twice: it must stay so.
        assert self.waiting == 0
        assert self.scheduler.alive


@contextmanager
def scene(engine=None, **limits):
    made = Scene(engine or FakeEngine(), **limits)
    made.scheduler.start()
    try:
        yield made
    finally:
        made.engine.gate.set()
        stopping = threading.Thread(target=made.scheduler.stop)
        stopping.start()
        stopping.join(SECONDS)
        assert not stopping.is_alive(), "the scheduler did not stop"


def frames(length, first):
    """A sequence whose values all tell which one it is."""
    return np.full((length, 1), first, np.float32)


def assert_belongs(answer, length, first, task="classify"):
    """The answer is that of the sequence, cut to its length."""
    rows = np.atleast_2d(answer.probabilities)
    assert rows.shape == (1 if task == "classify" else length, 2)
    assert (rows == [length, first]).all()
    assert answer.state.shape == (2,)


def assert_fails(future):
    """It fails as our mistake, with nothing of the cause in what the caller sees."""
    error = future.exception(SECONDS)
    assert isinstance(error, errors.InternalError)
    assert "poison" not in error.detail
    assert error.__cause__ is not None


class TestStart:
    def test_lone_request_starts_at_once(self):
        """A lone request is answered though no other ever comes."""
        with scene() as made:
            (answer,) = made.submit((5, 3.0)).result(2)
            assert_belongs(answer, 5, 3.0)
            assert made.engine.calls == [[5]]
            made.settled()

    def test_one_after_another(self):
        """So is each that comes when the one before is answered."""
        with scene() as made:
            for number in range(50):
                (answer,) = made.submit((1 + number % 7, number)).result(2)
                assert_belongs(answer, 1 + number % 7, number)
            assert len(made.engine.calls) == 50

    def test_idle_costs_nothing(self):
        """Without work the thread sleeps."""
        with scene() as made:
            made.submit((1, 1.0)).result(2)
            begun = time.process_time()
            time.sleep(0.2)
            assert time.process_time() - begun < 0.1
            made.settled()

    def test_answered_is_not_waiting(self):
        """A caller that has its answer is not counted as waiting any more: with the
        queue's whole room in use, its next request is taken."""
        with scene(max_steps=10, queue_steps=10) as made:
            seen = []

            def next_request(_):
                try:
                    seen.append(made.submit((10, 2.0)))
                except errors.Overloaded as error:
                    seen.append(error)

            made.block().add_done_callback(next_request)
            made.engine.gate.set()
            wait(lambda: seen, "the callback ran", 10)
            assert isinstance(seen[0], concurrent.futures.Future), seen[0].detail
            assert_belongs(seen[0].result(2)[0], 10, 2.0)


@pytest.mark.parametrize("task", TASKS)
class TestAnswers:
    def test_lengths_and_order(self, task):
        """A request's answers come in its order, each cut to its length, though the
        engine stepped them in another order."""
        with scene(FakeEngine(task)) as made:
            blocked = made.block()
            asked = [(length, 10.0 * length) for length in (9, 1, 30, 2, 9, 31, 1)]
            future = made.submit(*asked)
            made.engine.gate.set()
            blocked.result(SECONDS)
            for answer, one in zip(future.result(SECONDS), asked, strict=True):
                assert_belongs(answer, *one, task)
            made.settled()

    def test_padding_is_zero(self, task):
        """What lies past a row's length is zero, and every row begins in state 0."""
        with scene(FakeEngine(task)) as made:
            seen = []

            def look(given, lengths):
                seen.append((given.copy(), lengths.copy()))

            made.engine.hook = look
            blocked = made.block()
            future = made.submit((3, 7.0), (5, 8.0), (4, 9.0))
            made.engine.gate.set()
            blocked.result(SECONDS)
            future.result(SECONDS)
            given, lengths = seen[-1]
            assert given.dtype == np.float32
            assert lengths.dtype == np.int32
            assert given.shape == (3, 5, 1)
            for row, length in zip(given, lengths, strict=True):
                assert row[:length].all()
                assert not row[length:].any()

    def test_random(self, task):
        """Whatever is submitted by whomever: each answer belongs to its input."""
        with scene(FakeEngine(task), batch_rows=8, batch_steps=300) as made:

            def talk(number):
                rng = np.random.default_rng(number)
                for turn in range(25):
                    count = int(rng.integers(1, 6))
                    asked = [
                        (int(length), float(1 + number + 16 * (turn * 8 + place)))
                        for place, length in enumerate(rng.integers(1, 150, count))
                    ]
                    answers = made.submit(*asked).result(SECONDS)
                    for answer, one in zip(answers, asked, strict=True):
                        assert_belongs(answer, *one, task)
                return True

            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                assert all(pool.map(talk, range(16), timeout=SECONDS))
            made.settled()
            sizes = [len(call) for call in made.engine.calls]
            assert max(sizes) <= 8
            assert max(max(c) * len(c) for c in made.engine.calls if len(c) > 1) <= 300
            assert made.value("batch_rows_sum") == sum(sizes)
            useful = sum(map(sum, made.engine.calls))
            padded = sum(max(call) * len(call) for call in made.engine.calls)
            assert made.value("steps_total", kind="useful") == useful
            assert made.value("steps_total", kind="padding") == padded - useful


class TestBatches:
    def batches(self, lengths, **limits):
        """The engine's calls for sequences that all wait when it becomes free."""
        with scene(**limits) as made:
            made.block()
            futures = [made.submit((length, 1.0)) for length in lengths]
            made.engine.gate.set()
            for future in futures:
                future.result(SECONDS)
            made.settled()
            return made.engine.calls[1:]

    def test_like_lengths(self):
        """Of short and long ones that wait, each batch holds only one kind."""
        calls = self.batches([5, 900, 5, 905, 6, 910, 4, 900], batch_rows=4)
        assert sorted(map(sorted, calls)) == [[4, 5, 5, 6], [900, 900, 905, 910]]

    def test_rows(self):
        """No batch has more rows than are set, and none is smaller than it must."""
        calls = self.batches([10] * 20, batch_rows=8)
        assert [len(call) for call in calls] == [8, 8, 4]

    @pytest.mark.parametrize("seed", range(5))
    def test_steps(self, seed):
        """No batch has more padded steps than are set, unless a single sequence
        does, and all are stepped once."""
        lengths = np.random.default_rng(seed).integers(1, 400, 120).tolist()
        calls = self.batches(lengths, batch_rows=16, batch_steps=500)
        for call in calls:
            assert len(call) <= 16
            assert len(call) == 1 or max(call) * len(call) <= 500
        assert sorted(length for call in calls for length in call) == sorted(lengths)

    def test_one_over_the_budget(self):
        """A sequence that is longer than a batch may be is stepped alone."""
        calls = self.batches([1000, 10, 10], batch_steps=100)
        assert calls == [[1000], [10, 10]]

    @pytest.mark.parametrize("seed", range(5))
    def test_oldest_first(self, seed):
        """The oldest that waits is in the next batch, whatever its length: none is
        starved."""
        lengths = np.random.default_rng(seed).integers(1, 300, 60).tolist()
        with scene(batch_rows=4) as made:
            made.block()
            futures = [
                made.submit((length, float(age))) for age, length in enumerate(lengths)
            ]
            made.engine.gate.set()
            for future in futures:
                future.result(SECONDS)
            waiting = set(range(60))
            for call in made.engine.values[1:]:
                assert min(waiting) in call
                waiting -= set(map(int, call))
            assert not waiting

    def test_more_than_the_window(self):
        """More sequences than are looked at together all get their answers."""
        lengths = [1 + n % 3 for n in range(1500)]
        calls = self.batches(lengths)
        assert sum(map(len, calls)) == 1500


class TestCancel:
    @pytest.mark.parametrize("seed", range(10))
    def test_before_it_runs(self, seed):
        """A cancelled request never reaches the engine, and nobody else is hurt."""
        rng = np.random.default_rng(seed)
        with scene(batch_rows=4) as made:
            blocked = made.block()
            lengths = rng.integers(1, 20, 40).tolist()
            futures = [made.submit((n, float(i))) for i, n in enumerate(lengths)]
            gone = set(rng.choice(40, 15, replace=False).tolist())
            for number in gone:
                assert futures[number].cancel()
            made.engine.gate.set()
            assert_belongs(blocked.result(SECONDS)[0], 1, -1.0)
            for number, future in enumerate(futures):
                if number in gone:
                    assert future.cancelled()
                else:
                    (answer,) = future.result(SECONDS)
                    assert_belongs(answer, lengths[number], float(number))
            ran = {int(v) for call in made.engine.values[1:] for v in call}
            assert ran == set(range(40)) - gone
            made.settled()
            assert made.value("dropped_sequences_total") == 15

    @pytest.mark.parametrize("_", range(5))
    def test_while_it_runs(self, _):
        """One that is cancelled inside the engine spoils nothing for its batch."""
        with scene() as made:
            blocked = made.block()
            futures = [made.submit((3, float(number))) for number in range(8)]

            def hook(frames, lengths):
                if len(lengths) == 8:
                    assert futures[5].cancel()

            made.engine.hook = hook
            made.engine.gate.set()
            blocked.result(SECONDS)
            for number, future in enumerate(futures):
                if number != 5:
                    assert_belongs(future.result(SECONDS)[0], 3, float(number))
            assert futures[5].cancelled()
            made.settled()

    def test_all(self):
        """When all who wait have gone, nothing runs and nothing is left."""
        with scene() as made:
            blocked = made.block()
            futures = [made.submit((9, 1.0), (8, 2.0)) for _ in range(10)]
            assert all(future.cancel() for future in futures)
            made.engine.gate.set()
            blocked.result(SECONDS)
            made.settled()
            assert made.engine.calls == [[1]]
            assert made.value("dropped_sequences_total") == 20
            assert_belongs(made.submit((2, 4.0)).result(2)[0], 2, 4.0)

    def test_part_of_a_request(self):
        """The rest of a request that was begun is dropped when its caller goes."""
        with scene(batch_rows=1) as made:
            blocked = made.block()
            future = made.submit(*[(4, 1.0)] * 10)

            def hook(frames, lengths):
                if len(made.engine.calls) == 4:
                    assert future.cancel()

            made.engine.hook = hook
            made.engine.gate.set()
            blocked.result(SECONDS)
            made.settled()
            assert len(made.engine.calls) == 4
            assert made.value("dropped_sequences_total") == 7


def poisoned(values):
    """A hook that raises when a row begins with one of these values."""

    def hook(frames, lengths):
        if np.isin(frames[:, 0, 0], values).any():
            raise RuntimeError("poison")

    return hook


class TestFaults:
    @pytest.mark.parametrize("place", [0, 13, 31])
    def test_poison(self, place):
        """One sequence that the engine fails on, among 31 good ones in its batch,
        fails its own request; the others are right."""
        with scene() as made:
            blocked = made.block()
            futures = [made.submit((6, float(number))) for number in range(32)]
            made.engine.hook = poisoned([place])
            made.engine.gate.set()
            blocked.result(SECONDS)
            for number, future in enumerate(futures):
                if number == place:
                    assert_fails(future)
                else:
                    assert_belongs(future.result(SECONDS)[0], 6, float(number))
            made.settled()

    def test_poison_within_a_request(self):
        """It fails the whole of its request, and no other."""
        with scene() as made:
            blocked = made.block()
            bad = made.submit((6, 1.0), (6, 2.0), (6, 3.0))
            good = made.submit((6, 4.0), (6, 5.0))
            made.engine.hook = poisoned([2])
            made.engine.gate.set()
            blocked.result(SECONDS)
            assert_fails(bad)
            for answer, first in zip(good.result(SECONDS), (4.0, 5.0), strict=True):
                assert_belongs(answer, 6, first)
            made.settled()

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(RuntimeError("poison"), id="error"),
            pytest.param(MemoryError("poison"), id="memory"),
            pytest.param(errors.InvalidRequest("poison"), id="service-error"),
        ],
    )
    def test_always_raises(self, fault):
        """An engine that fails for all fails every request, but not the thread."""
        with scene() as made:

            def hook(frames, lengths):
                raise fault

            made.engine.hook = hook
            futures = [made.submit((3, 1.0), (4, 2.0)) for _ in range(20)]
            for future in futures:
                assert_fails(future)
            made.settled()
            made.engine.hook = lambda frames, lengths: None
            assert_belongs(made.submit((3, 1.0)).result(2)[0], 3, 1.0)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("task", TASKS)
    def test_not_finite(self, task, wrong):
        """An answer that is no number fails its own request only; no caller ever
        sees it."""
        with scene(FakeEngine(task)) as made:
            blocked = made.block()
            futures = [made.submit((6, float(number))) for number in range(8)]

            def hook(frames, lengths):
                if len(lengths) == 1:
                    return None
                good = np.stack([np.full(frames.shape[:2], 6), frames[:, :, 0]], 2)
                good[frames[:, 0, 0] == 3, 2] = wrong
                return good if task == "label" else good[:, 2]

            made.engine.hook = hook
            made.engine.gate.set()
            blocked.result(SECONDS)
            for number, future in enumerate(futures):
                if number == 3:
                    assert_fails(future)
                else:
                    assert_belongs(future.result(SECONDS)[0], 6, float(number), task)
            made.settled()

    def test_extreme_numbers(self):
        """Numbers so large that the network overflows are the caller's mistake."""
        with scene() as made:
            made.engine.hook = lambda frames, lengths: np.full(
                (len(lengths), 2), np.nan
            )
            error = made.submit((3, 3e38)).exception(SECONDS)
            assert isinstance(error, errors.InvalidRequest)
            assert error.errors[0].path == "sequences[0]"

    def test_not_finite_in_the_padding(self):
        """What the engine says of steps past the end harms nobody."""
        with scene(FakeEngine("label")) as made:
            blocked = made.block()
            future = made.submit((2, 1.0), (5, 2.0))

            def hook(frames, lengths):
                answer = np.full((*frames.shape[:2], 2), np.nan)
                for row, length in enumerate(lengths):
                    answer[row, :length] = [length, frames[row, 0, 0]]
                return answer

            made.engine.hook = hook
            made.engine.gate.set()
            blocked.result(SECONDS)
            for answer, one in zip(future.result(2), [(2, 1.0), (5, 2.0)], strict=True):
                assert_belongs(answer, *one, "label")

    @pytest.mark.parametrize(
        "shape", [(0, 2), (1, 2), (200, 2), ()], ids=["none", "one", "more", "scalar"]
    )
    def test_wrong_rows(self, shape):
        """An engine that answers another number of rows fails requests, never the
        thread, and gives nobody another's answer."""
        with scene() as made:
            blocked = made.block()
            futures = [made.submit((6, float(number))) for number in range(8)]
            made.engine.hook = lambda frames, lengths: (
                np.zeros(shape) if len(lengths) > 1 else None
            )
            made.engine.gate.set()
            blocked.result(SECONDS)
            for number, future in enumerate(futures):
                assert_belongs(future.result(SECONDS)[0], 6, float(number))
            made.settled()


class TestQueue:
    def test_overloaded(self):
        """Past the limit a request is refused with the seconds to wait, and what was
        admitted is still answered."""
        with scene(max_steps=100, queue_steps=100) as made:
            blocked = made.block()
            futures = [made.submit((33, float(number))) for number in range(3)]
            for _ in range(5):
                with pytest.raises(errors.Overloaded) as caught:
                    made.submit((1, 1.0))
                assert int(caught.value.headers["Retry-After"]) >= 1
                assert caught.value.status == 503
            assert made.waiting == 100
            made.engine.gate.set()
            blocked.result(SECONDS)
            for number, future in enumerate(futures):
                assert_belongs(future.result(SECONDS)[0], 33, float(number))
            made.settled()
            assert_belongs(made.submit((100, 5.0)).result(2)[0], 100, 5.0)

    def test_all_or_none(self):
        """A request that does not fit as a whole is not begun."""
        with scene(max_steps=100, queue_steps=100) as made:
            made.block()
            with pytest.raises(errors.Overloaded):
                made.submit(*[(10, 1.0)] * 10)
            assert made.waiting == 1
            made.engine.gate.set()
            made.settled()
            assert made.engine.calls == [[1]]

    def test_alone_always_fits(self):
        """One request may be larger than the queue, if nothing else waits: else it
        could never be answered."""
        with scene(max_steps=100, queue_steps=100) as made:
            answers = made.submit(*[(100, float(n)) for n in range(5)]).result(2)
            for number, answer in enumerate(answers):
                assert_belongs(answer, 100, float(number))
            made.settled()

    def test_cancelled_frees_the_queue(self):
        """Work whose caller has gone makes room."""
        with scene(max_steps=100, queue_steps=100) as made:
            blocked = made.block()
            made.submit((99, 1.0)).cancel()
            made.engine.gate.set()
            blocked.result(SECONDS)
            made.settled()
            assert_belongs(made.submit((100, 5.0)).result(2)[0], 100, 5.0)

    def test_wait_is_estimated(self):
        """The seconds to wait grow with what waits, at the speed of late."""
        with scene(max_steps=100, queue_steps=100) as made:
            made.engine.hook = lambda frames, lengths: time.sleep(0.1)
            made.submit((10, 1.0)).result(SECONDS)  # 100 steps a second
            made.settled()
            made.engine.closed()
            made.submit((100, 1.0))
            with pytest.raises(errors.Overloaded) as caught:
                made.submit((100, 1.0))
            assert int(caught.value.headers["Retry-After"]) in (1, 2)
            assert "100 steps" in caught.value.detail


class TestStop:
    @pytest.mark.parametrize("task", TASKS)
    def test_answers_what_was_admitted(self, task):
        """Told to stop, it answers all that it has admitted, then ends."""
        with scene(FakeEngine(task), batch_rows=4) as made:
            made.block()
            futures = [made.submit((5, float(number))) for number in range(30)]
            stopping = threading.Thread(target=made.scheduler.stop)
            stopping.start()

            def refuses():
                try:
                    made.submit((1, 1.0)).cancel()
                except errors.Stopping:
                    return True
                return False

            wait(refuses, "it refuses", 10)
            assert made.scheduler.alive
            made.engine.gate.set()
            stopping.join(SECONDS)
            assert not made.scheduler.alive
            for number, future in enumerate(futures):
                assert_belongs(future.result(0)[0], 5, float(number), task)
            assert made.waiting == 0

    def test_refuses_afterwards(self):
        """Afterwards nothing is admitted, and nothing is left counted."""
        with scene() as made:
            made.scheduler.stop()
            with pytest.raises(errors.Stopping):
                made.submit((1, 1.0))
            assert made.waiting == 0

    def test_twice_and_unstarted(self):
        """Stopping again, or before the start, is no error and does not wait."""
        with scene() as made:
            made.scheduler.stop()
            made.scheduler.stop()
        Scene(FakeEngine()).scheduler.stop()

    def test_with_faults(self):
        """Failing work doesn't keep it from stopping."""
        with scene() as made:
            made.block()
            futures = [made.submit((5, float(number))) for number in range(10)]
            made.engine.hook = poisoned([-1, 3, 4])
            threading.Timer(0.05, made.engine.gate.set).start()
            made.scheduler.stop()
            for number, future in enumerate(futures):
                if number in (3, 4):
                    assert_fails(future)
                else:
                    assert_belongs(future.result(0)[0], 5, float(number))
            assert made.waiting == 0
