"""Told to stop: whoever is being served is served, and then it ends with 0."""

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.busy_queue import ONE_LANE, PART, congested
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, launch, started
from tests.robustness.harness.traffic import LOST, Traffic, saturation

NETWORK, STREAMED = "digits", "letters-live"
DRAIN_SECONDS = 2
GRACE_SECONDS = 10
SHORT_GRACE = 3
EDGE = 0.1  # seconds before the drain's end: what is sent later may find it closed
LOAD = 0.7  # of what it can


@row("C1", "SIGTERM at 0.7 R, clients that keep alive, open streams", full=20)
def stopped_under_load(tally: Tally, amount: int) -> None:
    asked = reference.some(NETWORK, 200, 60) + reference.some(STREAMED, 50, 40)
    settings = {"drain_seconds": DRAIN_SECONDS, "grace_seconds": GRACE_SECONDS}
    rate, failed, answered = 0.0, 0, 0
    noticed: list[float] = []
    for _ in range(amount):
        with started(**settings) as service:
            rate = rate or LOAD * saturation(service.port, asked)
            told, seconds = _stop_under_load(tally, service, asked, rate)
            failed += sum(one.status != 200 for one in told)
            answered += len(told)
            noticed.append(seconds)
    tally.figure("requests a second", rate)
    tally.figure("failed", f"{failed} of {answered}")
    tally.figure("not ready after s", max(noticed))


def _stop_under_load(
    tally: Tally, service: Service, asked: list[reference.Question], rate: float
) -> tuple[list[Any], float]:
    """Answers until the drain's end, and the seconds until it says that it's not
    ready."""
    with (
        Traffic(service.port, asked, 32, rate) as traffic,
        _Streams(service.port) as streams,
    ):
        time.sleep(1)
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        noticed = _until_unready(service, began)
        code = _exit(service, GRACE_SECONDS + DRAIN_SECONDS + 1)
        ended = time.monotonic()
    told = traffic.since(began - 1, began + DRAIN_SECONDS - EDGE)
    for one in told:
        after = one.sent - began
        tally.check(one.status == 200, f"{one.status} {after:+.2f} s from the signal")
        tally.check(one.status != 200 or one.right, "a wrong answer")
    tally.check(noticed <= 0.5, f"/readyz is 503 {noticed:.2f} s after the signal")
    lasted = ended - began
    # Under way at the end: sent before it, and answered or refused, not cut off.
    late = traffic.since(began + DRAIN_SECONDS - EDGE, began + DRAIN_SECONDS)
    cut = [one for one in late if one.status == LOST and one.done < ended - 0.05]
    tally.check(len(cut) <= 1, f"{len(cut)} cut off at the end of the drain")
    tally.check(lasted >= DRAIN_SECONDS, f"it ended {lasted:.1f} s after the signal")
    tally.check(code == 0, f"exit code {code}")
    for name, ending in streams.endings.items():
        tally.check(ending == "stopping", f"a stream ({name}) was told {ending!r}")
    tally.check(len(streams.endings) == 2, f"streams not closed: {streams.endings}")
    return told, noticed


@row("C2", "SIGTERM with a half-sent body and a batch under way", full=5, fast=1)
def stopped_in_the_midst(tally: Tally, amount: int) -> None:
    for _ in range(amount):
        with started(grace_seconds=SHORT_GRACE, **ONE_LANE) as service:
            asyncio.run(_in_the_midst(tally, service))


async def _in_the_midst(tally: Tally, service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), 10) as half:
        head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        half.sendall(head + b'{"sequences": [[')
        async with congested(service, 1) as replies:
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(_exit, service, SHORT_GRACE + 1)
        lasted = time.monotonic() - began
        tally.check(code == 0, f"exit code {code}")
        tally.check(lasted <= SHORT_GRACE + 1, f"it took {lasted:.1f} s")
        got = [one.status for one in replies]
        tally.check(got == [200], f"{PART} sequences under way got {got}")
        answer = half.recv(4096)
        told = answer.split(b"\r\n")[0]
        tally.check(b" 503 " in told, f"the half-sent body got {told!r}")
    tally.figure("exit after s", lasted)


