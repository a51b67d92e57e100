"""Callers that wait, go, or have no more time."""

import asyncio
import math
import time

import pytest
from starlette.requests import ClientDisconnect

from service.errors import DeadlineExceeded, InvalidHeader
from service.http import deadlines as module
from service.http.deadlines import HEADER, RequestDeadlines, requested_deadline
from tests.service.http.test_body import Caller
from tests.support.servers import SECONDS

pytestmark = pytest.mark.anyio


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


class Served:
    """A caller that waits for its answer."""

    def __init__(self, callers, until=math.inf):
        self.caller, self.until = Caller(), until
        self.answer = asyncio.get_running_loop().create_future()
        self.cancelled = False
        self._callers = callers
        self.task = asyncio.create_task(self._serve())

    async def _serve(self):
        with self._callers.enforce({}, self.caller.receive, self.until):
            try:
                answer = await self.answer
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        await turns(5)  # it is sent
        return answer

    async def watched(self):
        """Return when it is noticed if the caller goes."""
        async with asyncio.timeout(SECONDS):
            while not self.caller.asked:
                await asyncio.sleep(0.001)

    async def ends(self):
        """What becomes of it."""
        async with asyncio.timeout(SECONDS):
            (outcome,) = await asyncio.gather(self.task, return_exceptions=True)
        return outcome


@pytest.fixture
def callers():
    return RequestDeadlines(SECONDS)


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "WATCH_AFTER_SECONDS", 0.005)


class TestWaiting:
    async def test_quick(self, callers):
        """A caller whose answer is there soon is never watched."""
        for number in range(100):
            served = Served(callers)
            await turns(2)
            served.answer.set_result(number)
            assert await served.ends() == number
            assert served.caller.asked == 0

    @pytest.mark.usefixtures("_impatient")
    async def test_stays(self, callers):
        """One that stays gets its answer, however late."""
        served = Served(callers)
        await served.watched()
        served.answer.set_result(5)
        assert await served.ends() == 5
        assert not served.cancelled

    @pytest.mark.usefixtures("_impatient")
    async def test_goes(self, callers):
        """What is awaited for one that goes is cancelled, and nothing is sent."""
        served = Served(callers)
        await served.watched()
        served.caller.go()
        assert isinstance(await served.ends(), ClientDisconnect)
        assert served.cancelled
        assert served.answer.cancelled()

    @pytest.mark.usefixtures("_impatient")
    async def test_goes_early(self, callers):
        """So it is where it goes before anybody looks."""
        served = Served(callers)
        served.caller.go()
        assert isinstance(await served.ends(), ClientDisconnect)
        assert served.cancelled

    @pytest.mark.usefixtures("_impatient")
    async def test_only_that_one(self, callers):
        """Of many that wait, whenever they came, each that goes is noticed, and only
        those."""
        served = []
        for number in range(40):
            served.append(Served(callers))
            if number % 8 == 0:
                await asyncio.sleep(0.003)
        for number, one in enumerate(served):
            await one.watched()
            if number % 3 == 0:
                one.caller.go()
        for number, one in enumerate(served):
            if number % 3 == 0:
                assert isinstance(await one.ends(), ClientDisconnect)
        for number, one in enumerate(served):
            if number % 3:
                assert not one.cancelled
                one.answer.set_result(number)
                assert await one.ends() == number

    @pytest.mark.usefixtures("_impatient")
    async def test_after_a_rest(self, callers):
        """One that comes after all others have been answered is watched too."""
        for _ in range(3):
            served = Served(callers)
            await served.watched()
            served.caller.go()
            assert isinstance(await served.ends(), ClientDisconnect)
            await asyncio.sleep(0.02)

    @pytest.mark.usefixtures("_impatient")
    async def test_cancelled_from_outside(self, callers):
        """Where the service itself cancels a request, that is no caller's going."""
        for go in (False, True):
            served = Served(callers)
            await served.watched()
            served.task.cancel()
            if go:
                served.caller.go()
            assert isinstance(await served.ends(), asyncio.CancelledError)

    @pytest.mark.usefixtures("_impatient")
    async def test_fails(self, callers):
        """A failure is passed on as it is."""
        for watched in (False, True):
            served = Served(callers)
            if watched:
                await served.watched()
            served.answer.set_exception(KeyError("x"))
            assert isinstance(await served.ends(), KeyError)

    @pytest.mark.usefixtures("_impatient")
    @pytest.mark.parametrize("late", range(-4, 5))
    async def test_in_the_same_moment(self, callers, late):
        """One that goes in the moment in which its answer is there harms nothing: the
        answer is sent, or it has gone; what comes after is never cancelled."""
        served = Served(callers)
        await served.watched()
        if late < 0:
            served.answer.set_result(5)
            await turns(-late)
            served.caller.go()
        else:
            served.caller.go()
            await turns(late)
            if not served.answer.done():
                served.answer.set_result(5)
        outcome = await served.ends()
        assert outcome == 5 or isinstance(outcome, ClientDisconnect)


class TestDeadline:
    @pytest.mark.parametrize("seconds", [0, 0.01, 0.1])
    async def test_late(self, callers, seconds):
        """Work whose time is up is cancelled, and its caller told so."""
        served = Served(callers, time.perf_counter() + seconds)
        assert isinstance(await served.ends(), DeadlineExceeded)
        assert served.cancelled

    async def test_of_the_service(self):
        """So it is with the time that the service gives, where the caller's is
        longer."""
        served = Served(RequestDeadlines(0.01), time.perf_counter() + SECONDS)
        assert isinstance(await served.ends(), DeadlineExceeded)

    async def test_in_time(self, callers):
        """What is answered in time is left alone, also later."""
        served = Served(callers, time.perf_counter() + 0.02)
        await turns(2)
        served.answer.set_result(5)
        assert await served.ends() == 5
        await asyncio.sleep(0.05)
        assert not served.cancelled


def scope(*values):
    headers = [(HEADER.lower().encode(), value) for value in values]
    return {"headers": headers, "state": {"started": 100.0}}


class TestAsked:
    def test_header(self):
        """The header has milliseconds from the head of the request on."""
        assert requested_deadline(scope()) == math.inf
        assert requested_deadline(scope(b"1500")) == 101.5
        assert requested_deadline(scope(b"86400000")) == 86_500

    @pytest.mark.parametrize(
        "text",
        [b"", b"0", b"-1", b"1.5", b"1e3", b" 5", b"5s", b"86400001", b"9" * 5_000]
        + [b"\xb2", b"\xff", b"NaN"],
    )
    def test_is_none(self, text):
        """Anything else is refused, and what it must be is said."""
        with pytest.raises(InvalidHeader, match="1 to 86400000"):
            requested_deadline(scope(text))
