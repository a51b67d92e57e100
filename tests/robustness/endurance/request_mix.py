"""The requests of the soak: valid ones in every format, invalid ones, refusals, streams."""

import gzip
import json
import random
from dataclasses import dataclass

import numpy as np

from bench.http_connection import post_request
from bench.serving import protocols
from tests.robustness.harness import reference
from tests.robustness.harness.reference import ReferenceRequest
from tests.robustness.harness.refusal import Refusal
from tests.robustness.harness.traffic import with_fields
from tests.robustness.inputs import refusal_table

MODELS = ("digits", "letters", "letters-live", "vowels")
STREAM_MODEL = "letters-live"
# Percent of all requests; the rest is streams.
VALID, INVALID, CANCELLED = 80, 8, 4
OTHER_SHARE = 0.3  # of the invalid ones; the others are of the refusal table
PADDED_SHARE = 0.2  # of the refusal table's have long heads
FORMATS = {"native": 50, "gzip": 16, "v1": 17, "v2 binary": 17}  # percent of valid ones
LONGEST, LONG = 120, 2000  # steps; one of a hundred is long
COUNT = 400  # different valid requests
GZIP = b"Content-Encoding: gzip\r\n"


@dataclass(frozen=True, slots=True)
class MixedRequest:
    """A request, and the statuses that are correct."""

    kind: str
    data: bytes
    statuses: frozenset[int] = frozenset({200})
    reference: ReferenceRequest | None = None  # its response can be compared


def valid_requests(seed: int = 0) -> list[MixedRequest]:
    """Requests in every format, to every model, of all lengths."""
    rng = np.random.default_rng(seed)
    choice = random.Random(seed)
    requests = []
    for place in range(COUNT):
        name = MODELS[place % len(MODELS)]
        steps = int(rng.integers(1, LONGEST + 1)) if place % 100 else LONG
        frames = reference.model(name).sequence(rng, steps)
        (format,) = choice.choices(list(FORMATS), list(FORMATS.values()))
        requests.append(_formatted(format, name, frames))
    return requests


def _formatted(format: str, name: str, frames: np.ndarray) -> MixedRequest:
    if format == "v1":
        return MixedRequest(format, protocols.tf_serving(frames, name))
    if format == "v2 binary":
        data = protocols.open_inference_binary(frames.astype(np.float32), name)
        return MixedRequest(format, data)
    request = reference.request_for(name, frames)
    if format == "gzip":
        return MixedRequest(format, _gzip_request(request.path, gzip.compress(request.body, 1)))  # fmt: skip
    return MixedRequest(format, request.http_request, reference=request)


def invalid_requests() -> list[MixedRequest]:
    """Requests that are refused, none with 5xx."""
    rows = [[0.5] * 28] * 3
    body = json.dumps({"sequences": [rows], "model": "digits"}).encode()
    long = json.dumps({"sequences": [[[0] * 28] * 10_001]}).encode()
    unknown_model = body.replace(b"digits", b"no such model")
    data = {
        post_request("/classify", body[:-2]): {400},
        post_request("/classify", b"\xff\xfe"): {400},
        post_request("/classify", b"[" * 1000): {400, 422},
        post_request("/classify", body.replace(b"0.5", b"NaN", 1)): {400},
        post_request("/classify", body.replace(b"0.5", b"1e999", 1)): {400, 422},
        post_request("/classify", body.replace(b"0.5", b'"a"', 5)): {422},
        post_request("/classify", body.replace(b"0.5, ", b"", 1)): {422},
        post_request("/classify", unknown_model): {404, 422},
        post_request("/classify", b"{}"): {422},
        post_request("/classify", long): {413},
        post_request("/nowhere", body): {404},
        post_request("/models", b""): {405},
        post_request("/v1/models/no:predict", body): {404},
        post_request("/v2/models/digits/infer", b"{"): {400},
        _gzip_request("/classify", gzip.compress(body)[:-9]): {400},
    }
    return [MixedRequest("invalid", d, frozenset(s)) for d, s in data.items()]


def refusals() -> list[Refusal]:
    """The entries of the refusal table for default settings, without a timeout."""
    table = refusal_table.table()
    return [r for r in table if r.stage == refusal_table.OPEN and not r.slow]


def streams(seed: int = 0, count: int = 20) -> list[list[bytes]]:
    """Streams as lists of messages, the last of which ends it."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        model = reference.model(STREAM_MODEL)
        frames = model.sequence(rng, int(rng.integers(2, 12)))
        messages = [json.dumps({"frames": [row.tolist()]}).encode() for row in frames]
        result.append([*messages, b'{"end": true}'])
    return result


def _gzip_request(path: str, body: bytes) -> bytes:
    return with_fields(post_request(path, body), GZIP)