@row("C3", "SIGTERM while loading and warming; twice; SIGINT", full=5)
def stopped_early(tally: Tally, amount: int) -> None:
    slow = {fault_injection.LOAD_SECONDS: 1.5}
    slowest = 0.0
    for turn, kind in itertools.product(
        range(amount), ("load", "warm", "twice", "int")
    ):
        with tempfile.TemporaryDirectory() as folder:
            injected = slow if kind == "load" else {}
            if kind == "warm":
                injected = {fault_injection.CALL_SECONDS: 0.2}
            service = launch(
                Path(folder),
                module="tests.robustness.harness.fault_injection",
                injected=injected,
            )
            try:
                seconds = _stop_early(tally, service, kind, turn)
            finally:
                service.stop(0)
            slowest = max(slowest, seconds)
            text = service.log.read_text()
            tally.check("Traceback" not in text, f"{kind}: {text[-250:]}")
    tally.figure("slowest exit s", slowest)


def _stop_early(tally: Tally, service: Service, kind: str, turn: int) -> float:
    """The seconds until it has ended."""
    end = time.monotonic() + 30
    early = kind in ("load", "warm")
    while not (service.lives() if early else service.ready()):
        assert time.monotonic() < end, service.log.read_text()[-300:]
        time.sleep(0.02)
    if early:
        time.sleep(0.3 * turn)  # at another moment of it each time
    tally.check(not early or not service.ready(), f"{kind}: it is ready already")
    began = time.monotonic()
    first = signal.SIGINT if kind == "int" else signal.SIGTERM
    service.process.send_signal(first)
    if kind == "twice":
        time.sleep(0.02 * turn)
        if service.process.poll() is None:
            service.process.send_signal(signal.SIGTERM)
    code = _exit(service, 6)
    seconds = time.monotonic() - began
    allowed = (0, 1) if kind == "twice" else (0,)
    tally.check(code in allowed, f"{kind}: exit code {code}")
    tally.check(seconds <= 5, f"{kind}: it took {seconds:.1f} s")
    left = [pid for pid in service.family()[1:] if Path(f"/proc/{pid}").exists()]
    tally.check(not left, f"{kind}: {len(left)} processes are left")
    return seconds


def _exit(service: Service, seconds: float) -> int | None:
    """The exit code; None where it goes on."""
    end = time.monotonic() + seconds
    while service.process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    return service.process.poll()


def _until_unready(service: Service, began: float) -> float:
    """Seconds until /readyz says 503."""
    while time.monotonic() < began + DRAIN_SECONDS:
        try:
            if service.get("/readyz", timeout=1).status_code == 503:
                return time.monotonic() - began
        except httpx.HTTPError:
            break  # it does not even listen
        time.sleep(0.01)
    return float("inf")


class _Streams:
    """A stream of each kind, each told something every 0.1 s until it is ended."""

    def __init__(self, port: int):
        self._port = port
        self.endings: dict[str, str] = {}  # by kind
        frames = [[0.0] * reference.alone(STREAMED).metadata.input.features]
        self._message = json.dumps({"frames": frames})
        self._threads = [
            threading.Thread(target=one, daemon=True) for one in (self._ws, self._lines)
        ]

    def __enter__(self) -> "_Streams":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for thread in self._threads:
            thread.join(20)

    def _ws(self) -> None:
        url = f"ws://127.0.0.1:{self._port}/stream?model={STREAMED}"
        self.endings["web socket"] = "cut off"
        with connect(url, compression=None) as socket:
            for _ in range(300):
                # It may end before this message, and then stands in front of nothing.
                with contextlib.suppress(ConnectionClosed):
                    socket.send(self._message)
                try:
                    ending = json.loads(socket.recv(5)).get("end")
                except ConnectionClosed:
                    return
                if ending:
                    self.endings["web socket"] = ending
                    return
                time.sleep(0.1)

    def _lines(self) -> None:
        self.endings["JSON lines"] = "cut off"

        def messages():
            for _ in range(300):
                yield self._message.encode() + b"\n"
                time.sleep(0.1)
                if self.endings["JSON lines"] != "cut off":
                    return

        url = f"http://127.0.0.1:{self._port}/stream?model={STREAMED}"
        with httpx.stream("POST", url, content=messages(), timeout=10) as answer:
            for line in answer.iter_lines():
                if ending := json.loads(line).get("end"):
                    self.endings["JSON lines"] = ending
