"""Row A10: every way to be refused, in every API."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import uvloop

from service.errors import ServiceError
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.raw_connection import RawConnection
from tests.robustness.harness.refusal import Refusal
from tests.robustness.harness.service import Service
from tests.robustness.inputs import refusal_table
from tests.robustness.inputs.refusing_services import SETUPS, Setup, staged

TIMEOUT = 10.0  # seconds for a response
STOP_SECONDS = 1.5  # during which a stopping service still accepts connections
STOPPED_CLIENTS = 60

Check = tuple[bool, str]


def error_classes(error: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:  # fmt: skip
    """All classes of refusals."""
    for subclass in error.__subclasses__():
        yield subclass
        yield from error_classes(subclass)


async def try_refusal(port: int, refusal: Refusal, request: bytes) -> Check:
    """Send a request over a connection of its own."""
    connection = await RawConnection.open(port)
    try:
        async with asyncio.timeout(TIMEOUT):
            response = await connection.request(request, refusal.frame)
    except TimeoutError:
        response = b"nothing"
    finally:
        connection.close()
    message = f"{refusal.name}, {len(request)} B: {response[:150]!r}"
    return refusal.matches(response), message


async def try_stopping(
    service: Service, refusals: list[Refusal], amount: int
) -> tuple[list[Check], float]:
    """Refusals by a service while it stops, which takes two seconds: their checks, and
    the growth of its memory in MiB."""
    before = service.memory_mib(service.process.pid)
    slow = []
    for refusal in (r for r in refusals if r.slow):
        for _ in range(min(amount, STOPPED_CLIENTS)):
            connection = await RawConnection.open(service.port)
            pending = asyncio.create_task(connection.request(refusal.padded_request))
            slow.append((refusal, pending))
    await asyncio.sleep(0.2)
    service.terminate()
    await asyncio.sleep(0.2)
    loop = asyncio.get_running_loop()
    deadline, checks = loop.time() + STOP_SECONDS, []
    for refusal in (r for r in refusals if not r.slow):
        for _ in range(amount):
            if loop.time() >= deadline:
                break
            request = refusal.padded_request
            checks.append(await try_refusal(service.port, refusal, request))
    grown = service.memory_mib(service.process.pid) - before
    async with asyncio.timeout(TIMEOUT):
        for refusal, pending in slow:
            response = await pending
            message = f"{refusal.name}: {response[:150]!r}"
            checks.append((refusal.matches(response), message))
    return checks, grown


def _try_setup(setup: Setup, refusals: list[Refusal]) -> list[Check]:
    """Try the entries of a service, with a short head and with a long one."""

    async def try_stage(port: int, chosen: list[Refusal]) -> list[Check]:
        requests = [(r, data) for r in chosen for data in (r.request, r.padded_request)]
        fast = [await try_refusal(port, *pair) for pair in requests if not pair[0].slow]
        slow = [try_refusal(port, *pair) for pair in requests if pair[0].slow]
        return fast + await asyncio.gather(*slow)

    checks = []
    for service, stage in staged(setup, {refusal.stage for refusal in refusals}):
        chosen = [refusal for refusal in refusals if refusal.stage == stage]
        if stage == refusal_table.STOPPING:
            checks += uvloop.run(try_stopping(service, chosen, 1))[0]
        else:
            checks += uvloop.run(try_stage(service.port, chosen))
    return checks


@row("A10", "Every way to be refused, in every API", full=1, fast=1)
def refused(tally: Tally, amount: int) -> None:
    """Each class of `service.errors` has an entry, and each entry's request is refused
    with its status and form."""
    refusals = refusal_table.table()
    covered = {refusal.error for refusal in refusals}
    for error in error_classes():
        tally.check(error in covered, f"{error.__name__} is not in the table")
    with ThreadPoolExecutor(len(SETUPS)) as pool:
        for checks in pool.map(lambda setup: _try_setup(setup, refusals), SETUPS):
            for passed, message in checks:
                tally.check(passed, message)
    tally.figure("entries", len(refusals))
