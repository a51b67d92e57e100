"""Processes that die: workers are replaced, and the whole leaves nothing behind."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.burst import fire
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, free_port, serving, started
from tests.robustness.harness.traffic import Traffic
from tests.robustness.load.isolation import poison

NETWORK = "digits"
MORE_SECONDS = 2.0  # than a start takes, until it is whole again


@row("C6", "kill -9 of workers under load, of the service; a worker's abort", full=5)
def replaced(tally: Tally, amount: int) -> None:
    asked = reference.some(NETWORK, 100, 60)
    begun = time.monotonic()
    with serving(
        tally, told=True, module="tests.robustness.harness.fault_injection", workers=2
    ) as service:
        start = time.monotonic() - begun
        tally.figure("start s", start)
        slowest = 0.0
        for turn in range(amount):
            for kind in ("one worker", "all workers", "abort"):
                with Traffic(service.port, asked, 8, 100) as traffic:
                    time.sleep(0.3)
                    seconds = _die(tally, service, kind, start + MORE_SECONDS)
                    slowest = max(slowest, seconds)
                    time.sleep(0.3)
                for one in traffic.told:
                    # Where none is left one is told to come again.
                    fine = one.right or (kind != "one worker" and one.status == 503)
                    tally.check(
                        fine, f"{kind}, turn {turn}: a request got {one.status}"
                    )
        tally.figure("whole again after s", slowest)
    for _ in range(amount):
        _whole(tally)


def _die(tally: Tally, service: Service, kind: str, allowed: float) -> float:
    """Seconds until all workers are there again."""
    deaths = "unrolled_worker_deaths_total"
    before = service.metric(deaths)
    workers = _workers(service)
    begun = time.monotonic()
    if kind == "abort":
        (reply,) = asyncio.run(fire(service.port, [poison(fault_injection.ABORTS)]))
        tally.check(reply.status == 500, f"who ends workers gets {reply.status}")
    for pid in workers[: {"one worker": 1, "all workers": 2}.get(kind, 0)]:
        os.kill(pid, signal.SIGKILL)
    while time.monotonic() < begun + 3 * allowed:
        now = _workers(service)
        others = len(now) == 2 and now != workers
        if others and service.metric(deaths) > before and service.ready():
            break
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    tally.check(seconds <= allowed, f"{kind}: whole again after {seconds:.1f} s")
    return seconds


def _workers(service: Service) -> list[int]:
    """The processes that compute: those with a socket for jobs and one for the
    rest."""
    found = []
    for pid in service.family()[1:]:
        with contextlib.suppress(OSError):  # it has just ended
            links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
            if sum(link.startswith("socket:") for link in links) == 2:
                found.append(pid)
    return sorted(found)


def _whole(tally: Tally) -> None:
    """The service itself is killed: nothing of it stays, and it starts again there."""
    port = free_port()
    with started(port=port) as service:
        family = service.family()
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        end = time.monotonic() + 5
        left = family
        while left and time.monotonic() < end:
            left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
            time.sleep(0.05)
        tally.check(not left, f"{len(left)} of {len(family)} processes stay")
    with started(port=port) as service:
        tally.check(service.ready(), "it does not start again")
