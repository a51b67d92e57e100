"""One bad sequence among good ones: it alone is refused."""

import asyncio

import numpy as np

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.burst import Reply, fire
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import serving

GOOD = 31
STEPS = 30
NETWORK = "digits"
STALL_SECONDS = 2
# What the bad one holds, and the status that it gets.
HUGE, EXTREME = "huge numbers", "extreme numbers"
POISONS = {
    HUGE: (1e30, {200, 422}),  # ONNX Runtime has an answer still
    EXTREME: (3e38, {422}),
    "an exception": (fault_injection.RAISES, {500}),
    "the worker's end": (fault_injection.ABORTS, {500}),
    "a call without end": (fault_injection.HANGS, {500, 504}),
}


@row("B7", "one poison among 31 good sequences, each a request", full=100, fast=5)
def isolated(tally: Tally, amount: int) -> None:
    # Mostly numbers; some exceptions; what costs a worker, a few times.
    kinds = [EXTREME] * amount
    for name, first, every in zip(
        POISONS, (0, 2, 1, 3, 14), (4, 4, 5, 20, 40), strict=True
    ):
        kinds[first::every] = [name] * len(kinds[first::every])
    good = reference.some(NETWORK, GOOD * 4, 60)
    with serving(
        tally,
        told=True,
        module="tests.robustness.harness.fault_injection",
        bundles=reference.folder(NETWORK),
        stall_seconds=STALL_SECONDS,
        workers=2,
    ) as service:
        slowest = 0.0
        for turn, kind in enumerate(kinds):
            own = [good[(turn * 7 + place) % len(good)] for place in range(GOOD)]
            requests = [one.bytes for one in own]
            place = turn % (GOOD + 1)
            requests.insert(place, poison(POISONS[kind][0]))
            replies = asyncio.run(fire(service.port, requests))
            bad = replies.pop(place)
            told = f"{kind}: the poison got {bad.status}"
            tally.check(bad.status in POISONS[kind][1], told)
            for question, reply in zip(own, replies, strict=True):
                _alone(tally, kind, question, reply)
            slowest = max(slowest, *(one.seconds for one in replies))
        tally.figure("slowest good answer s", slowest)
        tally.figure("workers replaced", service.metric("unrolled_worker_deaths_total"))


def poison(mark: float) -> bytes:
    """A request whose sequence holds it, with signs that no sum takes away."""
    frames = np.zeros((STEPS, reference.alone(NETWORK).metadata.input.features))
    frames[STEPS // 2] = mark * np.where(np.arange(frames.shape[1]) % 2, -1, 1)
    body = reference.body(NETWORK, frames)
    return reference.request(reference.path(NETWORK), body)


def _alone(tally: Tally, kind: str, question: reference.Question, reply: Reply) -> None:
    if tally.check(reply.status == 200, f"{kind}: a good one got {reply.status}"):
        off = question.difference(reply.body)
        tally.check(off <= reference.EXACT, f"{kind}: a good one is off by {off:.1e}")
