"""Rows C1 to C3: graceful shutdown. Requests under way are answered, and the exit code is 0."""

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.busy_queue import LONG_SEQUENCES, ONE_AT_A_TIME, busy
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, launch, started
from tests.robustness.harness.traffic import LOST, Result, Traffic, capacity

MODEL, STREAM_MODEL = "digits", "letters-live"
DRAIN_SECONDS = 2
GRACE_SECONDS = 10
SHORT_GRACE = 3
EDGE = 0.1  # seconds before the drain's end: a later request may find the port closed
LOAD = 0.7  # of the capacity


@row("C1", "SIGTERM at 0.7 R, with keep-alive clients and open streams", full=20)
def stop_under_load(tally: Tally, amount: int) -> None:
    """Every request until the end of the drain is answered correctly, streams end with
    `stopping`, `/readyz` fails within half a second, and the exit code is 0."""
    requests = reference.requests(MODEL, 200, 60)
    requests += reference.requests(STREAM_MODEL, 50, 40)
    settings = {"drain_seconds": DRAIN_SECONDS, "grace_seconds": GRACE_SECONDS}
    rate, failed, count, slowest = 0.0, 0, 0, 0.0
    for _ in range(amount):
        with started(**settings) as service:
            rate = rate or LOAD * capacity(service.port, requests)
            results, seconds = _stop_under_load(tally, service, requests, rate)
            failed += sum(result.status != 200 for result in results)
            count += len(results)
            slowest = max(slowest, seconds)
    tally.figure("requests a second", rate)
    tally.figure("failed", f"{failed} of {count}")
    tally.figure("not ready after s", slowest)


def _stop_under_load(
    tally: Tally,
    service: Service,
    requests: list[reference.ReferenceRequest],
    rate: float,
) -> tuple[list[Result], float]:
    """The responses until the drain's end, and the seconds until `/readyz` fails."""
    with (
        Traffic(service.port, requests, 32, rate) as traffic,
        _OpenStreams(service.port) as streams,
    ):
        time.sleep(1)
        start = time.monotonic()
        service.terminate()
        unready = _wait_unready(service, start)
        code = _wait_exit(service, GRACE_SECONDS + DRAIN_SECONDS + 1)
        end = time.monotonic()
    drained = start + DRAIN_SECONDS
    results = traffic.sent_between(start - 1, drained - EDGE)
    for result in results:
        when = f"{result.sent - start:+.2f} s from the signal"
        tally.check(result.correct, f"{result.status} {when}")
    tally.check(unready <= 0.5, f"/readyz is 503 {unready:.2f} s after the signal")
    # What is under way at the drain's end is answered or refused, not cut off.
    late = traffic.sent_between(drained - EDGE, drained)
    lost = [r for r in late if r.status == LOST and r.done < end - 0.05]
    tally.check(len(lost) <= 1, f"{len(lost)} cut off at the end of the drain")
    seconds = end - start
    tally.check(seconds >= DRAIN_SECONDS, f"it ended {seconds:.1f} s after the signal")
    tally.check(code == 0, f"exit code {code}")
    for name, ending in streams.endings.items():
        tally.check(ending == "stopping", f"a stream ({name}) ended with {ending!r}")
    tally.check(len(streams.endings) == 2, f"streams not closed: {streams.endings}")
    return results, unready


@row("C2", "SIGTERM with a half-sent body and a batch under way", full=5, fast=1)
def stop_during_requests(tally: Tally, amount: int) -> None:
    """The batch is answered, the half-sent body gets 503, and the exit code is 0."""
    for _ in range(amount):
        with started(grace_seconds=SHORT_GRACE, **ONE_AT_A_TIME) as service:
            asyncio.run(_stop_during_requests(tally, service))


async def _stop_during_requests(tally: Tally, service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
        head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head + b'{"sequences": [[')
        async with busy(service, 1) as replies:
            start = time.monotonic()
            service.terminate()
            code = await asyncio.to_thread(_wait_exit, service, SHORT_GRACE + 1)
        seconds = time.monotonic() - start
        tally.check(code == 0, f"exit code {code}")
        tally.check(seconds <= SHORT_GRACE + 1, f"it took {seconds:.1f} s")
        statuses = [reply.status for reply in replies]
        message = f"{LONG_SEQUENCES} sequences under way got {statuses}"
        tally.check(statuses == [200], message)
        line = connection.recv(4096).split(b"\r\n")[0]
        tally.check(b" 503 " in line, f"the half-sent body got {line!r}")
    tally.figure("exit after s", seconds)


