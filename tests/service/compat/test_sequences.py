"""Sequences whose state is kept under an id: order, states and limits."""

import asyncio
from contextlib import suppress

import pytest

from service.compat import sequences
from service.compat.sequences import MAX_WAITING, SequenceSessions
from service.errors import InvalidRequest, Overloaded, TooManyStreams
from service.registry.state_tokens import INITIAL_STATE, State
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.pool import flush, wait_until
from tests.support.servers import SECONDS, value

pytestmark = pytest.mark.anyio


class Kept:
    """Sessions, and requests that end when their future has a result."""

    def __init__(self, **settings):
        self.metrics = Metrics()
        self.sessions = SequenceSessions(Settings(**settings), self.metrics)
        self.entered = []  # names of requests, in the order of their turns
        self._tasks = []

    def turn(self, key, model="first", *, start=False, end=False):
        return self.sessions.use(key, model, start=start, end=end)

    async def take(self, key, steps=1, model="first", **flags):
        """A request of so many steps; returns its model and the steps before it."""
        async with asyncio.timeout(SECONDS), self.turn(key, model, **flags) as session:
            model, before = session.model, session.state
            session.state = before.after(steps, b"%d" % (before.steps + steps))
        return model, before.steps

    def hold(self, key, name, **flags):
        """A request that keeps its turn until its future has a result, or fails."""
        future = asyncio.get_running_loop().create_future()

        async def run():
            async with self.turn(key, **flags) as session:
                self.entered.append(name)
                session.state = session.state.after(await future, b"")

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.append(task)
        return future, task

    async def assert_none(self, key):
        """Check that no sequence has this id."""
        with pytest.raises(InvalidRequest, match="START"):
            await self.take(key)

    @property
    def count(self):
        return value(self.metrics.text().decode(), "unrolled_kept_sequences")

    async def close(self):
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


@pytest.fixture
async def kept():
    sessions = Kept()
    yield sessions
    await sessions.close()


class TestStates:
    async def test_goes_on(self, kept):
        """Each request continues from the state of the one before."""
        assert await kept.take("a", 3, start=True) == ("first", 0)
        assert await kept.take("a", 4) == ("first", 3)
        assert await kept.take("a", 1) == ("first", 7)
        async with kept.turn("a", "first", start=False, end=False) as session:
            assert session.state == State(8, b"8")

    async def test_begins(self, kept):
        """A request without START of an unknown id is refused, and leaves nothing."""
        await kept.assert_none("a")
        assert kept.count == 0

    async def test_end(self, kept):
        """A request with END continues the sequence, and frees its place."""
        await kept.take("a", 3, start=True)
        assert await kept.take("a", 1, end=True) == ("first", 3)
        assert kept.count == 0
        await kept.assert_none("a")
        assert await kept.take("a", start=True) == ("first", 0)

    async def test_start_and_end(self, kept):
        """One request may be a whole sequence."""
        assert await kept.take("a", start=True, end=True) == ("first", 0)
        assert kept.count == 0

    async def test_anew(self, kept):
        """START of an existing sequence restarts it, in the same place."""
        await kept.take("a", 5, start=True)
        assert await kept.take("a", 2, start=True) == ("first", 0)
        assert await kept.take("a") == ("first", 2)
        assert kept.count == 1

    async def test_model(self, kept):
        """A sequence keeps its model until it is restarted."""
        await kept.take("a", model="first", start=True)
        assert await kept.take("a", model="second") == ("first", 1)
        assert await kept.take("a", model="second", start=True) == ("second", 0)
        assert await kept.take("a", model="third") == ("second", 1)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("a", "b"),
            (5, "5"),
            (("walks", 5), ("walks", "5")),
            (("walks", 5), ("walks@1", 5)),
            (("walks", 5), ("tags", 5)),
        ],
    )
    async def test_independent(self, kept, first, second):
        """Two ids are two sequences: neither waits for the other, or has its state."""
        await kept.take(first, 3, start=True)
        await kept.assert_none(second)
        await kept.take(second, 5, start=True)
        future, task = kept.hold(first, "first")
        await wait_until(lambda: kept.entered, "it has its turn")
        assert await kept.take(second) == ("first", 5)
        future.set_result(1)
        await task
        assert await kept.take(first, end=True) == ("first", 4)
        assert await kept.take(second) == ("first", 6)


class TestOrder:
    async def test_one_after_another(self, kept):
        """Requests with one id are computed one after another, in the order of arrival."""
        requests = [kept.hold("a", number, start=not number) for number in range(10)]
        for number, (future, task) in enumerate(requests):
            await flush()
            assert kept.entered == list(range(number + 1))
            future.set_result(1)
            await task
        assert await kept.take("a") == ("first", 10)

    async def test_after_the_end(self, kept):
        """A request behind one with END is refused, unless it has START."""
        requests = [
            kept.hold("a", "begin", start=True),
            kept.hold("a", "end", end=True),
            kept.hold("a", "late"),
            kept.hold("a", "anew", start=True),
            kept.hold("a", "on"),
        ]
        for future, _ in requests:
            future.set_result(2)
        results = await asyncio.gather(
            *(t for _, t in requests), return_exceptions=True
        )
        assert [type(result) for result in results] == [
            type(None),
            type(None),
            InvalidRequest,
            type(None),
            type(None),
        ]
        assert kept.entered == ["begin", "end", "anew", "on"]
        assert await kept.take("a") == ("first", 4)

    async def test_cancelled_waiter(self, kept):
        """A request that is cancelled while it waits is skipped."""
        requests = [kept.hold("a", number, start=not number) for number in range(4)]
        await flush()
        requests[1][1].cancel()
        requests[2][1].cancel()
        await flush()
        assert kept.entered == [0]
        requests[0][0].set_result(1)
        requests[3][0].set_result(1)
        await asyncio.gather(requests[0][1], requests[3][1])
        assert kept.entered == [0, 3]
        assert await kept.take("a", end=True) == ("first", 2)
        assert kept.count == 0

    async def test_all_are_cancelled(self, kept):
        """If all requests are cancelled, also the one with START, nothing is left."""
        requests = [kept.hold("a", number, start=not number) for number in range(3)]
        await flush()
        for _, task in requests:
            task.cancel()
        await asyncio.gather(*(t for _, t in requests), return_exceptions=True)
        assert kept.count == 0
        await kept.assert_none("a")


