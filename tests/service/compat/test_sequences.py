"""Sequences kept under an id: their order, their states, and their limits."""

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
    """SequenceSessions, and requests of them that end when they are told to."""

    def __init__(self, **settings):
        self.metrics = Metrics()
        self.sessions = SequenceSessions(Settings(**settings), self.metrics)
        self.entered = []  # what was asked, in the order of the turns
        self._tasks = []

    def turn(self, key, model="first", *, start=False, end=False):
        return self.sessions.use(key, model, start=start, end=end)

    async def take(self, key, steps=1, model="first", **flags):
        """A request that takes so many steps; its model and the steps before it."""
        async with asyncio.timeout(SECONDS), self.turn(key, model, **flags) as session:
            model, before = session.model, session.state
            session.state = before.after(steps, b"%d" % (before.steps + steps))
        return model, before.steps

    def hold(self, key, name, **flags):
        """A request that holds its turn until its future has a result, or fails."""
        future = asyncio.get_running_loop().create_future()

        async def run():
            async with self.turn(key, **flags) as session:
                self.entered.append(name)
                session.state = session.state.after(await future, b"")

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.append(task)
        return future, task

    async def assert_none(self, key):
        """Nothing goes on under an id."""
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
    made = Kept()
    yield made
    await made.close()


class TestStates:
    async def test_goes_on(self, kept):
        """Each request goes on from where the last one ended, the first from the
        beginning."""
        assert await kept.take("a", 3, start=True) == ("first", 0)
        assert await kept.take("a", 4) == ("first", 3)
        assert await kept.take("a", 1) == ("first", 7)
        async with kept.turn("a", "first", start=False, end=False) as session:
            assert session.state == State(8, b"8")

    async def test_begins(self, kept):
        """A request that goes on from nothing is told to START, and leaves nothing."""
        await kept.assert_none("a")
        assert kept.count == 0

    async def test_end(self, kept):
        """The last request is computed from where the sequence is, and frees its
        place."""
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
        """START on a sequence that has begun begins it anew, in one place."""
        await kept.take("a", 5, start=True)
        assert await kept.take("a", 2, start=True) == ("first", 0)
        assert await kept.take("a") == ("first", 2)
        assert kept.count == 1

    async def test_model(self, kept):
        """A sequence stays with the model that it began with, until it begins anew."""
        await kept.take("a", model="first", start=True)
        assert await kept.take("a", model="second") == ("first", 1)
        assert await kept.take("a", model="second", start=True) == ("second", 0)
        assert await kept.take("a", model="third") == ("second", 1)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            pytest.param("a", "b", id="texts"),
            pytest.param(5, "5", id="number-and-text"),
            pytest.param(("walks", 5), ("walks", "5"), id="of-a-model"),
            pytest.param(("walks", 5), ("walks@1", 5), id="of-two-names"),
            pytest.param(("walks", 5), ("tags", 5), id="of-two-models"),
        ],
    )
    async def test_independent(self, kept, one, other):
        """Two ids are two sequences: none waits for the other, or has its state."""
        await kept.take(one, 3, start=True)
        await kept.assert_none(other)
        await kept.take(other, 5, start=True)
        future, task = kept.hold(one, "one")
        await wait_until(lambda: kept.entered, "it has its turn")
        assert await kept.take(other) == ("first", 5)
        future.set_result(1)
        await task
        assert await kept.take(one, end=True) == ("first", 4)
        assert await kept.take(other) == ("first", 6)


class TestOrder:
    async def test_one_after_another(self, kept):
        """Requests of one id are computed in the order in which they came, each when
        the one before has ended."""
        held = [kept.hold("a", number, start=not number) for number in range(10)]
        for number, (future, task) in enumerate(held):
            await flush()
            assert kept.entered == list(range(number + 1))
            future.set_result(1)
            await task
        assert await kept.take("a") == ("first", 10)

    async def test_after_the_end(self, kept):
        """What waits behind the last request is told to START; what starts, does."""
        held = [
            kept.hold("a", "begin", start=True),
            kept.hold("a", "end", end=True),
            kept.hold("a", "late"),
            kept.hold("a", "anew", start=True),
            kept.hold("a", "on"),
        ]
        for future, _ in held:
            future.set_result(2)
        told = await asyncio.gather(*(t for _, t in held), return_exceptions=True)
        assert [type(one) for one in told] == [
            type(None),
            type(None),
            InvalidRequest,
            type(None),
            type(None),
        ]
        assert kept.entered == ["begin", "end", "anew", "on"]
        assert await kept.take("a") == ("first", 4)

    async def test_cancelled_waiter(self, kept):
        """One whose caller goes while it waits is left out; the others have their
        turns."""
        held = [kept.hold("a", number, start=not number) for number in range(4)]
        await flush()
        held[1][1].cancel()
        held[2][1].cancel()
        await flush()
        assert kept.entered == [0]
        held[0][0].set_result(1)
        held[3][0].set_result(1)
        await asyncio.gather(held[0][1], held[3][1])
        assert kept.entered == [0, 3]
        assert await kept.take("a", end=True) == ("first", 2)
        assert kept.count == 0

    async def test_all_are_cancelled(self, kept):
        """Where all go, the first of which was to begin it, nothing is left."""
        held = [kept.hold("a", number, start=not number) for number in range(3)]
        await flush()
        for _, task in held:
            task.cancel()
        await asyncio.gather(*(t for _, t in held), return_exceptions=True)
        assert kept.count == 0
        await kept.assert_none("a")


