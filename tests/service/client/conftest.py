"""Each kind of client, behind the methods of the blocking one, and its service."""

import inspect
from contextlib import ExitStack
from functools import partial

import anyio.from_thread
import pytest

from service.client import AsyncClient, Client, retries
from service.client import stream as client_stream
from tests.support.streams import counting, release_engines, wait_closed


class Blocking:
    """Blocking clients and streams."""

    name = "blocking"

    def __init__(self):
        self._stack = ExitStack()

    def client(self, *arguments, **options):
        return self._stack.enter_context(Client(*arguments, **options))

    def stream(self, client, model, **options):
        return self._stack.enter_context(client.stream(model, **options))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()


class Async(Blocking):
    """Clients and streams for asyncio, on an event loop in a thread."""

    name = "async"

    def __init__(self):
        super().__init__()
        started = anyio.from_thread.start_blocking_portal()
        self._portal = self._stack.enter_context(started)

    def client(self, *arguments, **options):
        client = self._portal.call(partial(AsyncClient, *arguments, **options))
        return self._blocked(client)

    def stream(self, client, model, **options):
        return self._blocked(client.stream(model, **options))

    def _blocked(self, asynchronous):
        self._stack.callback(self._portal.call, asynchronous.close)
        return Blocked(asynchronous, self._portal)


class Blocked:
    """An `AsyncClient` or `AsyncStream` whose methods return when they are done."""

    def __init__(self, asynchronous, portal):
        self._asynchronous, self._portal = asynchronous, portal

    def __getattr__(self, name):
        attribute = getattr(self._asynchronous, name)
        if not inspect.iscoroutinefunction(attribute):
            return attribute
        return lambda *values, **options: self._portal.call(
            partial(attribute, *values, **options)
        )


@pytest.fixture(params=[Blocking, Async], ids=lambda kind: kind.name)
def kind(request):
    with request.param() as clients:
        yield clients


@pytest.fixture(autouse=True)
def set_delays(monkeypatch):
    """Sets the delays between reconnects by the first one; by default they are short."""

    def set_delays(first):
        delays = [0, *(first * 2**attempt for attempt in range(8))]
        monkeypatch.setattr(client_stream, "DELAYS", delays)

    set_delays(0.002)
    return set_delays


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """Requests are sent again soon."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.002)


@pytest.fixture(scope="module")
def _counted(tmp_path_factory):
    with counting(tmp_path_factory.mktemp("counted") / "bundles") as service:
        yield service


@pytest.fixture
def counted(_counted):
    """The service with a counting engine, and without streams."""
    wait_closed(_counted, "made")
    yield _counted
    release_engines(_counted)
