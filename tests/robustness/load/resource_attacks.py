"""Attacks on the memory and on the event loop, at ten times the size that hurt."""

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.raw_connection import Exchange, frame
from tests.robustness.harness.reference import Question
from tests.robustness.harness.refusal import handshake, http
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.traffic import headed
from tests.robustness.load.attack_runner import (
    FIELD,
    NETWORK,
    Attack,
    attacked,
    settings,
)

LARGE_STEPS = 700  # whose body has more than 64 KiB
# What these attackers have computed takes its turns with what the others have.
TURNS_MS = 1000.0
SEQUENCE = "an honest sequence"


class Packed(Question):
    """A question whose body is compressed."""

    @property
    def bytes(self) -> bytes:
        request = reference.request(self.path, gzip.compress(self.body, 1))
        return headed(request, b"Content-Encoding: gzip\r\n")


def packed() -> tuple[Question, ...]:
    """Small questions, compressed."""
    plain = reference.some(NETWORK, 100, 60)
    return tuple(Packed(one.path, one.body, one.answer, one.steps) for one in plain)


def large() -> tuple[Question, ...]:
    """Questions with bodies that are read in another process."""
    rng, network = np.random.default_rng(0), reference.alone(NETWORK)
    frames = [network.sequence(rng, LARGE_STEPS) for _ in range(10)]
    made = tuple(reference.ask(NETWORK, one) for one in frames)
    assert all(len(one.body) > 2**16 for one in made)
    return made


def _run(tally: Tally, factor: int, attack: Attack) -> None:
    with serving(tally, **settings()) as service:
        attacked(tally, service, attack, factor)


@row("M1", "attack: pipelined requests without a key, unread", full=10, fast=1)
def pipelined(tally: Tally, factor: int) -> None:
    seconds = 4 if factor == 1 else 20
    _run(tally, factor, Attack("pipelined", 60, seconds, key=False))


@row("M2", "attack: small bodies, answers of 400,000 texts", full=10)
def texts(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("texts", 4, 20))


@row("M3", "attack: long answers of streams, unread", full=10)
def unread_streams(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("unread_streams", 80, 60, worse_ms=TURNS_MS))


@row("M4", "attack: 7 of 8 MiB of a body, and nothing more", full=10)
def half_bodies(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("half_bodies", 150, 25))


@row("M5", "attack: bodies of 6 MiB, one after another", full=10)
def large_bodies(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("large_bodies", 1, 20))


@row("M6", "attack: WebSockets without a key, heads of 12 KB", full=10)
def handshakes(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("handshakes", 10_000, 6, key=False, longer=True))


@row("M7", "attack: idle WebSockets after a message of 1 MiB", full=10)
def idle_sockets(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("idle_sockets", 60, 60, worse_ms=TURNS_MS))


@row("M8", "attack: a frame of a WebSocket in single bytes", full=10)
def single_bytes(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("single_bytes", 40, 20))


@row("M9", "attack: large answers, read at 12 KB/s; others ask in gzip", full=10)
def slow_readers(tally: Tally, factor: int) -> None:
    attack = Attack("slow_readers", 16, 60, asked=packed(), worse_ms=TURNS_MS)
    _run(tally, factor, attack)


@row("M10", "attack: large bodies, all wrong; others send good ones", full=10)
def wrong_bodies(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("wrong_bodies", 4, 20, asked=large()))


@row("M11", "attack: unknown paths of /v1 and /v2, heads of 12 KB", full=10)
def unknown_paths(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("unknown_paths", 10_000, 6, longer=True))


@row("M12", "attack: streams and sequences begun by one key", full=10)
def starts(tally: Tally, factor: int) -> None:
    """Another key still gets its own."""
    with serving(tally, **settings()) as service, _begun(tally, service):
        attacked(tally, service, Attack("starts", 2_000, 30), factor)


@row("M13", "attack: trailers without end", full=10)
def trailers(tally: Tally, factor: int) -> None:
    _run(tally, factor, Attack("trailers", 12, 20))


@contextmanager
def _begun(tally: Tally, service: Service) -> Iterator[None]:
    """An honest caller who begins a stream and a sequence each second meanwhile."""
    over = threading.Event()
    told: list[bytes] = []

    def begin() -> None:
        while not over.wait(1):
            told.extend(asyncio.run(_both(service.port)))

    beginning = threading.Thread(target=begin)
    beginning.start()
    try:
        yield
    finally:
        over.set()
        beginning.join()
        for one in told:
            fine = b'"label"' in one or b'"probabilities"' in one
            tally.check(fine, f"another key gets {one[:200]!r}")
        tally.figure("begun by another key", len(told))


async def _both(port: int) -> list[bytes]:
    """The answers to a stream's first message, and to a sequence's."""
    fields, told = (FIELD.strip(),), []
    step = [0.5] * 28
    tensor = {"name": "frames", "shape": [1, 1, 28], "datatype": "FP32", "data": step}
    flags = {"sequence_id": SEQUENCE, "sequence_start": True, "sequence_end": True}
    asked = json.dumps({"parameters": flags, "inputs": [tensor]}).encode()
    message = frame(json.dumps({"frames": [step]}).encode())
    for request, then in (
        (handshake("/stream?model=digits", *fields), message),
        (http("POST", "/v2/models/digits/infer", asked, *fields), b""),
    ):
        answer = b"nothing"
        with suppress(OSError, TimeoutError):
            exchange = await Exchange.open(port)
            async with asyncio.timeout(10):
                answer = await exchange.ask(request, then)
            exchange.close()
        told.append(answer)
    return told
