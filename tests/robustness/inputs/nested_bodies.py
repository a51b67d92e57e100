"""Bodies nested deeper than any parser likes."""

import time
from collections.abc import Iterator

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import DOORS, STREAMS, Door, refusal
from tests.robustness.harness.service import serving
from tests.robustness.inputs.malformed_bodies import member

DEPTHS = (50, 120, 1_100, 250_000)
QUICK = 1.0  # seconds


def nested(door: Door, depth: int) -> Iterator[tuple[str, bytes]]:
    """Lists and objects, closed and open, in the place of whatever there is."""
    lists = b"[" * depth + b"]" * depth
    objects = b'{"a":' * depth + b"1" + b"}" * depth
    for name, deep in (("lists", lists), ("objects", objects)):
        yield name, deep
        yield f"{name} as sequence", door.body(deep)
        yield f"{name} as text", member(door.good(), door.text, deep)
    yield "open lists", b"[" * depth
    yield "open objects", b'{"a":' * depth
    yield "numbers", door.body(b"[" * depth + b"0.5" + b"]" * depth)


@row("A7", "Bodies nested deeply", full=3, fast=1)
def deep(tally: Tally, amount: int) -> None:
    """Whatever is nested too deeply is refused, within a second: as no JSON, as unfit,
    or as more lists than numbers are allowed. The default tests assert no time."""
    with serving(tally) as service:
        longest = 0.0
        for door in DOORS:
            with door.visit(service.port) as visit:
                for depth in DEPTHS * amount:
                    for name, body in nested(door, depth):
                        if len(body) > 2**20 and door in STREAMS:
                            continue  # over the limit of a message
                        begun = time.monotonic()
                        answer = visit.ask(body)
                        took = time.monotonic() - begun
                        longest = max(longest, took)
                        told = f"{door.name}, {depth} {name}: {answer.status}"
                        good = answer.status in (400, 413, 422)
                        good &= took < QUICK or amount == 1
                        tally.check(good, f"{told} in {took:.1f} s {answer.text:.80}")
                        refusal(tally, told, answer, dialect=door.dialect)
                    after = visit.ask(door.good()).status
                    tally.check(after == 200, f"{door.name}, {depth}: then {after}")
        tally.figure("longest ms", 1000 * longest)
