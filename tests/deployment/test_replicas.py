"""Two replicas behind nginx: both continue any sequence, and one may stop at any time."""

import contextlib
import signal
import threading

import httpx
import numpy as np
import pytest

from service.client import Client
from tests.deployment.nginx import needs_nginx, proxied
from tests.support.bundles import random_frames
from tests.support.processes import serving
from tests.support.servers import SECONDS, value, wait

KEY = "k" * 64
PARTS = 4
METRIC = "http_server_request_duration_seconds_count"


pytestmark = [needs_nginx, pytest.mark.slow]


@pytest.fixture
def replicas(bundles, tmp_path):
    """Two services, and the address of nginx in front of them."""
    with contextlib.ExitStack() as stack:
        services = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            settings = {"UNROLLED_STATE_KEY": KEY, "UNROLLED_DRAIN_SECONDS": "2"}
            flags = ["--bundles", bundles, "--workers", "1"]
            service = stack.enter_context(serving(tmp_path / name, *flags, **settings))
            wait(lambda s=service: s.answers("/readyz"), "it is ready")
            services.append(service)
        first, second = (httpx.URL(service.url).port for service in services)
        (tmp_path / "nginx").mkdir()
        changes = {
            "unrolled:8000": f"127.0.0.1:{first};\nserver 127.0.0.1:{second}",
            "rate=500r/s": "rate=100000r/s",  # all requests come from one address
        }
        url = stack.enter_context(proxied(tmp_path / "nginx", 0, **changes))
        yield services, url


def answered(service) -> float:
    text = httpx.get(service.url + "/metrics").text
    return value(text, METRIC, method="POST", route="/label", status="200")


def test_state_tokens(replicas):
    """Any replica continues a sequence from its token, with the answers of the whole."""
    services, url = replicas
    rng = np.random.default_rng(5)
    with Client(url) as client:
        for _ in range(10):
            frames = random_frames(rng, 12)
            (whole,) = client.label([frames], model="tags").predictions
            state, rows = None, []
            for part in np.split(frames, PARTS):
                answer = client.label(
                    [part], model="tags", states=[state], return_state=True
                )
                (prediction,) = answer.predictions
                state = prediction.state
                rows.extend(prediction.probabilities)
            np.testing.assert_allclose(rows, whole.probabilities, atol=1e-5)
    counts = [answered(service) for service in services]
    assert sum(counts) == 10 * (PARTS + 1)
    assert min(counts) > 0


def test_one_stops(replicas):
    """While one replica drains and stops, every request is answered."""
    (first, second), url = replicas
    body = {"model": "tags", "sequences": [[[1.0, 2.0, 3.0]]]}
    statuses, stop = [], threading.Event()

    def post():
        with httpx.Client(timeout=SECONDS) as client:
            while not stop.is_set():
                statuses.append(client.post(url + "/label", json=body).status_code)

    clients = [threading.Thread(target=post) for _ in range(4)]
    for thread in clients:
        thread.start()
    wait(lambda: answered(first) > 20, "it gets requests")
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(SECONDS) == 0
    before = answered(second)
    wait(lambda: answered(second) > before + 100, "the other continues")
    stop.set()
    for thread in clients:
        thread.join(SECONDS)
    assert set(statuses) == {200}
