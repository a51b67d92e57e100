"""Bodies as long as they may be, and longer."""

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import DOORS, HTTP, Door, refusal
from tests.robustness.harness.memory import watched
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import Closed, Wire

BODY = 8 * 2**20
MESSAGE = 2**20
CHUNK = 2**16
GROWS = 8  # MiB


@row("A5", "Bodies of the limit and one byte more", full=100, fast=8)
def longest(tally: Tally, amount: int) -> None:
    """What is as long as may be is answered, and one byte more is 413, whether it says
    its length or not; many that are too long leave no memory behind."""
    with serving(tally) as service:
        for door in DOORS:
            _boundary(tally, service, door)
        _many(tally, service, 10)  # buffers that are kept are made
        with watched(service, GROWS) as memory:
            _many(tally, service, amount)
        tally.figure("grown MiB", memory.grown)
        tally.figure("peak MiB", memory.risen)
        tally.check(memory.grown < GROWS, f"grown by {memory.grown:.1f} MiB")
        for door in DOORS:
            with door.visit(service.port) as visit:
                after = visit.ask(door.good()).status
            tally.check(after == 200, f"{door.name}: good is {after} afterwards")


def _boundary(tally: Tally, service: Service, door: Door) -> None:
    limit = BODY if door in HTTP else MESSAGE
    longest = door.good().ljust(limit)
    if door not in HTTP:
        with door.visit(service.port) as visit:
            for more, wanted in ((b"", 200), (b" ", 413), (b" " * limit, 413)):
                told = f"{door.name}, {len(more)} over"
                try:
                    answer = visit.ask(longest + more)
                except Closed as error:
                    # As RFC 6455 has it for a WebSocket; a caller that still sends may
                    # lose the reason, 1009.
                    good = door.name == "socket" and wanted == 413
                    tally.check(good, f"{told}: {error}")
                    continue
                tally.check(answer.status == wanted, f"{told}: {answer.status}")
                if wanted == 413:
                    refusal(tally, told, answer, dialect=False)
        return
    with Wire(service.port) as wire:
        for chunk in (0, CHUNK, BODY):
            for more, wanted in ((b"", 200), (b" ", 413)):
                given = longest + more
                answer = wire.request("POST", door.path, given, chunk=chunk)
                told = f"{door.name}, {len(more)} over, chunks of {chunk}: {answer}"
                tally.check(answer.status == wanted, told)
                if wanted == 413:
                    refusal(tally, told, answer, dialect=door.dialect)


def _many(tally: Tally, service: Service, amount: int) -> None:
    """Far too long, in chunks: the service can't know before."""
    body = b"[" * (BODY + 2 * CHUNK)
    for number in range(amount):
        door = HTTP[number % len(HTTP)]
        with Wire(service.port) as wire:
            answer = wire.request("POST", door.path, body, chunk=CHUNK)
        told = f"{door.name}, over in chunks: {answer.status}"
        tally.check(answer.status == 413, told)
