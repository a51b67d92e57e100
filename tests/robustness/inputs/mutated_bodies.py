"""Rows A2, A11 and A12: thousands of valid bodies with random mutations, hostile texts, and
hostile records."""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import ENDPOINTS, Endpoint, check_refusal
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import (
    ConnectionClosed,
    MalformedResponse,
    Response,
)
from tests.support.bundles import cached, write_text_bundles

SEED = 20161117
HANGS = 1.0  # seconds
REFUSED_P99 = 0.05  # seconds
TOKENS = (
    b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"true", b"NaN", b"-", b"1e999", b"0.5",
    b'"a"', b"\\ud800", b"\x00", b"\xff", b"\xef\xbb\xbf", b"18446744073709551616", b"[[]]",
    b"-0", b"1e-400", b'"frames"', b'"model"', b'"state"', b'"top_k": 3', b'"return_state": true',
    b'"parameters": {"sequence_id": 7}', b'"shape": [1, 99999999, 28]', b"9" * 400, b"[" * 200,
)  # fmt: skip


class Attempt(NamedTuple):
    """A mutated body and the response to it."""

    number: int
    body: bytes
    response: Response | None  # None: none came, because of `error`
    seconds: float
    error: str = ""


def _flip(body: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)


def _insert(body: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(body))
    body[place:place] = rng.choice(TOKENS)


def _replace(body: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(body))
    body[place : place + rng.randint(1, 12)] = rng.choice(TOKENS)


def _cut(body: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(body))
    del body[place : place + rng.randint(1, 40)]


def _repeat(body: bytearray, rng: random.Random) -> None:
    place, size = rng.randrange(len(body)), rng.randint(1, 60)
    body[place:place] = body[place : place + size] * rng.randint(1, 20)


def _swap(body: bytearray, rng: random.Random) -> None:
    first, second = sorted(rng.sample(range(len(body)), 2))
    size = min(rng.randint(1, 20), second - first, len(body) - second)
    a, b = body[first : first + size], body[second : second + size]
    body[first : first + size], body[second : second + size] = b, a


def _change_type(body: bytearray, rng: random.Random) -> None:
    """Replace a number by another token."""
    places = [n for n in range(len(body)) if body[n : n + 3] == b"0.5"]
    if places:
        place = rng.choice(places)
        body[place : place + 3] = rng.choice(TOKENS)


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _insert, _replace, _cut, _repeat, _swap, _change_type,
)  # fmt: skip


def mutate(valid: bytes, rng: random.Random) -> bytes:
    """A body with one to three mutations."""
    body = bytearray(valid)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(MUTATIONS)(body, rng)
        if len(body) < 4:
            break
    return bytes(body)


def attempts(endpoint: Endpoint, port: int, amount: int) -> Iterator[Attempt]:
    """Send so many mutated bodies, the same ones in each run."""
    rng = random.Random(f"{SEED} {endpoint.name}")
    valid = endpoint.valid_body()
    with endpoint.connect(port) as client:
        for number in range(amount):
            body = mutate(valid, rng)
            if not endpoint.allows_newlines:  # else it would be two messages
                body = body.replace(b"\n", b" ").replace(b"\r", b" ")
                if not body.strip():  # not a message
                    continue
            start = time.monotonic()
            response, reason = None, ""
            try:
                response = client.send(body)
            except (
                TimeoutError,
                MalformedResponse,
                ConnectionClosed,
                OSError,
            ) as error:
                reason = f"{type(error).__name__} {error}"
                client.close()
            yield Attempt(number, body, response, time.monotonic() - start, reason)
            if number % 50 == 49:  # consecutive errors end a stream
                client.send(valid)


@row("A2", "Randomly mutated bodies", full=10_000)
def mutated(tally: Tally, amount: int) -> None:
    """Each mutated body is answered or refused within a second, in its API's form and
    never with 5xx; valid bodies are answered afterwards."""
    with serving(tally) as service:
        for endpoint in ENDPOINTS:
            refused = []
            for attempt in attempts(endpoint, service.port, amount):
                where = f"{endpoint.name} {attempt.number}, {attempt.body[:60]!r}"
                response = attempt.response
                if response is None:
                    tally.check(False, f"{where}: {attempt.error}")
                    continue
                valid = response.status == 200 or 400 <= response.status < 500
                got = (
                    f"{response.status} in {attempt.seconds:.2f} s {response.text[:80]}"
                )
                tally.check(valid and attempt.seconds < HANGS, f"{where}: {got}")
                if response.status != 200:
                    refused.append(attempt.seconds)
                    check_refusal(tally, where, response, compat=endpoint.compat)
            p99 = statistics.quantiles(refused, n=100)[98]
            tally.figure(f"{endpoint.name} refused p99 ms", 1000 * p99)
            tally.check(p99 < REFUSED_P99, f"{endpoint.name}: refused p99 {p99} s")
            status = endpoint.status_of_valid_body(service.port)
            tally.check(status == 200, f"{endpoint.name}: then valid gets {status}")


NEIGHBOUR = "The cat sat on the mat ."
HOSTILE = {
    "NUL": "a\0b",
    "a long word": "x" * 400_000,
    "one-letter words": "a " * 9_999,
    "too many words": "a " * 100_000,
    "combining marks": "e" + "\u0301" * 5_000,
    "directions": "\u202e\u200f\u2067abc",
    "outside of the plane": "𝒳🐕" * 500,
    "spaces": " \u3000\t\n" * 100,
    "controls": "".join(map(chr, range(1, 32))),
    "noncharacters": "\ufffe\uffff",
    "new words": " ".join(f"w{n:x}" for n in range(9_000)),
}
CLASSIFY, LABEL = ("classify", "intents"), ("label", "tags")


