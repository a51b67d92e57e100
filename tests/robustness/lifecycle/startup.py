"""Row C5: probes during startup, and the latency of the first request."""

import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, launch, serving

MODEL = "digits"
STEPS = 28
LATER = 300  # requests that the first is compared with
LOAD_SECONDS = 1.0  # added to each engine's load, so that startup can be observed
NOISE_SECONDS = 0.003


@row("C5", "Probes during startup, and the first request", full=5)
def startup(tally: Tally, amount: int) -> None:
    """`/livez` responds as soon as the port is open, `/readyz` only once every model
    answers, and the first request is as fast as later ones."""
    request = reference.request_of_length(MODEL, STEPS)
    for _ in range(amount):
        with tempfile.TemporaryDirectory() as folder:
            injected = {fault_injection.LOAD_SECONDS: LOAD_SECONDS}
            module = fault_injection.MODULE
            service = launch(Path(folder), module=module, injected=injected)
            try:
                _probe(tally, service)
            finally:
                service.stop()
    with serving(tally) as service, httpx.Client(base_url=service.url) as client:
        client.get("/livez")  # warm up the client
        first, *later = [_time(tally, client, request) for _ in range(LATER)]
        p99 = sorted(later)[int(0.99 * LATER)]
        message = f"the first {1000 * first:.1f} ms, later p99 {1000 * p99:.1f}"
        tally.check(first <= max(1.5 * p99, p99 + NOISE_SECONDS), message)
        tally.figure("first ms", 1000 * first)
        tally.figure("later p99 ms", 1000 * p99)


def _probe(tally: Tally, service: Service) -> None:
    """Probe until the service is ready; then every model must answer."""
    start = time.monotonic()
    alive = ready = None
    ready_statuses = set()
    with httpx.Client(base_url=service.url, timeout=1) as client:
        while ready is None and time.monotonic() < start + 60:
            now = time.monotonic()
            try:
                status = client.get("/livez").status_code
                if alive is None and status == 200:
                    alive = now
                if alive is not None:
                    tally.check(status == 200, f"/livez {status} while loading")
                status = client.get("/readyz").status_code
                ready_statuses.add(status)
                if status == 200:
                    ready = now
            except httpx.HTTPError:
                tally.check(alive is None, "/livez does not respond while loading")
            time.sleep(0.005)
        assert alive is not None, "it never lived"
        assert ready is not None, "it was never ready"
        seconds = ready - alive
        enough = seconds >= LOAD_SECONDS / 2
        tally.check(enough, f"the port opened only {seconds:.1f} s before")
        tally.check(ready_statuses == {200, 503}, f"/readyz got {ready_statuses}")
        rng = np.random.default_rng(1)
        for name in ("digits", "letters", "letters-live", "vowels"):
            body = reference.request_body(name, reference.model(name).sequence(rng, 9))
            path = reference.endpoint_path(name)
            status = client.post(path, content=body).status_code
            tally.check(status == 200, f"ready, and {name} responds with {status}")
        tally.figure("alive before ready s", seconds)


def _time(
    tally: Tally, client: httpx.Client, request: reference.ReferenceRequest
) -> float:
    start = time.perf_counter()
    response = client.post(request.path, content=request.body)
    seconds = time.perf_counter() - start
    status = response.status_code
    correct = request.is_correct(status, response.content)
    tally.check(correct, f"status {status}")
    return seconds
