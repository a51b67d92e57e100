"""Requests that have a time, from the header to the worker."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import SECONDS, running, value, wait

FRAME = [1, 2, 3]
ONE = json.dumps({"sequences": [[FRAME] * 3]})
PATHS = {
    "/classify": ONE,
    "/v1/models/walks:predict": json.dumps({"instances": [[FRAME] * 3]}),
    "/v2/models/walks/infer": json.dumps(
        {
            "inputs": [
                {
                    "name": "frames",
                    "datatype": "FP32",
                    "shape": [1, 3, 3],
                    "data": FRAME * 3,
                }
            ]
        }
    ),
}


class Gated(OnnxEngine):
    """An engine that waits at a gate."""

    gate = threading.Event()
    calls = entered = 0

    def step(self, frames, lengths, state):
        Gated.entered += 1
        assert self.gate.wait(SECONDS)
        Gated.calls += 1
        return super().step(frames, lengths, state)


@pytest.fixture
def gated(bundles):
    """A service whose only engine is at the gate."""
    Gated.gate.set()
    settings = Settings(port=0, bundles=bundles / "walks", workers=1)
    with running(settings, load_engine=Gated) as made:
        try:
            yield made
        finally:
            Gated.gate.set()


def ask(made, path, **headers):
    return made.http.post(path, content=PATHS[path], headers=headers)


@pytest.mark.parametrize("path", PATHS)
def test_late(gated, path):
    """A request that is not answered in the time of its header is told so, on every
    path, and what it asked is not computed."""
    Gated.gate.clear()
    labels, entered = {"model": "walks"}, Gated.entered
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, gated, path)
        wait(lambda: Gated.entered > entered, "the worker waits with it")
        response = ask(gated, path, **{"X-Request-Timeout-Ms": "100"})
        assert response.status_code == 504
        if path == "/classify":
            slug = "urn:unrolled:error:deadline-exceeded"
            assert response.json()["type"] == slug
        else:
            assert set(response.json()) == {"error"}
        calls = Gated.calls
        Gated.gate.set()
        assert first.result(SECONDS).status_code == 200
    wait(
        lambda: value(gated.metrics(), "unrolled_waiting_steps", **labels) == 0,
        "nothing waits",
    )
    assert Gated.calls == calls + 1
    dropped = "unrolled_dropped_sequences_total"
    wait(lambda: value(gated.metrics(), dropped, **labels) == 1, "it was dropped")


@pytest.mark.parametrize("path", PATHS)
def test_in_time(gated, path):
    """With time enough it is answered."""
    assert ask(gated, path, **{"X-Request-Timeout-Ms": "60000"}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_no_number(gated, path):
    """A header that is no number is refused before the body is read."""
    response = ask(gated, path, **{"X-Request-Timeout-Ms": "soon"})
    assert response.status_code == 400
    assert "X-Request-Timeout-Ms" in response.text


def test_of_the_service(bundles):
    """Where a caller says nothing, the setting counts."""
    Gated.gate.clear()
    settings = Settings(port=0, bundles=bundles / "walks", request_seconds=0.2)
    try:
        Gated.gate.set()
        with running(settings, load_engine=Gated) as made:
            Gated.gate.clear()
            begun = time.monotonic()
            assert ask(made, "/classify").status_code == 504
            assert time.monotonic() - begun >= 0.2
            Gated.gate.set()
    finally:
        Gated.gate.set()


def test_would_be_late(gated):
    """What would have to wait for longer than it may is refused at once, with the
    time after which to come again."""
    assert ask(gated, "/classify").status_code == 200
    (model,) = gated.registry.models.values()
    queue = model.admission.wait_estimate
    queue._rate, queue.steps = 10.0, queue.steps + 100  # ten seconds
    queue.charge(-1, 100)  # of another caller
    response = ask(gated, "/classify")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 10
    queue._rate = 25.0  # four: less than half of those that requests have
    assert ask(gated, "/classify").status_code == 200
    queue._rate = 25.0
    response = ask(gated, "/classify", **{"X-Request-Timeout-Ms": "1000"})
    assert response.status_code == 503
    queue.steps -= 100
