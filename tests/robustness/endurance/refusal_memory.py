"""Every way to be refused: each is refused as it should be, and leaves no memory.

python -m tests.robustness.endurance.refusal_memory --amount 20000 --only unauthorized
"""

import argparse
import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import uvloop

from service.errors import ServiceError
from tests.robustness.harness import refusal_table
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.raw_connection import Exchange
from tests.robustness.harness.refusal import Refused
from tests.robustness.harness.refusal_services import SETUPS, Setup, staged
from tests.robustness.harness.service import Service

FIRST = 5_000  # after so many the memory is looked at first
GROWS, HIDES = 8.0, 16.0  # MiB; what others may hide in
BUSY = b" steps wait for "  # refused for another reason, in whatever form
CLIENTS, SLOW_CLIENTS, STOPPED_CLIENTS = 48, 500, 60
SECONDS = 60.0  # for one entry
PATIENCE = 10.0  # for one answer
STOP_SECONDS = 1.5  # in which a service that stops still takes connections


def kinds(error: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """All classes of refusals."""
    for one in error.__subclasses__():
        yield one
        yield from kinds(one)


def checked(setup: Setup, entries: list[Refused]) -> list[tuple[bool, str]]:
    """Of each entry of a service whether it is refused as it should be, with a short
    head and with a long one."""

    async def twice(port: int, chosen: list[Refused]) -> list[tuple[bool, str]]:
        sent = [(one, sent) for one in chosen for sent in (one.request, one.padded)]
        fast = [await _once(port, *given) for given in sent if not given[0].slow]
        slow = [_once(port, *given) for given in sent if given[0].slow]
        return fast + await asyncio.gather(*slow)

    found = []
    for service, stage in staged(setup, {one.at for one in entries}):
        chosen = [one for one in entries if one.at == stage]
        if stage == refusal_table.STOPPING:
            found += uvloop.run(_stopped(service, chosen, 1)).judged
        else:
            found += uvloop.run(twice(service.port, chosen))
    return found


async def _once(port: int, one: Refused, sent: bytes) -> tuple[bool, str]:
    exchange = await Exchange.open(port)
    try:
        async with asyncio.timeout(PATIENCE):
            answer = await exchange.ask(sent, one.frame)
    except TimeoutError:
        answer = b"nothing"
    finally:
        exchange.close()
    return one.fits(answer), f"{one.name}, {len(sent)} B: {answer[:150]!r}"


@row("A10", "Every way to be refused, in every protocol", full=1, fast=1)
def refused(tally: Tally, amount: int) -> None:
    """There is an entry for each class of `service.errors`, and what it sends is
    refused with the status and in the form that it says."""
    entries = refusal_table.table()
    named = {one.error for one in entries}
    for error in kinds():
        tally.check(error in named, f"{error.__name__} is not in the table")
    with ThreadPoolExecutor(len(SETUPS)) as pool:
        for found in pool.map(lambda setup: checked(setup, entries), SETUPS):
            for holds, told in found:
                tally.check(holds, told)
    tally.figure("ways", len(entries))


class Seen(NamedTuple):
    """What came of an entry that was sent very often."""

    count: int
    judged: list[tuple[bool, str]]
    grown: float  # MiB


@dataclass(slots=True)
class Hammer:
    """Sends one entry again and again."""

    port: int
    entry: Refused
    until: float = 0.0
    left: int = 0
    count: int = 0
    wrong: bytes | None = None

    async def send(self, amount: int, seconds: float) -> None:
        """So often, or for so long."""
        clients = SLOW_CLIENTS if self.entry.slow else CLIENTS
        self.left, self.until = amount, time.monotonic() + seconds
        await asyncio.gather(*(self._client() for _ in range(min(amount, clients))))

    async def _client(self) -> None:
        request, exchange = self.entry.padded, None
        async with asyncio.timeout(max(SECONDS, PATIENCE) + PATIENCE):
            while self.left > 0 and time.monotonic() < self.until:
                self.left -= 1
                fresh = exchange is None or not exchange.usable
                if exchange is None or fresh:
                    if exchange is not None:
                        exchange.close()
                    exchange = await Exchange.open(self.port)
                answer = await exchange.ask(request, self.entry.frame)
                if not answer and not fresh:  # closed because it was idle
                    continue
                if self.entry.fits(answer):
                    self.count += 1
                elif BUSY not in answer and self.wrong is None:
                    self.wrong = answer
            if exchange is not None:
                exchange.close()

    @property
    def judged(self) -> list[tuple[bool, str]]:
        return [
            (self.wrong is None, f"{self.entry.name}: {(self.wrong or b'')[-200:]!r}")
        ]


def hammered(service: Service, entry: Refused, amount: int) -> Seen:
    """Send an entry so often, or for a minute, and see what memory is left behind."""
    hammer = Hammer(service.port, entry)
    first = min(FIRST, amount // 4)
    begun = time.monotonic()
    uvloop.run(hammer.send(first, SECONDS / 4))
    before, left = _resting(service), SECONDS - (time.monotonic() - begun)
    uvloop.run(hammer.send(amount - first, left))
    return Seen(hammer.count, hammer.judged, _resting(service) - before)


def _resting(service: Service) -> float:
    """Memory of the serving process, when it has not moved for a moment."""
    last, calm, end = service.rss(service.process.pid), 0, time.monotonic() + 3
    while calm < 3 and time.monotonic() < end:
        time.sleep(0.1)
        now = service.rss(service.process.pid)
        calm = calm + 1 if abs(now - last) < 0.1 else 0
        last = now
    return last


async def _stopped(service: Service, entries: list[Refused], amount: int) -> Seen:
    """Refusals by a service that stops; there are two seconds for them."""
    before = service.rss(service.process.pid)
    halves = [one for one in entries if one.slow]
    waiting = []
    for one in halves:
        for _ in range(min(amount, STOPPED_CLIENTS)):
            exchange = await Exchange.open(service.port)
            waiting.append((one, asyncio.create_task(exchange.ask(one.padded))))
    await asyncio.sleep(0.2)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    end, judged, count = time.monotonic() + STOP_SECONDS, [], 0
    for one in entries:
        tried = 0
        while not one.slow and tried < amount and time.monotonic() < end:
            judged.append(await _once(service.port, one, one.padded))
            tried += 1
    grown = service.rss(service.process.pid) - before
    async with asyncio.timeout(PATIENCE):
        for one, task in waiting:
            answer = await task
            judged.append((one.fits(answer), f"{one.name}: {answer[:150]!r}"))
    count = len(judged)
    return Seen(count, judged, grown)


def tried(
    amount: int, only: str = "", *, per_class: bool = False
) -> Iterator[tuple[Refused, Seen]]:
    """Each entry whose name has this text, sent so often.

    Args:
        per_class: only the first entry of each class of refusals.
    """
    entries = [one for one in refusal_table.table() if only in one.name]
    if per_class:  # the quick ones before those that come after a time
        entries.sort(key=lambda one: one.slow)
        entries = list({one.error: one for one in reversed(entries)}.values())
    for setup in SETUPS:
        names = [stage.name for stage in setup.stages]
        left = {one.name: one for one in entries if one.at in names}
        while left:  # a new service, where the last one has grown
            before = len(left)
            with closing(_until_grown(setup, left, amount)) as seen:
                yield from seen
            assert len(left) < before


def _until_grown(
    setup: Setup, left: dict[str, Refused], amount: int
) -> Iterator[tuple[Refused, Seen]]:
    """Entries, each of which is taken from what is left; no more after one that has
    left so much memory behind that others could hide theirs there."""
    for service, stage in staged(setup, {one.at for one in left.values()}):
        begun = service.rss(service.process.pid)
        chosen = [one for one in left.values() if one.at == stage]
        if stage == refusal_table.STOPPING:
            seen = uvloop.run(_stopped(service, chosen, amount))
            for one in chosen:
                del left[one.name]
            yield chosen[0], seen
            return
        for one in chosen:
            yield left.pop(one.name), hammered(service, one, amount)
            if service.rss(service.process.pid) > begun + HIDES:
                return


@row("D4", "6,000 of every refusal, with heads of 12 KB: memory", full=6_000)
def memory(tally: Tally, amount: int) -> None:
    """A refusal leaves nothing behind in the serving process."""
    worst, most, fewer = "", 0.0, 0
    for one, seen in tried(amount):
        for holds, told in seen.judged:
            tally.check(holds, told)
        told = f"{one.name}: {seen.grown:.1f} MiB more after {seen.count}"
        tally.check(seen.grown < GROWS, told)
        fewer += seen.count < amount
        if seen.grown > most:
            worst, most = told, seen.grown
    tally.figure("worst", worst)
    tally.figure("fewer in a minute", fewer)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.endurance.refusal_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--amount", type=int, default=20_000, help="of each entry")
    parser.add_argument("--only", default="", help="entries whose name has this text")
    add = parser.add_argument
    add("--per-class", action="store_true", help="one entry of each class of refusals")
    options = parser.parse_args()
    given = (options.amount, options.only)
    for one, seen in tried(*given, per_class=options.per_class):
        wrong = [told for holds, told in seen.judged if not holds]
        print(f"{seen.grown:8.1f} MiB {seen.count:7} {one.at}: {one.name}", flush=True)
        for told in wrong[:1]:
            print(f"    ! {told}")


if __name__ == "__main__":
    main()
