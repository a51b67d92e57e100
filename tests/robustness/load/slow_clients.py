"""Clients that hold on to connections: slow ones, and very many."""

import asyncio
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.traffic import Traffic, p, saturation

NETWORK = "digits"
HEADER_SECONDS, BODY_SECONDS, KEEP_ALIVE_SECONDS = 10, 20, 10
LINGER_SECONDS = 20  # more, where nobody reads what was written
SLACK = 1.0
READERS = 50
CLIENTS = 32  # honest ones
COMPUTED_SECONDS = 3  # for what the readers asked
PAUSE = 0.01  # seconds between two attackers: their start itself is work
LOAD = 0.3  # of R
WORSE, TIMER_MS = 2.0, 10.0  # p99; what is less is noise
FLOOD_SECONDS = 30
HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass(slots=True)
class Attacker:
    """What one does, and when it was closed."""

    kind: str
    allowed: float  # seconds until it must have been closed
    begun: float = field(default_factory=time.monotonic)
    closed: float | None = None
    said: bytes = b""

    @property
    def lasted(self) -> float:
        return (self.closed or float("inf")) - self.begun


async def idle(port: int, attacker: Attacker) -> None:
    """Says nothing."""
    reader, writer = await _open(port, attacker)
    await _until_closed(reader, writer, attacker)


async def half_header(port: int, attacker: Attacker) -> None:
    """Sends a head, a byte a second."""
    reader, writer = await _open(port, attacker)
    await _drip(reader, writer, attacker, HEAD * 3)


async def half_body(port: int, attacker: Attacker) -> None:
    """Sends a body, a byte a second."""
    reader, writer = await _open(port, attacker)
    writer.write(HEAD + b"Content-Length: 5000\r\n\r\n")
    await _drip(reader, writer, attacker, b'{"sequences": [[' + b"[0,0],\n" * 50)


async def slow_reader(port: int, attacker: Attacker) -> None:
    """Asks for a large answer and doesn't read it: it can't see when it is cut off."""
    loop = asyncio.get_running_loop()
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    made.setblocking(False)
    with made:
        await loop.sock_connect(made, ("127.0.0.1", port))
        await loop.sock_sendall(made, _large())
        await asyncio.sleep(attacker.allowed + 3 * SLACK)


KINDS = {
    idle: HEADER_SECONDS,
    half_header: HEADER_SECONDS,
    half_body: BODY_SECONDS,
    slow_reader: KEEP_ALIVE_SECONDS + LINGER_SECONDS,
}


@row("B1", "200 idle, 200 half heads, 200 half bodies, 50 that do not read", full=200)
def slow(tally: Tally, amount: int) -> None:
    asked = reference.some(NETWORK, 200, 60)
    with serving(
        tally,
        header_seconds=HEADER_SECONDS,
        body_seconds=BODY_SECONDS,
        keep_alive_seconds=KEEP_ALIVE_SECONDS,
    ) as service:
        rate = LOAD * saturation(service.port, asked)
        with Traffic(service.port, asked, CLIENTS, rate) as traffic:
            time.sleep(5)
        base = p(traffic.told)
        with Traffic(service.port, asked, CLIENTS, rate) as traffic:
            attackers, held, there = asyncio.run(_attack(service, amount))
        _legit(tally, traffic, base, there)
        # Those of the others; its own are still held open by the readers.
        tally.check(held <= 2 * CLIENTS, f"{held} descriptors more, nobody reads")
        for one in attackers:
            if one.kind == slow_reader.__name__:
                continue
            told = f"{one.kind}: closed after {one.lasted:.1f} s, not {one.allowed}"
            tally.check(one.lasted <= one.allowed + SLACK, told)
            if one.kind.startswith("half") and one.lasted < float("inf"):
                told = f"{one.kind}: told {one.said[:40]!r}"
                tally.check(b" 408 " in one.said, told)


async def _attack(service: Service, amount: int) -> tuple[list[Attacker], int, float]:
    """The attackers when all is over; the descriptors that the service had more when
    each should have been closed; since when they were there."""
    made, tasks = [], []
    before = service.before["descriptors"]
    for act, allowed in KINDS.items():
        count = min(amount, READERS) if act is slow_reader else amount
        for _ in range(count):
            made.append(Attacker(act.__name__, allowed))
            tasks.append(asyncio.create_task(act(service.port, made[-1])))
            await asyncio.sleep(PAUSE)
    there = time.monotonic() + COMPUTED_SECONDS
    await asyncio.sleep(max(KINDS.values()) + SLACK)
    more = service.counts()["descriptors"] - before
    await asyncio.gather(*tasks, return_exceptions=True)
    return made, more, there


@row("B2", "1,000 idle connections, and as many as may be", full=1000)
def flooded(tally: Tally, amount: int) -> None:
    asked = reference.some(NETWORK, 200, 60)
    # First within the limit; then beyond it, where those idle for longest must go.
    for most in (4 * amount, amount // 2):
        with serving(
            tally, max_connections=most, header_seconds=FLOOD_SECONDS + 10
        ) as service:
            rate = LOAD * saturation(service.port, asked)
            with Traffic(service.port, asked, CLIENTS, rate) as traffic:
                time.sleep(3)
            base = p(traffic.told)
            with Traffic(service.port, asked, CLIENTS, rate) as traffic:
                there = asyncio.run(_flood(tally, service, amount))
            _legit(tally, traffic, base, there, f"limit {most}")


async def _flood(tally: Tally, service: Service, amount: int) -> float:
    """Since when they were there."""
    async with AsyncExitStack() as stack:
        for _ in range(amount):
            with suppress(OSError):
                await stack.enter_async_context(_connection(service.port))
            await asyncio.sleep(PAUSE / 2)
        there = time.monotonic()
        while time.monotonic() < there + FLOOD_SECONDS:
            alive = await asyncio.to_thread(service.lives)
            tally.check(alive, "/livez does not answer")
            await asyncio.sleep(1)
    return there


def _legit(
    tally: Tally, traffic: Traffic, base: float, there: float, where: str = ""
) -> None:
    """The others were served as well as without, and as fast once the attackers are
    there: they come from the same process, and their coming is work for it."""
    for one in traffic.told:
        tally.check(one.right, f"{where} an honest request got {one.status}")
    now = p(traffic.since(there))
    tally.check(
        now <= max(WORSE * base, TIMER_MS), f"{where} p99 {now:.1f}, {base:.1f}"
    )
    tally.figure(f"{where} p99 ms".strip(), f"{now:.1f} (before {base:.1f})")


@asynccontextmanager
async def _connection(port: int):
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield
    finally:
        writer.transport.abort()


async def _open(port: int, attacker: Attacker):
    opened = await asyncio.open_connection("127.0.0.1", port)
    attacker.begun = time.monotonic()
    return opened


async def _drip(reader, writer, attacker: Attacker, data: bytes) -> None:
    waits = asyncio.create_task(_until_closed(reader, writer, attacker))
    for byte in data:
        if waits.done():
            break
        with suppress(OSError):
            writer.write(bytes([byte]))
        await asyncio.wait([waits], timeout=1)
    await waits


async def _until_closed(reader, writer, attacker: Attacker) -> None:
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(attacker.allowed + 2 * SLACK):
            with suppress(OSError):  # cut off
                attacker.said = await reader.read()
            attacker.closed = time.monotonic()
    writer.transport.abort()


def _large() -> bytes:
    """A request whose answer is some MiB."""
    network = reference.alone("letters-live").metadata
    frames = reference.np.zeros((2000, network.input.features), int)
    made = reference.body("letters-live", frames)
    return reference.request("/label", made)
