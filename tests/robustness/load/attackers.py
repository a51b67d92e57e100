"""Callers that want the service's memory, or its event loop, for themselves.

    python -m tests.robustness.load.attackers pipelined --port 8000 --count 60 --seconds 20

In a process of their own, so that they slow nobody who measures. Each comes so often,
and all are gone when their time is up.
"""

import argparse
import asyncio
import gzip
import json
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count as counted

import uvloop

from tests.robustness.harness.raw_connection import Exchange, frame
from tests.robustness.harness.refusal import PADDING, handshake, http

MIB = 2**20
CLIENTS = 64  # connections of one that asks again and again
READ_BYTES, READ_SECONDS = 1200, 0.1  # 12 KB a second
STEPS = 100
SMALL = 4096  # bytes of a buffer that is not read

Fields = tuple[bytes, ...]  # lines of a head
Attack = Callable[[int, int, float, Fields], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}


def attack(act: Attack) -> Attack:
    """Put a function into the table; it is given the port, how often, the seconds that
    it lasts, and the field with the key."""
    ATTACKS[act.__name__] = act
    return act


@attack
async def pipelined(port: int, count: int, seconds: float, key: Fields) -> None:
    """Requests without end on each connection, answers unread."""
    page = b"GET /playground/samples.json HTTP/1.1\r\nHost:\r\n\r\n"
    data = page * 8 + b"GET /v9 HTTP/1.1\r\nHost:\r\n\r\n" * 8_500
    await _unread(port, count, [data])


@attack
async def half_bodies(port: int, count: int, seconds: float, key: Fields) -> None:
    """7 of the 8 MiB that are said, and then nothing."""
    said = b"Content-Length: %d\r\n" % (8 * MIB)
    head = http("POST", "/classify", b"", *key)
    head = head.replace(b"Content-Length: 0\r\n", said)
    await _unread(port, count, [head, *[b" " * MIB] * 7])


@attack
async def unread_streams(port: int, count: int, seconds: float, key: Fields) -> None:
    """Streams of one long message, whose answer nobody reads."""
    body = gzip.compress(_message() + b"\n")
    request = http("POST", "/stream?model=letters-live", body, *key, b"Content-Encoding: gzip", kind=b"application/x-ndjson")  # fmt: skip
    await _unread(port, count, [request], every=seconds / 2 / count)


def _message() -> bytes:
    """Of a stream of letters-live: as long as may be, in few bytes."""
    return json.dumps({"frames": [[0] * 128] * 4_000}, separators=(",", ":")).encode()


async def _unread(port: int, count: int, parts: list[bytes], every: float = 0.002) -> None:  # fmt: skip
    """Send it over so many connections, and read nothing."""
    loop = asyncio.get_running_loop()

    async def one() -> None:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB // 16)
        made.setblocking(False)
        with made, suppress(OSError):
            await loop.sock_connect(made, ("127.0.0.1", port))
            for part in parts:
                await loop.sock_sendall(made, part)
            await asyncio.Event().wait()

    await _all(one, count, every)


@attack
async def texts(port: int, count: int, seconds: float, key: Fields) -> None:
    """Small bodies whose answers are hundred thousands of texts."""
    frames = {"name": "frames", "shape": [100, 156, 128], "datatype": "FP32"}
    frames["parameters"] = {"binary_data_size": 4 * 100 * 156 * 128}
    lengths = {"name": "lengths", "shape": [100], "datatype": "INT32"}
    lengths["parameters"] = {"binary_data_size": 400}
    wanted = {"binary_data": True, "classification": 26}
    outputs = [{"name": "probabilities", "parameters": wanted}]
    head = json.dumps({"inputs": [frames, lengths], "outputs": outputs}).encode()
    tail = bytes(4 * 100 * 156 * 128) + (1).to_bytes(4, "little") * 100
    length = b"Inference-Header-Content-Length: %d" % len(head)
    fields = (*key, length, b"Content-Encoding: gzip")
    body = gzip.compress(head + tail)
    await _again(port, count, [http("POST", "/v2/models/letters/infer", body, *fields)])


