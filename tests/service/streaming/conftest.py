"""Fixtures that the tests of streams share."""

from contextlib import ExitStack

import pytest

from tests.support.streams import (
    CountingStream,
    NdjsonStream,
    WebSocketStream,
    counting,
    release_engines,
    wait_closed,
)

LIMITS = {"max_steps": 20, "max_cells": 60, "queue_steps": 20}
PAIRS = [
    pytest.param((WebSocketStream, "classify"), id="websocket"),
    pytest.param((NdjsonStream, "label"), id="ndjson"),
]


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """A service with fake engines for each task."""
    folder = tmp_path_factory.mktemp("counted")
    with ExitStack() as stack:
        yield {
            task: stack.enter_context(counting(folder / task, task, **LIMITS))
            for task in ("classify", "label")
        }


class Opener:
    """Opens streams over one transport to the service of one task."""

    def __init__(self, kind, service, stack):
        self.kind, self.service, self._stack = kind, service, stack

    def __call__(self, first=7):
        """A stream whose sequence has this first value."""
        stream = self._stack.enter_context(self.kind(self.service.url, "model=made"))
        return CountingStream(stream, first, self.service.task)


@pytest.fixture(params=PAIRS)
def opened(request, services):
    """Each transport, with one of the tasks."""
    kind, task = request.param
    with ExitStack() as stack:
        yield Opener(kind, services[task], stack)
        release_engines(services[task])
    wait_closed(services[task], "made")
