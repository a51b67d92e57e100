"""From the start to the first answer: what the probes say is true."""

import tempfile
import time
from pathlib import Path

import httpx

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import launch, serving

NETWORK = "digits"
STEPS = 28
LATER = 300  # requests that the first is compared with
LOAD_SECONDS = 1.0  # more for each engine, so that there is something to see
TIMER = 0.003  # below that a difference is noise


@row("C5", "probes from the start, and the first request", full=5)
def true_from_the_start(tally: Tally, amount: int) -> None:
    rng = reference.np.random.default_rng(0)
    frames = reference.alone(NETWORK).sequence(rng, STEPS)
    question = reference.ask(NETWORK, frames)
    for _ in range(amount):
        with tempfile.TemporaryDirectory() as folder:
            service = launch(
                Path(folder),
                module="tests.robustness.harness.fault_injection",
                injected={fault_injection.LOAD_SECONDS: LOAD_SECONDS},
            )
            try:
                _poll(tally, service, question)
            finally:
                service.stop()
    with serving(tally) as service, httpx.Client(base_url=service.url) as client:
        client.get("/livez")  # the client itself is warm
        took = [_took(tally, client, question) for _ in range(LATER)]
        steady = sorted(took[1:])[int(0.99 * LATER)]
        tally.check(
            took[0] <= max(1.5 * steady, steady + TIMER),
            f"the first {1000 * took[0]:.1f} ms, later p99 {1000 * steady:.1f}",
        )
        tally.figure("first ms", 1000 * took[0])
        tally.figure("later p99 ms", 1000 * steady)


def _poll(tally: Tally, service, question: reference.Question) -> None:
    """Both probes until it is ready; then it must be."""
    begun = time.monotonic()
    lived = ready = None
    early = set()
    with httpx.Client(base_url=service.url, timeout=1) as client:
        while ready is None and time.monotonic() < begun + 60:
            now = time.monotonic()
            try:
                alive = client.get("/livez").status_code
                if lived is None and alive == 200:
                    lived = now
                if lived is not None:
                    tally.check(alive == 200, f"/livez {alive} while loading")
                status = client.get("/readyz").status_code
                early.add(status)
                if status == 200:
                    ready = now
            except httpx.HTTPError:
                tally.check(lived is None, "/livez does not answer while loading")
            time.sleep(0.005)
        assert lived is not None, "it never lived"
        assert ready is not None, "it was never ready"
        waited = ready - lived
        tally.check(
            waited >= LOAD_SECONDS / 2, f"the port opened {waited:.1f} s before"
        )
        tally.check(early == {200, 503}, f"/readyz said {early}")
        answers = [
            client.post(path, content=reference.body(name, one)).status_code
            for name in ("digits", "letters", "letters-live", "vowels")
            for path in (reference.path(name),)
            for one in (
                reference.alone(name).sequence(reference.np.random.default_rng(1), 9),
            )
        ]
        tally.check(set(answers) == {200}, f"ready, and the models say {answers}")
        tally.figure("alive before ready s", waited)


def _took(tally: Tally, client: httpx.Client, question: reference.Question) -> float:
    begun = time.perf_counter()
    answer = client.post(question.path, content=question.body)
    seconds = time.perf_counter() - begun
    right = question.difference(answer.content) <= reference.EXACT
    tally.check(answer.status_code == 200 and right, f"status {answer.status_code}")
    return seconds