@attack
async def large_bodies(port: int, count: int, seconds: float, key: Fields) -> None:
    """Good bodies of 6 MiB, one after another: of few steps and very many spaces,
    since not what is computed is meant."""
    cell = b"0.5".ljust(6 * MIB // (28 * STEPS))
    body = b'{"sequences":[[%b]]}' % b",".join(
        [b"[%b]" % b",".join([cell] * 28)] * STEPS
    )
    await _again(port, count, [http("POST", "/classify", body, *key)])


@attack
async def wrong_bodies(port: int, count: int, seconds: float, key: Fields) -> None:
    """Bodies of the limit that are wrong in every number."""
    step = b"[%b]" % b",".join([b"1e39"] * 28)
    part = b"[%b]" % b",".join([step] * (MIB * 97 // 100 // len(step)))
    body = b'{"sequences":[%b]}' % b",".join([part] * 8)
    await _again(port, count, [http("POST", "/classify", body, *key)])


@attack
async def handshakes(port: int, count: int, seconds: float, key: Fields) -> None:
    """WebSockets without a key, with long heads."""
    request = handshake("/stream?model=digits", *PADDING)
    await _again(port, CLIENTS, [request], count)


@attack
async def trailers(port: int, count: int, seconds: float, key: Fields) -> None:
    """Trailers without end, behind a body of nothing."""
    head = http("POST", "/stream?model=digits", b"", *key, kind=b"application/x-ndjson")
    head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    parts = [head, b"0\r\nX: ", *[b"a" * MIB] * 60]
    loop = asyncio.get_running_loop()

    async def one() -> None:
        while True:
            with socket.socket() as made, suppress(OSError):
                made.setblocking(False)
                await loop.sock_connect(made, ("127.0.0.1", port))
                for part in parts:
                    await loop.sock_sendall(made, part)
            await asyncio.sleep(READ_SECONDS)

    await _all(one, count)


@attack
async def unknown_paths(port: int, count: int, seconds: float, key: Fields) -> None:
    """Paths that the dialects don't know, with long heads."""
    fields = (*key, *PADDING)
    paths = [http("GET", path, b"", *fields) for path in ("/v1/none", "/v2/none")]
    await _again(port, CLIENTS, paths, count)


async def _again(port: int, clients: int, requests: list[bytes], most: int = 0) -> None:
    """Ask one after another, on so many connections."""
    numbers = counted()

    async def one() -> None:
        exchange = None
        while not most or next(numbers) < most:
            try:
                if exchange is None or not exchange.usable:
                    exchange = await Exchange.open(port)
                for request in requests:
                    await exchange.ask(request)
            except OSError:
                await asyncio.sleep(0.05)

    await _all(one, clients)


@attack
async def idle_sockets(port: int, count: int, seconds: float, key: Fields) -> None:
    """WebSockets that say one large message, and then nothing."""
    sent = frame(_message().ljust(MIB))

    async def one() -> None:
        with suppress(OSError):
            exchange = await _socket(port, key, "letters-live")
            while b'"overloaded' in await exchange.tell(sent):
                await asyncio.sleep(1)
            await asyncio.Event().wait()

    await _all(one, count, seconds / 2 / count)


@attack
async def single_bytes(port: int, count: int, seconds: float, key: Fields) -> None:
    """WebSockets that send most of a large frame, and then byte after byte."""
    sent = frame(b" " * (MIB - 10))

    async def one() -> None:
        with suppress(OSError, RuntimeError):  # closed by the other side
            exchange = await _socket(port, key)
            exchange.send(sent[:1_000_000])
            for at in range(1_000_000, len(sent)):
                await asyncio.sleep(0.01)
                exchange.send(sent[at : at + 1])

    await _all(one, count)


@attack
async def slow_readers(port: int, count: int, seconds: float, key: Fields) -> None:
    """Large answers to compressed requests, read slowly."""
    # More than a socket takes at once.
    body = {"sequences": [[[0] * 128] * 7_800] * 2, "model": "letters-live"}
    packed = gzip.compress(json.dumps(body).encode())
    fields = (*key, b"Content-Encoding: gzip")
    request = http("POST", "/label", packed, *fields)
    loop = asyncio.get_running_loop()

    async def one() -> None:
        while True:
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            made.setblocking(False)
            with made, suppress(OSError):
                await loop.sock_connect(made, ("127.0.0.1", port))
                await loop.sock_sendall(made, request)
                while await loop.sock_recv(made, READ_BYTES):
                    await asyncio.sleep(READ_SECONDS)
            await asyncio.sleep(READ_SECONDS)

    await _all(one, count)


@attack
async def starts(port: int, count: int, seconds: float, key: Fields) -> None:
    """Streams that stay open and sequences that are kept, of one key."""
    numbers = counted(1)
    body = {"name": "frames", "shape": [1, 1, 28], "datatype": "FP32", "data": [0] * 28}

    async def sequence() -> None:
        exchange = None
        while (number := next(numbers)) <= count:
            parameters = {"sequence_id": f"{os.getpid()} {number}", "sequence_start": True}  # fmt: skip
            asked = json.dumps({"parameters": parameters, "inputs": [body]}).encode()
            request = http("POST", "/v2/models/digits/infer", asked, *key)
            with suppress(OSError):
                if exchange is None or not exchange.usable:
                    exchange = await Exchange.open(port)
                await exchange.ask(request)

    async def stream() -> None:
        with suppress(OSError):
            exchange = await _socket(port, key)
            if exchange.usable or not exchange.closed:
                await asyncio.Event().wait()

    sequences = asyncio.create_task(_all(sequence, CLIENTS))
    await _all(stream, count, seconds / 2 / count)
    await sequences


async def _socket(port: int, key: Fields, model: str = "digits") -> Exchange:
    exchange = await Exchange.open(port)
    await exchange.ask(handshake(f"/stream?model={model}", *key))
    return exchange


async def _all(one: Callable[[], Awaitable[None]], count: int, every: float = 0) -> None:  # fmt: skip
    """So many of it, one after another each so many seconds."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.ensure_future(one()))
        await asyncio.sleep(every)
    await asyncio.gather(*tasks)


async def _run(act: Attack, port: int, count: int, seconds: float, key: Fields) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await act(port, count, seconds, key)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.load.attackers")
    parser.add_argument("attack", choices=sorted(ATTACKS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--key", default="", help="of those that have one")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # They would be on other machines: here they take what the service and the honest
    # callers leave of the processor, and hold up none of them.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    key = (b"X-API-Key: " + options.key.encode(),) if options.key else ()
    act = ATTACKS[options.attack]
    uvloop.run(_run(act, options.port, options.count, options.seconds, key))


if __name__ == "__main__":
    main()