FAILURES = [
    lambda future, task: future.set_exception(OSError()),
    lambda future, task: task.cancel(),
]


@pytest.mark.parametrize("fail", FAILURES, ids=["fails", "cancelled"])
class TestFailures:
    async def test_keeps_the_state(self, kept, fail):
        """A failed request changes nothing: a retry continues from the same state."""
        await kept.take("a", 3, start=True)
        future, task = kept.hold("a", "fails", end=True)
        await flush()
        fail(future, task)
        await asyncio.gather(task, return_exceptions=True)
        assert await kept.take("a", 4) == ("first", 3)
        assert await kept.take("a") == ("first", 7)

    async def test_start(self, kept, fail):
        """A failed START leaves nothing."""
        future, task = kept.hold("a", "fails", start=True)
        await flush()
        fail(future, task)
        await asyncio.gather(task, return_exceptions=True)
        assert kept.count == 0
        await kept.assert_none("a")
        assert await kept.take("a", start=True) == ("first", 0)

    async def test_start_before_others(self, kept, fail):
        """Requests behind a failed START are refused."""
        requests = [kept.hold("a", number, start=not number) for number in range(3)]
        await flush()
        fail(*requests[0])
        results = await asyncio.gather(
            *(t for _, t in requests), return_exceptions=True
        )
        assert [type(result) for result in results[1:]] == [InvalidRequest] * 2
        assert kept.count == 0

    async def test_anew(self, kept, fail):
        """A failed restart changes nothing: the sequence continues with its model."""
        await kept.take("a", 3, start=True)
        future, task = kept.hold("a", "fails", model="second", start=True)
        await flush()
        fail(future, task)
        await asyncio.gather(task, return_exceptions=True)
        assert await kept.take("a", model="second") == ("first", 3)


class TestLimits:
    async def test_number(self):
        """At most `max_streams` sequences are kept: one more is refused with Retry-After,
        until one ends."""
        kept = Kept(max_streams=2)
        for key in ("a", "b"):
            await kept.take(key, start=True)
        with pytest.raises(TooManyStreams) as caught:
            await kept.take("c", start=True)
        assert caught.value.headers["Retry-After"]
        await kept.assert_none("c")
        assert kept.count == 2
        assert await kept.take("a", start=True) == (
            "first",
            0,
        )  # restarted: not one more
        assert await kept.take("b", end=True) == ("first", 1)
        assert await kept.take("c", start=True) == ("first", 0)

    async def test_none_at_all(self):
        """With a limit of 0 none is kept."""
        kept = Kept(max_streams=0)
        with pytest.raises(TooManyStreams):
            await kept.take("a", start=True)

    async def test_waiters(self, kept):
        """A limited number of requests with one id may wait: one more is refused with
        Retry-After, while other ids are served."""
        requests = [kept.hold("a", n, start=not n) for n in range(MAX_WAITING)]
        await flush()
        for start in (False, True):
            with pytest.raises(Overloaded) as caught:
                await kept.take("a", start=start)
            assert caught.value.headers["Retry-After"] == "1"
        assert await kept.take("b", start=True) == ("first", 0)
        for future, _ in requests:
            future.set_result(1)
        await asyncio.gather(*(task for _, task in requests))
        assert kept.entered == list(range(MAX_WAITING))
        assert await kept.take("a") == ("first", MAX_WAITING)

    async def test_idle(self, monkeypatch):
        """An idle sequence is removed, but not one with a request."""
        monkeypatch.setattr(sequences, "CHECK_SECONDS", 0.01)
        kept = Kept(stream_idle_seconds=0.05, max_streams=2)
        await kept.take("a", start=True)
        future, task = kept.hold("b", "long", start=True)
        await wait_until(lambda: kept.entered, "the other has its turn")
        await wait_until(lambda: kept.count == 1, "the idle one is forgotten")
        await kept.assert_none("a")
        await asyncio.sleep(0.1)
        assert kept.count == 1
        future.set_result(2)
        await task
        assert await kept.take("b") == ("first", 2)
        await wait_until(lambda: kept.count == 0, "so is the other, afterwards")
        await kept.take("c", start=True)  # the timer starts again
        await wait_until(lambda: kept.count == 0, "and one that came later")

    async def test_gauge(self, kept):
        """The metrics count the kept sequences."""
        counts = [kept.count]
        for key in (1, 2, 3):
            await kept.take(key, start=True)
            counts.append(kept.count)
        await kept.take(2, end=True)
        assert [*counts, kept.count] == [0, 1, 2, 3, 2]


async def test_fails_late(kept):
    """A request that fails after it has set its new state changes nothing either."""
    await kept.take("a", 3, start=True)
    with suppress(OSError):
        async with kept.turn("a") as session:
            session.state = session.state.after(1, b"")
            raise OSError
    assert await kept.take("a") == ("first", 3)


async def test_begin(kept):
    """A sequence starts with the initial state."""
    async with kept.turn("a", start=True) as session:
        assert session.state == INITIAL_STATE