FAILURES = [
    pytest.param(lambda future, task: future.set_exception(OSError()), id="fails"),
    pytest.param(lambda future, task: task.cancel(), id="cancelled"),
]


@pytest.mark.parametrize("fail", FAILURES)
class TestFailures:
    async def test_keeps_the_state(self, kept, fail):
        """A request that fails changes nothing: sent again it goes on from the same
        state."""
        await kept.take("a", 3, start=True)
        future, task = kept.hold("a", "fails", end=True)
        await flush()
        fail(future, task)
        await asyncio.gather(task, return_exceptions=True)
        assert await kept.take("a", 4) == ("first", 3)
        assert await kept.take("a") == ("first", 7)

    async def test_start(self, kept, fail):
        """A start that fails leaves nothing, and takes no place."""
        future, task = kept.hold("a", "fails", start=True)
        await flush()
        fail(future, task)
        await asyncio.gather(task, return_exceptions=True)
        assert kept.count == 0
        await kept.assert_none("a")
        assert await kept.take("a", start=True) == ("first", 0)

    async def test_start_before_others(self, kept, fail):
        """Those that wait behind such a start are told to START."""
        held = [kept.hold("a", number, start=not number) for number in range(3)]
        await flush()
        fail(*held[0])
        told = await asyncio.gather(*(t for _, t in held), return_exceptions=True)
        assert [type(one) for one in told[1:]] == [InvalidRequest] * 2
        assert kept.count == 0

    async def test_anew(self, kept, fail):
        """A failed request to begin anew changes nothing either: the sequence before
        it goes on, with its model."""
        await kept.take("a", 3, start=True)
        future, task = kept.hold("a", "fails", model="second", start=True)
        await flush()
        fail(future, task)
        await asyncio.gather(task, return_exceptions=True)
        assert await kept.take("a", model="second") == ("first", 3)


class TestLimits:
    async def test_number(self):
        """No more are kept than streams may be open: one more is asked to come again,
        and has a place as soon as one ends; those that are kept go on."""
        kept = Kept(max_streams=2)
        for key in ("a", "b"):
            await kept.take(key, start=True)
        with pytest.raises(TooManyStreams) as caught:
            await kept.take("c", start=True)
        assert caught.value.headers["Retry-After"]
        await kept.assert_none("c")
        assert kept.count == 2
        assert await kept.take("a", start=True) == ("first", 0)  # anew: no more
        assert await kept.take("b", end=True) == ("first", 1)
        assert await kept.take("c", start=True) == ("first", 0)

    async def test_none_at_all(self):
        """With a limit of 0 none is kept."""
        kept = Kept(max_streams=0)
        with pytest.raises(TooManyStreams):
            await kept.take("a", start=True)

    async def test_waiters(self, kept):
        """Only so many requests of one id may wait: one more is asked to come again
        and changes nothing, while other ids are served."""
        held = [kept.hold("a", n, start=not n) for n in range(MAX_WAITING)]
        await flush()
        for start in (False, True):
            with pytest.raises(Overloaded) as caught:
                await kept.take("a", start=start)
            assert caught.value.headers["Retry-After"] == "1"
        assert await kept.take("b", start=True) == ("first", 0)
        for future, _ in held:
            future.set_result(1)
        await asyncio.gather(*(task for _, task in held))
        assert kept.entered == list(range(MAX_WAITING))
        assert await kept.take("a") == ("first", MAX_WAITING)

    async def test_idle(self, monkeypatch):
        """One that is idle for too long is forgotten, and has freed its place; one
        with a request under way is not."""
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
        await kept.take("c", start=True)  # the looks begin again
        await wait_until(lambda: kept.count == 0, "and one that came later")

    async def test_gauge(self, kept):
        """The metrics tell how many are kept."""
        counts = [kept.count]
        for key in (1, 2, 3):
            await kept.take(key, start=True)
            counts.append(kept.count)
        await kept.take(2, end=True)
        assert [*counts, kept.count] == [0, 1, 2, 3, 2]


async def test_fails_late(kept):
    """A request that fails when its new state was there already changes nothing
    either."""
    await kept.take("a", 3, start=True)
    with suppress(OSError):
        async with kept.turn("a") as session:
            session.state = session.state.after(1, b"")
            raise OSError
    assert await kept.take("a") == ("first", 3)


async def test_begin(kept):
    """A sequence begins where every one does."""
    async with kept.turn("a", start=True) as session:
        assert session.state == INITIAL_STATE
