"""Request deadlines and client disconnects, from the header to the worker."""

import asyncio
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.requests import ClientDisconnect

from service.errors import DeadlineExceeded, InvalidHeader
from service.http import deadlines as module
from service.http.deadlines import HEADER, RequestDeadlines, requested_deadline
from service.settings import Settings
from tests.service.http.test_body import Client
from tests.support.servers import SECONDS, GatedEngine, running, value, wait


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


class Request:
    """A request on another ASGI server, which waits for its result."""

    def __init__(self, deadlines, deadline=math.inf):
        self.client, self.deadline = Client(), deadline
        self.result = asyncio.get_running_loop().create_future()
        self.cancelled = False
        self._deadlines = deadlines
        self.task = asyncio.create_task(self._run())

    async def _run(self):
        with self._deadlines.enforce({}, self.client.receive, self.deadline):
            try:
                result = await self.result
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        await turns(5)  # it is sent
        return result

    async def watched(self):
        """Return when a disconnect would be noticed."""
        async with asyncio.timeout(SECONDS):
            while not self.client.received:
                await asyncio.sleep(0.001)

    async def outcome(self):
        """Its result, or its exception."""
        async with asyncio.timeout(SECONDS):
            (outcome,) = await asyncio.gather(self.task, return_exceptions=True)
        return outcome


@pytest.fixture
def deadlines():
    return RequestDeadlines(SECONDS)


@pytest.fixture
def _watch_soon(monkeypatch):
    monkeypatch.setattr(module, "WATCH_AFTER_SECONDS", 0.005)


@pytest.mark.anyio
@pytest.mark.usefixtures("_watch_soon")
class TestDisconnect:
    async def test_not_watched(self, deadlines, monkeypatch):
        """A request with a quick result is never watched."""
        monkeypatch.setattr(module, "WATCH_AFTER_SECONDS", 0.05)
        for number in range(100):
            request = Request(deadlines)
            await turns(2)
            request.result.set_result(number)
            assert await request.outcome() == number
            assert request.client.received == 0

    async def test_stays(self, deadlines):
        """A client that stays gets its result or its error, however late."""
        request = Request(deadlines)
        await request.watched()
        request.result.set_result(5)
        assert await request.outcome() == 5
        assert not request.cancelled
        for watched in (False, True):
            request = Request(deadlines)
            if watched:
                await request.watched()
            request.result.set_exception(KeyError("x"))
            assert isinstance(await request.outcome(), KeyError)

    async def test_disconnects(self, deadlines):
        """When a client disconnects, its work is cancelled; also when it does before it is
        watched, and after a time without requests."""
        for early in (False, True, False):
            request = Request(deadlines)
            if not early:
                await request.watched()
            request.client.disconnect()
            assert isinstance(await request.outcome(), ClientDisconnect)
            assert request.cancelled
            assert request.result.cancelled()
            await asyncio.sleep(0.02)

    async def test_only_that_one(self, deadlines):
        """Of many requests, whenever they came, only those are cancelled whose clients
        disconnect."""
        requests = []
        for number in range(40):
            requests.append(Request(deadlines))
            if number % 8 == 0:
                await asyncio.sleep(0.003)
        for number, request in enumerate(requests):
            await request.watched()
            if number % 3 == 0:
                request.client.disconnect()
        for request in requests[::3]:
            assert isinstance(await request.outcome(), ClientDisconnect)
        for number, request in enumerate(requests):
            if number % 3:
                assert not request.cancelled
                request.result.set_result(number)
                assert await request.outcome() == number

    async def test_cancelled_by_others(self, deadlines):
        """A cancellation by others is not taken for a disconnect."""
        for disconnects in (False, True):
            request = Request(deadlines)
            await request.watched()
            request.task.cancel()
            if disconnects:
                request.client.disconnect()
            assert isinstance(await request.outcome(), asyncio.CancelledError)
        deadline = time.perf_counter() + SECONDS
        scope = deadlines.enforce({}, Client().receive, deadline)

        async def run():
            with scope:
                await asyncio.sleep(SECONDS)

        task = asyncio.create_task(run())
        await turns(2)
        task.cancel()
        scope.check(deadline + 1)  # in the same turn
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_at_the_same_time(self, deadlines):
        """A disconnect at the moment of the result is harmless: the response is sent, or
        the client has gone; what follows is never cancelled."""
        for late in range(-4, 5):
            request = Request(deadlines)
            await request.watched()
            if late < 0:
                request.result.set_result(5)
                await turns(-late)
                request.client.disconnect()
            else:
                request.client.disconnect()
                await turns(late)
                if not request.result.done():
                    request.result.set_result(5)
            outcome = await request.outcome()
            assert outcome == 5 or isinstance(outcome, ClientDisconnect)