@row("C3", "SIGTERM while loading and warming up; twice; SIGINT", full=5)
def stop_early(tally: Tally, amount: int) -> None:
    """The service ends with 0 within five seconds, without a traceback."""
    injected = {
        "load": {fault_injection.LOAD_SECONDS: 1.5},
        "warm up": {fault_injection.CALL_SECONDS: 0.2},
        "twice": {},
        "interrupt": {},
    }
    slowest = 0.0
    for turn, kind in itertools.product(range(amount), injected):
        with tempfile.TemporaryDirectory() as folder:
            module = fault_injection.MODULE
            service = launch(Path(folder), module=module, injected=injected[kind])
            try:
                slowest = max(slowest, _stop_early(tally, service, kind, turn))
            finally:
                service.stop(0)
            text = service.log.read_text()
            tally.check("Traceback" not in text, f"{kind}: {text[-250:]}")
    tally.figure("slowest exit s", slowest)


def _stop_early(tally: Tally, service: Service, kind: str, turn: int) -> float:
    """The seconds until it has ended."""
    early = kind in ("load", "warm up")
    service.wait_until_alive() if early else service.wait_until_ready()
    if early:
        time.sleep(0.3 * turn)  # at another moment in each turn
    tally.check(not early or not service.is_ready(), f"{kind}: it is ready already")
    start = time.monotonic()
    first = signal.SIGINT if kind == "interrupt" else signal.SIGTERM
    service.process.send_signal(first)
    if kind == "twice":
        time.sleep(0.02 * turn)
        if service.process.poll() is None:
            service.terminate()
    code = _wait_exit(service, 6)
    seconds = time.monotonic() - start
    allowed = (0, 1) if kind == "twice" else (0,)
    tally.check(code in allowed, f"{kind}: exit code {code}")
    tally.check(seconds <= 5, f"{kind}: it took {seconds:.1f} s")
    left = [pid for pid in service.processes()[1:] if Path(f"/proc/{pid}").exists()]
    tally.check(not left, f"{kind}: {len(left)} processes are left")
    return seconds


def _wait_exit(service: Service, seconds: float) -> int | None:
    """The exit code; None if it still runs."""
    deadline = time.monotonic() + seconds
    while service.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return service.process.poll()


def _wait_unready(service: Service, start: float) -> float:
    """Seconds until `/readyz` responds with 503."""
    while time.monotonic() < start + DRAIN_SECONDS:
        try:
            if service.get("/readyz", timeout=1).status_code == 503:
                return time.monotonic() - start
        except httpx.HTTPError:
            break  # it does not even listen
        time.sleep(0.01)
    return float("inf")


class _OpenStreams:
    """A WebSocket and an NDJSON stream, each sending a message every 0.1 s."""

    def __init__(self, port: int):
        self._address = f"127.0.0.1:{port}/stream?model={STREAM_MODEL}"
        self.endings: dict[str, str] = {}  # by kind
        frames = [[0.0] * reference.model(STREAM_MODEL).features]
        self._message = json.dumps({"frames": frames})
        self._threads = [
            threading.Thread(target=run, daemon=True)
            for run in (self._run_websocket, self._run_ndjson)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for thread in self._threads:
            thread.join(20)

    def _run_websocket(self) -> None:
        self.endings["WebSocket"] = "cut off"
        with connect(f"ws://{self._address}", compression=None) as connection:
            for _ in range(300):
                # The end may arrive before this message is sent.
                with contextlib.suppress(ConnectionClosed):
                    connection.send(self._message)
                try:
                    ending = json.loads(connection.recv(5)).get("end")
                except ConnectionClosed:
                    return
                if ending:
                    self.endings["WebSocket"] = ending
                    return
                time.sleep(0.1)

    def _run_ndjson(self) -> None:
        self.endings["NDJSON"] = "cut off"

        def messages() -> Iterator[bytes]:
            for _ in range(300):
                yield self._message.encode() + b"\n"
                time.sleep(0.1)
                if self.endings["NDJSON"] != "cut off":
                    return

        url = f"http://{self._address}"
        with httpx.stream("POST", url, content=messages(), timeout=10) as response:
            for line in response.iter_lines():
                if ending := json.loads(line).get("end"):
                    self.endings["NDJSON"] = ending
