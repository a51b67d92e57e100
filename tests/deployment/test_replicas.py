"""Two services behind nginx: a sequence goes on at either, and one that stops is missed
by nobody."""

import contextlib
import signal
import threading

import httpx
import numpy as np
import pytest

from service.client import Client
from tests.support.bundles import random_frames
from tests.support.processes import serving
from tests.support.proxies import needs_nginx, proxied
from tests.support.servers import SECONDS, value, wait

KEY = "k" * 64
PARTS = 4
NAME = "http_server_request_duration_seconds_count"


@pytest.fixture
def replicas(bundles, tmp_path):
    """Two services, and the address of nginx before them."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            settings = {"UNROLLED_STATE_KEY": KEY, "UNROLLED_DRAIN_SECONDS": "2"}
            flags = ["--bundles", bundles, "--workers", "1"]
            started = stack.enter_context(serving(tmp_path / name, *flags, **settings))
            wait(lambda at=started: at.answers("/readyz"), "it is ready")
            made.append(started)
        one, two = (httpx.URL(started.url).port for started in made)
        (tmp_path / "nginx").mkdir()
        changes = {
            "unrolled:8000": f"127.0.0.1:{one};\nserver 127.0.0.1:{two}",
            "rate=500r/s": "rate=100000r/s",  # we come from one address
        }
        url = stack.enter_context(proxied(tmp_path / "nginx", 0, **changes))
        yield made, url


def answered(started) -> float:
    told = httpx.get(started.url + "/metrics").text
    return value(told, NAME, method="POST", route="/label", status="200")


@needs_nginx
def test_states_go_anywhere(replicas):
    """Each part of a sequence is answered by whichever has the least to do, and the
    answers are those of the whole."""
    made, url = replicas
    rng = np.random.default_rng(5)
    with Client(url) as client:
        for _ in range(10):
            frames = random_frames(rng, 12)
            (whole,) = client.label([frames], model="tags").predictions
            state, told = None, []
            for part in np.split(frames, PARTS):
                answer = client.label(
                    [part], model="tags", states=[state], return_state=True
                )
                (prediction,) = answer.predictions
                state = prediction.state
                told.extend(prediction.probabilities)
            np.testing.assert_allclose(told, whole.probabilities, atol=1e-5)
    counts = [answered(one) for one in made]
    assert sum(counts) == 10 * (PARTS + 1)
    assert min(counts) > 0


@needs_nginx
def test_one_stops(replicas):
    """While one is told to stop, drains and ends, every request is answered."""
    (first, second), url = replicas
    body = {"model": "tags", "sequences": [[[1.0, 2.0, 3.0]]]}
    statuses, stop = [], threading.Event()

    def ask():
        with httpx.Client(timeout=SECONDS) as client:
            while not stop.is_set():
                statuses.append(client.post(url + "/label", json=body).status_code)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for one in askers:
        one.start()
    wait(lambda: answered(first) > 20, "it is asked")
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(SECONDS) == 0
    before = answered(second)
    wait(lambda: answered(second) > before + 100, "the other goes on")
    stop.set()
    for one in askers:
        one.join(SECONDS)
    assert set(statuses) == {200}
