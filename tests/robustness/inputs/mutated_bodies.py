"""Good bodies with something changed at random, many thousands of them."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import DOORS, Door, refusal
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import Answer, Closed, Malformed

SEED = 20161117
HANGS = 1.0  # seconds
REJECTED = 0.05  # seconds, 99 % of them
TOKENS = (
    b"[", b"]", b"{", b"}", b",", b":", b'"', b"null", b"true", b"NaN", b"-", b"1e999", b"0.5",
    b'"a"', b"\\ud800", b"\x00", b"\xff", b"\xef\xbb\xbf", b"18446744073709551616", b"[[]]",
    b"-0", b"1e-400", b'"frames"', b'"model"', b'"state"', b'"top_k": 3', b'"return_state": true',
    b'"parameters": {"sequence_id": 7}', b'"shape": [1, 99999999, 28]', b"9" * 400, b"[" * 200,
)  # fmt: skip


class Tried(NamedTuple):
    """A changed body, and what became of it."""

    door: Door
    number: int
    body: bytes
    answer: Answer | None  # None: none came
    seconds: float
    fault: str = ""


def _flip(body: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4)):
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)


def _insert(body: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(body))
    body[at:at] = chance.choice(TOKENS)


def _replace(body: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(body))
    body[at : at + chance.randint(1, 12)] = chance.choice(TOKENS)


def _cut(body: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(body))
    del body[at : at + chance.randint(1, 40)]


def _repeat(body: bytearray, chance: random.Random) -> None:
    at, size = chance.randrange(len(body)), chance.randint(1, 60)
    body[at:at] = body[at : at + size] * chance.randint(1, 20)


def _swap(body: bytearray, chance: random.Random) -> None:
    first, second = sorted(chance.sample(range(len(body)), 2))
    size = min(chance.randint(1, 20), second - first, len(body) - second)
    one, other = body[first : first + size], body[second : second + size]
    body[first : first + size], body[second : second + size] = other, one


def _retype(body: bytearray, chance: random.Random) -> None:
    """A number becomes something else."""
    places = [at for at in range(len(body)) if body[at : at + 3] == b"0.5"]
    if places:
        at = chance.choice(places)
        body[at : at + 3] = chance.choice(TOKENS)


CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _insert, _replace, _cut, _repeat, _swap, _retype,
)  # fmt: skip


def changed(good: bytes, chance: random.Random) -> bytes:
    """One to three changes."""
    body = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(CHANGES)(body, chance)
        if len(body) < 4:
            break
    return bytes(body)


def tries(door: Door, port: int, amount: int) -> Iterator[Tried]:
    """So many changed bodies, always the same ones."""
    chance = random.Random(f"{SEED} {door.name}")
    good = door.good()
    with door.visit(port) as visit:
        for number in range(amount):
            body = changed(good, chance)
            if not door.breaks:  # else it was two messages
                body = body.replace(b"\n", b" ").replace(b"\r", b" ")
                if not body.strip():  # which is no message
                    continue
            begun = time.monotonic()
            answer, fault = None, ""
            try:
                answer = visit.ask(body)
            except (TimeoutError, Malformed, Closed, OSError) as error:
                fault = f"{type(error).__name__} {error}"
                visit.close()
            yield Tried(door, number, body, answer, time.monotonic() - begun, fault)
            if number % 50 == 49:  # many faults in a row end a stream
                visit.ask(good)


@row("A2", "Bodies changed at random: none is a failure", full=10_000)
def mutated(tally: Tally, amount: int) -> None:
    """However a good body is changed, it is answered or refused, in its endpoint's
    form, at once; good ones are answered between them and afterwards."""
    with serving(tally) as service:
        for door in DOORS:
            rejected = []
            for tried in tries(door, service.port, amount):
                told = f"{door.name} {tried.number}, {tried.body[:60]!r}"
                answer = tried.answer
                if answer is None:
                    tally.check(False, f"{told}: {tried.fault}")
                    continue
                good = answer.status == 200 or 400 <= answer.status < 500
                good &= tried.seconds < HANGS
                seen = f"{answer.status} in {tried.seconds:.2f} s {answer.text[:80]}"
                tally.check(good, f"{told}: {seen}")
                if answer.status != 200:
                    rejected.append(tried.seconds)
                    refusal(tally, told, answer, dialect=door.dialect)
            slow = statistics.quantiles(rejected, n=100)[98]
            tally.figure(f"{door.name} refused p99 ms", 1000 * slow)
            tally.check(slow < REJECTED, f"{door.name}: 1 % refused in over {slow} s")
            with door.visit(service.port) as visit:
                after = visit.ask(door.good()).status
            tally.check(after == 200, f"{door.name}: good is {after} afterwards")
