"""Rows B7 and B8: each client gets the response to its own sequence, whatever others send."""

import asyncio
import itertools

import numpy as np

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.burst import send_all
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import serving
from tests.robustness.harness.traffic import Traffic

MODEL = "digits"
VALID = 31
POISON_STEPS = 30
STALL_SECONDS = 2
# A number in the poison sequence, the permitted statuses; first turn and every n-th.
POISONS = {
    "extreme numbers": (3e38, {422}, 0, 1),
    "huge numbers": (1e30, {200, 422}, 0, 4),  # ONNX Runtime still has an answer
    "an exception": (fault_injection.RAISES, {500}, 1, 5),
    "a worker's abort": (fault_injection.ABORTS, {500}, 3, 20),
    "a hanging call": (fault_injection.HANGS, {500, 504}, 14, 40),
}
CLIENTS, SEQUENCES_EACH = 64, 200
LONGEST = {"digits": 120, "letters": 60, "letters-live": 60, "vowels": 60}


def poison(number: float) -> bytes:
    """A request with this number in a whole frame, in signs that do not cancel out."""
    frames = np.zeros((POISON_STEPS, reference.model(MODEL).features))
    frames[POISON_STEPS // 2] = number * np.where(np.arange(frames.shape[1]) % 2, -1, 1)
    return reference.http_request(MODEL, frames)


@row("B7", "A poison sequence among 31 valid ones, each a request", full=100, fast=5)
def poison_sequences(tally: Tally, amount: int) -> None:
    """Only the poison is refused; the other responses are correct."""
    kinds = [""] * amount
    for name, (_, _, first, step) in POISONS.items():
        kinds[first::step] = [name] * len(kinds[first::step])
    valid = reference.requests(MODEL, VALID * 4, 60)
    settings = {"module": fault_injection.MODULE, "workers": 2}
    settings |= {"bundles": reference.bundle_folder(MODEL), "stall_seconds": STALL_SECONDS}  # fmt: skip
    with serving(tally, expect_tracebacks=True, **settings) as service:
        slowest = 0.0
        for turn, kind in enumerate(kinds):
            number, statuses, *_ = POISONS[kind]
            chosen = [valid[(turn * 7 + place) % len(valid)] for place in range(VALID)]
            requests = [request.http_request for request in chosen]
            place = turn % (VALID + 1)
            requests.insert(place, poison(number))
            replies = asyncio.run(send_all(service.port, requests))
            status = replies.pop(place).status
            tally.check(status in statuses, f"{kind}: the poison got {status}")
            for request, reply in zip(chosen, replies, strict=True):
                correct = request.is_correct(reply.status, reply.body)
                error = f"off by {request.difference(reply.body):.1e}"
                message = f"{kind}: a valid one got {reply.status}, {error}"
                tally.check(correct, message)
            slowest = max(slowest, *(reply.seconds for reply in replies))
        tally.figure("slowest valid response s", slowest)
        tally.figure("workers replaced", service.metric("unrolled_worker_deaths_total"))


@row("B8", "64 clients x 200 sequences of their own, four models", full=CLIENTS * SEQUENCES_EACH)  # fmt: skip
def no_crosstalk(tally: Tally, amount: int) -> None:
    """Every response is that to the client's own sequence."""
    each = amount // len(LONGEST)
    requests = [
        reference.requests(name, each, longest, seed=place)
        for place, (name, longest) in enumerate(LONGEST.items())
    ]
    mixed = list(itertools.chain(*zip(*requests, strict=True)))
    with serving(tally) as service:
        traffic = Traffic(service.port, mixed, CLIENTS, count=len(mixed) // CLIENTS)
        with traffic:
            traffic.join()
        traffic.check(tally)
        results = traffic.results
        worst = max((r.request.difference(r.body) for r in results), default=np.inf)
        tally.figure("worst difference", worst)
