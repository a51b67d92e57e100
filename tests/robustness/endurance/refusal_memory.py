"""Row D4: refusals leave no memory behind.

python -m tests.robustness.endurance.refusal_memory --amount 20000 --only unauthorized
"""

import argparse
import asyncio
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import uvloop

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.raw_connection import RawConnection
from tests.robustness.harness.refusal import Refusal
from tests.robustness.harness.service import Service
from tests.robustness.inputs import refusal_table
from tests.robustness.inputs.refusals import TIMEOUT, Check, try_stopping
from tests.robustness.inputs.refusing_services import SETUPS, Setup, staged

WARM_UP = 5_000  # requests before the memory is first measured
MAX_GROWTH = 8.0  # MiB
RESTART_GROWTH = 16.0  # MiB, after which a new service takes the next entries
BUSY = b" steps wait for "  # refused for another reason, in any form
CLIENTS, SLOW_CLIENTS = 48, 500
SECONDS = 60.0  # for each entry


class Result(NamedTuple):
    """The result of an entry that was sent many times."""

    count: int
    checks: list[Check]
    grown: float  # MiB


@dataclass(slots=True)
class Sender:
    """Sends one entry again and again."""

    port: int
    refusal: Refusal
    deadline: float = 0.0
    left: int = 0
    count: int = 0
    wrong: bytes | None = None  # the first unexpected response

    async def send(self, amount: int, seconds: float) -> None:
        """So many times, or for so long."""
        clients = SLOW_CLIENTS if self.refusal.slow else CLIENTS
        self.left, self.deadline = amount, time.monotonic() + seconds
        await asyncio.gather(*(self._client() for _ in range(min(amount, clients))))

    async def _client(self) -> None:
        request, connection = self.refusal.padded_request, None
        async with asyncio.timeout(SECONDS + TIMEOUT):
            while self.left > 0 and time.monotonic() < self.deadline:
                self.left -= 1
                fresh = connection is None or not connection.usable
                if connection is None or fresh:
                    if connection is not None:
                        connection.close()
                    connection = await RawConnection.open(self.port)
                response = await connection.request(request, self.refusal.frame)
                if not response and not fresh:  # closed because it was idle
                    continue
                if self.refusal.matches(response):
                    self.count += 1
                elif BUSY not in response and self.wrong is None:
                    self.wrong = response
            if connection is not None:
                connection.close()


def send_many(service: Service, refusal: Refusal, amount: int) -> Result:
    """Send an entry many times, or for a minute, and measure the memory left behind."""
    sender = Sender(service.port, refusal)
    first = min(WARM_UP, amount // 4)
    start = time.monotonic()
    uvloop.run(sender.send(first, SECONDS / 4))
    before, left = _settled_memory(service), SECONDS - (time.monotonic() - start)
    uvloop.run(sender.send(amount - first, left))
    message = f"{refusal.name}: {(sender.wrong or b'')[-200:]!r}"
    checks = [(sender.wrong is None, message)]
    return Result(sender.count, checks, _settled_memory(service) - before)


def _settled_memory(service: Service) -> float:
    """Memory of the serving process, once it has been stable for a moment."""
    last, stable = service.memory_mib(service.process.pid), 0
    deadline = time.monotonic() + 3
    while stable < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        now = service.memory_mib(service.process.pid)
        stable = stable + 1 if abs(now - last) < 0.1 else 0
        last = now
    return last


def results(
    amount: int, only: str = "", *, per_class: bool = False
) -> Iterator[tuple[Refusal, Result]]:
    """Send each entry so many times.

    Args:
        only: entries whose name contains this text.
        per_class: only the first entry of each class of refusals.
    """
    refusals = [r for r in refusal_table.table() if only in r.name]
    if per_class:  # fast ones before those that wait for a timeout
        refusals.sort(key=lambda refusal: refusal.slow)
        refusals = list({r.error: r for r in reversed(refusals)}.values())
    for setup in SETUPS:
        names = [stage.name for stage in setup.stages]
        left = {r.name: r for r in refusals if r.stage in names}
        while left:  # with a new service, if the last one has grown
            before = len(left)
            with closing(_until_grown(setup, left, amount)) as pairs:
                yield from pairs
            assert len(left) < before


def _until_grown(
    setup: Setup, left: dict[str, Refusal], amount: int
) -> Generator[tuple[Refusal, Result], None, None]:
    """Take entries from `left` until the service has grown so much that it could reuse
    that memory for later entries."""
    for service, stage in staged(setup, {refusal.stage for refusal in left.values()}):
        before = service.memory_mib(service.process.pid)
        chosen = [refusal for refusal in left.values() if refusal.stage == stage]
        if stage == refusal_table.STOPPING:
            checks, grown = uvloop.run(try_stopping(service, chosen, amount))
            for refusal in chosen:
                del left[refusal.name]
            yield chosen[0], Result(len(checks), checks, grown)
            return
        for refusal in chosen:
            yield left.pop(refusal.name), send_many(service, refusal, amount)
            if service.memory_mib(service.process.pid) > before + RESTART_GROWTH:
                return


@row("D4", "Memory after 6,000 of every refusal, with heads of 12 KB", full=6_000)
def refusal_memory(tally: Tally, amount: int) -> None:
    """Refusals leave nothing behind in the serving process."""
    worst, most, fewer = "", 0.0, 0
    for refusal, result in results(amount):
        for passed, message in result.checks:
            tally.check(passed, message)
        grown = f"{refusal.name}: {result.grown:.1f} MiB more after {result.count}"
        tally.check(result.grown < MAX_GROWTH, grown)
        fewer += result.count < amount
        if result.grown > most:
            worst, most = grown, result.grown
    tally.figure("worst", worst)
    tally.figure("fewer in a minute", fewer)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.endurance.refusal_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--amount", type=int, default=20_000, help="requests of each entry")
    add("--only", default="", help="entries whose name contains this text")
    add("--per-class", action="store_true", help="one entry of each class of refusals")
    options = parser.parse_args()
    pairs = results(options.amount, options.only, per_class=options.per_class)
    for refusal, result in pairs:
        columns = f"{result.grown:8.1f} MiB {result.count:7}"
        print(f"{columns} {refusal.stage}: {refusal.name}", flush=True)
        wrong = [message for passed, message in result.checks if not passed]
        for message in wrong[:1]:
            print(f"    ! {message}")


if __name__ == "__main__":
    main()