@row("A11", "Hostile texts, beside ordinary ones", full=4_000, fast=100)
def hostile_texts(tally: Tally, amount: int) -> None:
    """Any text is answered, or refused by name, and another text in the same request has
    its usual answer. Random texts, and ids that don't exist, cause no 500."""
    with serving(tally) as service, httpx.Client(base_url=service.url) as http:
        for path, model in (CLASSIFY, LABEL):
            usual = _answer(http, path, {"texts": [NEIGHBOUR], "model": model})
            for name, text in HOSTILE.items():
                body = {"texts": [text, NEIGHBOUR], "model": model, "top_k": 1}
                response = http.post(f"/{path}", json=body, timeout=30)
                status = response.status_code
                tally.check(status in (200, 413, 422), f"{model}, {name}: {status}")
                if status == 200:
                    second = response.json()["predictions"][1]
                    same = second.get("label", second.get("labels"))
                    tally.check(
                        same == usual, f"{model}, {name}: another answer beside"
                    )
            for body in (b'{"texts": ["\\ud800"]}', b'{"tokens": [["\\udfff"]]}'):
                status = http.post(f"/{path}", content=body).status_code
                tally.check(status == 400, f"half a character: {status}")
        rng = random.Random(SEED)
        slowest = 0.0
        for _ in range(amount):
            path, model = rng.choice((CLASSIFY, LABEL))
            size = rng.randrange(1, 60)
            text = "".join(chr(rng.choice(RANGES)(rng)) for _ in range(size))
            start = time.perf_counter()
            response = http.post(f"/{path}", json={"texts": [text], "model": model})
            slowest = max(slowest, time.perf_counter() - start)
            status = response.status_code
            tally.check(status in (200, 422), f"{text!r}: {status}")
        tally.figure("slowest ms", 1000 * slowest)
        usual = _answer(http, "label", {"texts": [NEIGHBOUR], "model": "tags"})
        tally.check(usual[0] == "DET", "the answer has changed")


RECORD: dict[str, object] = {"event": "pay", "host": "host1", "bytes": 3.5, "at": 1e9}
VALUES: tuple[object, ...] = (
    *("login", "", "x" * 100_000, "\0", "\u202e", "\u0301" * 500, "nan", "1e999", "9" * 400),
    *(0, -1, 1e38, -1e39, 10**30, 1e-320, True, None, [], {}, [[[]]], {"a": {"b": 1}}),
    *("2026-01-31T12:00:00Z", "0001-01-01", "9999-12-31T23:59:59.9+14:00", "-inf", 1e12, -1e10),
)  # fmt: skip


@row("A12", "Hostile records, beside ordinary ones", full=4_000, fast=100)
def hostile_records(tally: Tally, amount: int) -> None:
    """Any value in any column is answered, or refused with its place, and another sequence
    in the same request has its usual answer. It is the same in streams."""
    bundles = cached("text", write_text_bundles)
    rng = random.Random(SEED)
    with (
        serving(tally, bundles=bundles) as service,
        httpx.Client(base_url=service.url) as http,
    ):
        usual = _probabilities(http, [[RECORD]])
        for _ in range(amount):
            rows = [dict(RECORD) for _ in range(rng.randint(1, 4))]
            place, column = rng.randrange(len(rows)), rng.choice([*RECORD])
            rows[place][column] = rng.choice(VALUES)
            if rng.random() < 0.1:
                del rows[place][column]
            body = {"records": [rows, [RECORD]], "model": "visits"}
            response = http.post("/classify", json=body, timeout=30)
            status, name = (
                response.status_code,
                f"{column} = {rows[place].get(column)!r:.40}",
            )
            tally.check(status in (200, 422), f"{name}: {status}")
            if status == 200:
                answer = response.json()["predictions"][1]["probabilities"]
                tally.check(answer == usual, f"{name}: another answer beside")
            elif status == 422:
                (problem,) = response.json()["errors"]
                path = problem["path"].replace(f"[{place + 1}]", f"[{place}]")
                expected = f"records[0][{place}].{column}"
                tally.check(path == expected, f"{name}: {problem['path']}")
            line = json.dumps({"records": [rows[place]]})
            stream = http.post("/stream?model=visits", content=f"{line}\n", timeout=30)
            tally.check(stream.status_code == 200, f"{name}, stream: {stream.text:.80}")
        for bomb in (b"[" * 100_000, b'{"a":' * 100_000, b"{}," * 2_000_000 + b"{}"):
            content = b'{"model": "visits", "records": [[' + bomb + b"]]}"
            status = http.post("/classify", content=content, timeout=30).status_code
            tally.check(status in (400, 413, 422), f"{bomb[:5]!r}...: {status}")
        tally.check(_probabilities(http, [[RECORD]]) == usual, "the answer has changed")


def _probabilities(
    http: httpx.Client, records: list[list[dict[str, object]]]
) -> object:
    response = http.post("/classify", json={"records": records, "model": "visits"})
    return response.json()["predictions"][0]["probabilities"]


def _answer(http: httpx.Client, path: str, body: dict[str, object]) -> object:
    (prediction,) = http.post(f"/{path}", json=body).json()["predictions"]
    return prediction.get("label", prediction.get("labels"))


RANGES: tuple[Callable[[random.Random], int], ...] = (
    lambda rng: rng.randrange(32, 127),
    lambda rng: rng.randrange(0, 0x250),
    lambda rng: rng.randrange(0x300, 0x370),
    lambda rng: rng.randrange(0xE000, 0x110000),
)
