"""What callers of all kinds send: good requests in every form, bad ones, streams."""

import gzip
import json
import random
from dataclasses import dataclass

import numpy as np

from bench.http_connection import request
from bench.serving import protocols
from tests.robustness.harness import reference, refusal_table
from tests.robustness.harness.reference import Question
from tests.robustness.harness.refusal import Refused

NETWORKS = ("digits", "letters", "letters-live", "vowels")
STREAMED = "letters-live"
# Of a hundred: the rest is streams.
GOOD, BAD, CANCELLED = 80, 8, 4
OTHERS = 0.3  # of the bad ones; the rest is of the table
PADDED = 0.2  # of those in the table have long heads
FORMS = {"native": 50, "gzip": 16, "v1": 17, "v2 binary": 17}  # of a hundred good ones
LONGEST, LONG = 120, 2000  # steps; one of a hundred is long
DISTINCT = 400


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the statuses that are right."""

    kind: str
    request: bytes
    statuses: frozenset[int] = frozenset({200})
    question: Question | None = None  # its answer can be compared


def good(seed: int = 0) -> list[Asked]:
    """In every form, of every network and length."""
    rng = np.random.default_rng(seed)
    draw = random.Random(seed)
    made = []
    for place in range(DISTINCT):
        name = NETWORKS[place % len(NETWORKS)]
        steps = int(rng.integers(1, LONGEST + 1)) if place % 100 else LONG
        frames = reference.alone(name).sequence(rng, steps)
        (form,) = draw.choices(list(FORMS), list(FORMS.values()))
        made.append(_formed(form, name, frames))
    return made


def _formed(form: str, name: str, frames: np.ndarray) -> Asked:
    if form == "v1":
        return Asked(form, protocols.rows(frames, name))
    if form == "v2 binary":
        return Asked(form, protocols.binary(frames.astype(np.float32), name))
    question = reference.ask(name, frames)
    if form == "gzip":
        packed = gzip.compress(question.body, 1)
        return Asked(form, _with("Content-Encoding: gzip", question.path, packed))
    return Asked(form, question.bytes, question=question)


def bad() -> list[Asked]:
    """Each is refused, none with a 5xx."""
    rows = [[0.5] * 28] * 3
    body = json.dumps({"sequences": [rows], "model": "digits"}).encode()
    refused = {
        body[:-2]: {400},
        b"\xff\xfe": {400},
        b"[" * 1000: {400, 422},
        body.replace(b"0.5", b"NaN", 1): {400},
        body.replace(b"0.5", b"1e999", 1): {400, 422},
        body.replace(b"0.5", b'"a"', 5): {422},
        body.replace(b"0.5, ", b"", 1): {422},
        body.replace(b"digits", b"no such model"): {404, 422},
        b"{}": {422},
        json.dumps({"sequences": [[[0] * 28] * 10_001]}).encode(): {413},
    }
    made = [
        Asked("bad", request("/classify", b), frozenset(s)) for b, s in refused.items()
    ]
    made.append(Asked("bad", request("/nowhere", body), frozenset({404})))
    made.append(Asked("bad", request("/models", b""), frozenset({405})))
    made.append(Asked("bad", request("/v1/models/no:predict", body), frozenset({404})))
    made.append(
        Asked("bad", request("/v2/models/digits/infer", b"{"), frozenset({400}))
    )
    packed = gzip.compress(body)[:-9]
    broken = _with("Content-Encoding: gzip", "/classify", packed)
    made.append(Asked("bad", broken, frozenset({400})))
    return made


def refused() -> list[Refused]:
    """All that a service refuses as it is, at once."""
    return [
        one
        for one in refusal_table.table()
        if one.at == refusal_table.OPEN and not one.slow
    ]


def streams(seed: int = 0, count: int = 20) -> list[list[bytes]]:
    """Of each stream its messages, the last of which is the end."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        frames = reference.alone(STREAMED).sequence(rng, int(rng.integers(2, 12)))
        lines = [json.dumps({"frames": [row.tolist()]}).encode() for row in frames]
        made.append([*lines, b'{"end": true}'])
    return made


def _with(field: str, path: str, body: bytes) -> bytes:
    first, _, rest = request(path, body).partition(b"\r\n")
    return first + f"\r\n{field}\r\n".encode() + rest