@pytest.mark.anyio
class TestDeadline:
    async def test_exceeded(self, deadlines):
        """Work is cancelled at its deadline: the client's, or the service's if that is
        earlier."""
        for seconds in (0, 0.01, 0.1):
            request = Request(deadlines, time.perf_counter() + seconds)
            assert isinstance(await request.outcome(), DeadlineExceeded)
            assert request.cancelled
        request = Request(RequestDeadlines(0.01), time.perf_counter() + SECONDS)
        assert isinstance(await request.outcome(), DeadlineExceeded)

    async def test_shortened(self, deadlines):
        """A deadline can be moved forward, but not back."""
        now = time.perf_counter()
        seen = []

        async def run():
            scope = deadlines.enforce({}, Client().receive, now + 10)
            with scope as deadline:
                seen.append(deadline)
                seen.append(scope.shorten(now + 20))
                seen.append(scope.shorten(now + 0.01))
                await asyncio.sleep(SECONDS)

        with pytest.raises(DeadlineExceeded):
            await asyncio.create_task(run())
        assert seen == [now + 10, now + 10, now + 0.01]

    async def test_in_time(self, deadlines):
        """A result before the deadline is not cancelled, nor is what follows."""
        request = Request(deadlines, time.perf_counter() + 0.02)
        await turns(2)
        request.result.set_result(5)
        assert await request.outcome() == 5
        await asyncio.sleep(0.05)
        assert not request.cancelled


def test_header():
    """The header has milliseconds from the request's head on, and is an error if not."""

    def scope(*values):
        headers = [(HEADER.lower().encode(), value) for value in values]
        return {"headers": headers, "state": {"started": 100.0}}

    assert requested_deadline(scope()) == math.inf
    assert requested_deadline(scope(b"1500")) == 101.5
    assert requested_deadline(scope(b"86400000")) == 86_500
    invalid = [b"", b"0", b"-1", b"1.5", b"1e3", b" 5", b"5s", b"86400001", b"NaN"]
    for text in [*invalid, b"9" * 5_000, b"\xb2", b"\xff"]:
        with pytest.raises(InvalidHeader, match="1 to 86400000"):
            requested_deadline(scope(text))


# --- over a real socket ----------------------------------------------------------

FRAME = [1, 2, 3]
TENSOR = {"name": "frames", "datatype": "FP32", "shape": [1, 3, 3], "data": FRAME * 3}
BODIES = {
    "/classify": json.dumps({"sequences": [[FRAME] * 3]}),
    "/v1/models/walks:predict": json.dumps({"instances": [[FRAME] * 3]}),
    "/v2/models/walks/infer": json.dumps({"inputs": [TENSOR]}),
}


@pytest.fixture(scope="module")
def gated(bundles):
    """A service with a gated engine."""
    settings = Settings(port=0, bundles=bundles / "walks", workers=1)
    with running(settings, load_engine=GatedEngine) as service:
        try:
            yield service
        finally:
            GatedEngine.reset()


def ask(service, path, **headers):
    return service.http.post(path, content=BODIES[path], headers=headers)


@pytest.mark.parametrize("path", BODIES)
def test_timeout(gated, path):
    """On every path, a request that is not answered by its deadline gets 504 and is not
    computed. With enough time it is answered; an invalid header is 400."""
    timeout = HEADER
    assert ask(gated, path, **{timeout: "60000"}).status_code == 200
    response = ask(gated, path, **{timeout: "soon"})
    assert response.status_code == 400
    assert timeout in response.text
    GatedEngine.reset()
    GatedEngine.gate.clear()
    labels = {"model": "walks"}
    dropped = "unrolled_dropped_sequences_total"
    before = value(gated.metrics(), dropped, **labels)
    with ThreadPoolExecutor(1) as executor:
        first = executor.submit(ask, gated, path)
        assert GatedEngine.entered.acquire(timeout=SECONDS)
        response = ask(gated, path, **{timeout: "100"})
        assert response.status_code == 504
        if path == "/classify":
            slug = "urn:unrolled:error:deadline-exceeded"
            assert response.json()["type"] == slug
        else:
            assert set(response.json()) == {"error"}
        GatedEngine.gate.set()
        assert first.result(SECONDS).status_code == 200
    wait(
        lambda: value(gated.metrics(), "unrolled_waiting_steps", **labels) == 0,
        "nothing waits",
    )
    assert not GatedEngine.entered.acquire(blocking=False)
    wait(
        lambda: value(gated.metrics(), dropped, **labels) == before + 1,
        "it was dropped",
    )


@pytest.mark.slow
def test_default_timeout(bundles):
    """Without a header, the setting applies."""
    settings = Settings(port=0, bundles=bundles / "walks", request_seconds=0.2)
    with running(settings, load_engine=GatedEngine) as service:
        try:
            GatedEngine.gate.clear()
            started = time.monotonic()
            assert ask(service, "/classify").status_code == 504
            assert time.monotonic() - started >= 0.2
        finally:
            GatedEngine.reset()


def test_would_be_late(gated):
    """A request that would wait too long is refused at once, with the time after which to
    try again."""
    assert ask(gated, "/classify").status_code == 200
    (model,) = gated.registry.models.values()
    queue = model.admission.wait_estimate
    queue._rate, queue.steps = 10.0, queue.steps + 100  # ten seconds
    queue.charge(-1, 100)  # of another caller
    # Even before its body is parsed.
    response = gated.http.post("/classify", content=b'{"sequences": [')
    assert response.status_code == 503
    response = ask(gated, "/classify")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 10
    queue._rate = 25.0  # four seconds, less than half of the timeout
    assert ask(gated, "/classify").status_code == 200
    queue._rate = 25.0
    response = ask(gated, "/classify", **{HEADER: "1000"})
    assert response.status_code == 503
    queue.steps -= 100
    queue.charge(-1, -100)
