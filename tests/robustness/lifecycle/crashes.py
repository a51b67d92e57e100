"""Row C6: workers that die are replaced; a killed service leaves no process behind."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from bench.servers import free_port
from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.burst import send_all
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving, started
from tests.robustness.harness.traffic import Traffic
from tests.robustness.load.isolation import poison

MODEL = "digits"
EXTRA_SECONDS = 2.0  # for a recovery, beyond the time of a start
KILLED = {"one worker": 1, "all workers": 2, "abort": 0}


@row("C6", "kill -9 of workers under load and of the service; a worker's abort", full=5)
def crashes(tally: Tally, amount: int) -> None:
    """Requests are answered meanwhile, or get 503 if no worker is left."""
    requests = reference.requests(MODEL, 100, 60)
    start = time.monotonic()
    settings = {"module": fault_injection.MODULE, "workers": 2}
    with serving(tally, expect_tracebacks=True, **settings) as service:
        start_seconds = time.monotonic() - start
        tally.figure("start s", start_seconds)
        slowest = 0.0
        for turn in range(amount):
            for kind in KILLED:
                with Traffic(service.port, requests, 8, 100) as traffic:
                    time.sleep(0.3)
                    allowed = start_seconds + EXTRA_SECONDS
                    slowest = max(slowest, _crash(tally, service, kind, allowed))
                    time.sleep(0.3)
                for result in traffic.results:
                    unavailable = kind != "one worker" and result.status == 503
                    message = f"{kind}, turn {turn}: a request got {result.status}"
                    tally.check(result.correct or unavailable, message)
        tally.figure("recovered after s", slowest)
    for _ in range(amount):
        _kill_service(tally)


def _crash(tally: Tally, service: Service, kind: str, allowed: float) -> float:
    """Seconds until all workers are there again."""
    deaths = "unrolled_worker_deaths_total"
    before = service.metric(deaths)
    workers = worker_ids(service)
    start = time.monotonic()
    if kind == "abort":
        request = poison(fault_injection.ABORTS)
        (reply,) = asyncio.run(send_all(service.port, [request]))
        tally.check(reply.status == 500, f"a poison request gets {reply.status}")
    for pid in workers[: KILLED[kind]]:
        os.kill(pid, signal.SIGKILL)
    while time.monotonic() < start + 3 * allowed:
        now = worker_ids(service)
        replaced = len(now) == 2 and now != workers
        if replaced and service.metric(deaths) > before and service.is_ready():
            break
        time.sleep(0.05)
    seconds = time.monotonic() - start
    tally.check(seconds <= allowed, f"{kind}: recovered after {seconds:.1f} s")
    return seconds


def worker_ids(service: Service) -> list[int]:
    """The worker processes: those with two sockets, one of them for jobs."""
    workers = []
    for pid in service.processes()[1:]:
        with contextlib.suppress(OSError):  # it has just ended
            links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
            if sum(link.startswith("socket:") for link in links) == 2:
                workers.append(pid)
    return sorted(workers)


def _kill_service(tally: Tally) -> None:
    """A killed service leaves no process behind, and starts again on its port."""
    port = free_port()
    with started(port=port) as service:
        processes = service.processes()
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        deadline = time.monotonic() + 5
        left = processes
        while left and time.monotonic() < deadline:
            left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
            time.sleep(0.05)
        tally.check(not left, f"{len(left)} of {len(processes)} processes stay")
    with started(port=port) as service:
        tally.check(service.is_ready(), "it does not start again")
