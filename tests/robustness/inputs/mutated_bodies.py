"""Row A2: thousands of valid bodies with random mutations."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import ENDPOINTS, Endpoint, check_refusal
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import (
    ConnectionClosed,
    MalformedResponse,
    Response,
)

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
