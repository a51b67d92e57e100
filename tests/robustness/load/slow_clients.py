"""Rows B1 and B2: clients that hold connections open: slow ones, and very many."""

import asyncio
import socket
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import numpy as np

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.traffic import Traffic, baseline, capacity, latency_ms

MODEL = "digits"
HEADER_SECONDS, BODY_SECONDS, KEEP_ALIVE_SECONDS = 10, 20, 10
LINGER_SECONDS = 20  # added for a response that nobody reads
SLACK_SECONDS = 1.0
READERS = 50
CLIENTS = 32  # honest ones
COMPUTE_SECONDS = 3  # for the requests of the slow readers
PAUSE = 0.01  # seconds between two attackers, since starting them is work too
LOAD = 0.3  # of the capacity
WORSE, NOISE_MS = 2.0, 10.0  # allowed p99
FLOOD_SECONDS = 30
HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass(slots=True)
class Attacker:
    """A slow client, and when the service closed its connection."""

    kind: str
    allowed: float  # seconds until it must be closed
    opened: float = field(default_factory=time.monotonic)
    closed: float | None = None
    response: bytes = b""

    @property
    def seconds(self) -> float:
        return (self.closed or float("inf")) - self.opened


async def idle(port: int, attacker: Attacker) -> None:
    """Sends nothing."""
    await _drip(port, attacker, b"", b"")


async def slow_header(port: int, attacker: Attacker) -> None:
    """Sends a head, a byte a second."""
    await _drip(port, attacker, b"", HEAD * 3)


async def slow_body(port: int, attacker: Attacker) -> None:
    """Sends a body, a byte a second."""
    head = HEAD + b"Content-Length: 5000\r\n\r\n"
    await _drip(port, attacker, head, b'{"sequences": [[' + b"[0,0],\n" * 50)


async def slow_reader(port: int, attacker: Attacker) -> None:
    """Requests a large response and does not read it, so it cannot see the close."""
    frames = np.zeros((2000, reference.model("letters-live").features), int)
    request = reference.http_request("letters-live", frames)
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, request)
        await asyncio.sleep(attacker.allowed + 3 * SLACK_SECONDS)


KINDS = {
    idle: HEADER_SECONDS,
    slow_header: HEADER_SECONDS,
    slow_body: BODY_SECONDS,
    slow_reader: KEEP_ALIVE_SECONDS + LINGER_SECONDS,
}


async def _drip(port: int, attacker: Attacker, head: bytes, data: bytes) -> None:
    """Send `data` a byte a second, until the service closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    attacker.opened = time.monotonic()
    writer.write(head)
    closed = asyncio.create_task(_wait_closed(reader, writer, attacker))
    for byte in data:
        if closed.done():
            break
        with suppress(OSError):
            writer.write(bytes([byte]))
        await asyncio.wait([closed], timeout=1)
    await closed


async def _wait_closed(reader, writer, attacker: Attacker) -> None:
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(attacker.allowed + 2 * SLACK_SECONDS):
            with suppress(OSError):  # reset
                attacker.response = await reader.read()
            attacker.closed = time.monotonic()
    writer.transport.abort()


@row("B1", "200 idle, 200 slow heads, 200 slow bodies, 50 that do not read", full=200)
def slow_clients(tally: Tally, amount: int) -> None:
    """Slow clients are closed in time, with 408 if they began a request, and honest
    clients are served correctly and fast."""
    requests = reference.requests(MODEL, 200, 60)
    settings = {"header_seconds": HEADER_SECONDS, "body_seconds": BODY_SECONDS}
    settings |= {"keep_alive_seconds": KEEP_ALIVE_SECONDS}
    with serving(tally, **settings) as service:
        rate = LOAD * capacity(service.port, requests)
        before = baseline(service.port, requests, CLIENTS, rate, 5)
        with Traffic(service.port, requests, CLIENTS, rate) as traffic:
            attackers, descriptors, start = asyncio.run(_attack(service, amount))
        _check_honest(tally, traffic, before, start)
        # The honest clients' descriptors; the readers still hold their own ends open.
        leaked = f"{descriptors} descriptors more, though nobody reads"
        tally.check(descriptors <= 2 * CLIENTS, leaked)
        for attacker in attackers:
            if attacker.kind == slow_reader.__name__:
                continue
            where = f"{attacker.kind}: closed after {attacker.seconds:.1f} s"
            in_time = attacker.seconds <= attacker.allowed + SLACK_SECONDS
            tally.check(in_time, f"{where}, not {attacker.allowed}")
            if attacker.kind.startswith("slow") and attacker.closed:
                response = attacker.response
                tally.check(b" 408 " in response, f"{where} with {response[:40]!r}")


async def _attack(service: Service, amount: int) -> tuple[list[Attacker], int, float]:
    """The attackers at the end; the descriptors that the service has more when each
    should have been closed; the time from which all were connected."""
    attackers, tasks = [], []
    for attack, allowed in KINDS.items():
        for _ in range(min(amount, READERS) if attack is slow_reader else amount):
            attackers.append(Attacker(attack.__name__, allowed))
            tasks.append(asyncio.create_task(attack(service.port, attackers[-1])))
            await asyncio.sleep(PAUSE)
    start = time.monotonic() + COMPUTE_SECONDS
    await asyncio.sleep(max(KINDS.values()) + SLACK_SECONDS)
    more = service.open_resources()["descriptors"] - service.baseline["descriptors"]
    await asyncio.gather(*tasks, return_exceptions=True)
    return attackers, more, start


@row("B2", "1,000 idle connections, below and beyond the connection limit", full=1000)
def many_connections(tally: Tally, amount: int) -> None:
    """Honest clients are served; beyond the limit the longest idle are evicted."""
    requests = reference.requests(MODEL, 200, 60)
    for limit in (4 * amount, amount // 2):
        settings = {"max_connections": limit, "header_seconds": FLOOD_SECONDS + 10}
        with serving(tally, **settings) as service:
            rate = LOAD * capacity(service.port, requests)
            before = baseline(service.port, requests, CLIENTS, rate, 3)
            with Traffic(service.port, requests, CLIENTS, rate) as traffic:
                start = asyncio.run(_flood(tally, service, amount))
            _check_honest(tally, traffic, before, start, f"limit {limit}")


async def _flood(tally: Tally, service: Service, amount: int) -> float:
    """Open idle connections and hold them; the time from which all were open."""
    async with AsyncExitStack() as stack:
        for _ in range(amount):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", service.port)
                stack.callback(writer.transport.abort)
            await asyncio.sleep(PAUSE / 2)
        start = time.monotonic()
        while time.monotonic() < start + FLOOD_SECONDS:
            alive = await asyncio.to_thread(service.is_alive)
            tally.check(alive, "/livez does not respond")
            await asyncio.sleep(1)
    return start


def _check_honest(
    tally: Tally, traffic: Traffic, before: float, start: float, where: str = ""
) -> None:
    """Honest clients get correct responses, as fast as before. Latency counts once the
    attackers are connected, since connecting them is work for the same process."""
    traffic.check(tally, where)
    now = latency_ms(traffic.sent_between(start))
    figure = f"{now:.1f} (before {before:.1f})"
    tally.check(now <= max(WORSE * before, NOISE_MS), f"{where} p99 ms {figure}")
    tally.figure(f"{where} p99 ms".strip(), figure)
