"""Clients that try to take the service's memory, or its event loop, for themselves.

    python -m tests.robustness.load.attackers pipelined --port 8000 --count 60 --seconds 20

Each attack runs in a process of its own, so that it slows down no client that measures,
with a number of connections or requests, until its time is up.
"""

import argparse
import asyncio
import gzip
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count as counter

import uvloop

from tests.robustness.harness.raw_connection import RawConnection, websocket_frame
from tests.robustness.harness.refusal import PADDING, handshake, http

MIB = 2**20
CLIENTS = 64  # connections of attacks that repeat requests
READ_BYTES, READ_SECONDS = 1200, 0.1  # 12 KB a second
STEPS = 100
SMALL_BUFFER = 4096  # bytes of a socket that is not read
NDJSON = b"application/x-ndjson"

Fields = tuple[bytes, ...]  # header lines: the API key, if there is one
Attack = Callable[[int, int, float, Fields], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Register an attack: a function of port, count, seconds and header lines."""
    ATTACKS[function.__name__] = function
    return function


@attack
async def pipelined(port: int, count: int, seconds: float, key: Fields) -> None:
    """Endless requests on each connection, responses unread."""
    page = b"GET /playground/samples.json HTTP/1.1\r\nHost:\r\n\r\n"
    data = page * 8 + b"GET /v9 HTTP/1.1\r\nHost:\r\n\r\n" * 8_500
    await _send_unread(port, count, [data])


@attack
async def half_bodies(port: int, count: int, seconds: float, key: Fields) -> None:
    """7 of 8 declared MiB, and then nothing."""
    length = b"Content-Length: %d\r\n" % (8 * MIB)
    head = http("POST", "/classify", b"", *key)
    head = head.replace(b"Content-Length: 0\r\n", length)
    await _send_unread(port, count, [head, *[b" " * MIB] * 7])


@attack
async def unread_streams(port: int, count: int, seconds: float, key: Fields) -> None:
    """Streams with one long message, responses unread."""
    body = gzip.compress(_long_message() + b"\n")
    fields = (*key, b"Content-Encoding: gzip")
    request = http("POST", "/stream?model=letters-live", body, *fields, media_type=NDJSON)  # fmt: skip
    await _send_unread(port, count, [request], interval=seconds / 2 / count)


def _long_message() -> bytes:
    """The longest message of a stream of letters-live, in few bytes."""
    return json.dumps({"frames": [[0] * 128] * 4_000}, separators=(",", ":")).encode()


async def _send_unread(
    port: int, count: int, parts: list[bytes], interval: float = 0.002
) -> None:
    """Send `parts` over so many connections, and read nothing."""
    loop = asyncio.get_running_loop()

    async def client() -> None:
        with suppress(OSError):
            async with _socket(port, send_buffer=MIB // 16) as connection:
                for part in parts:
                    await loop.sock_sendall(connection, part)
                await asyncio.Event().wait()

    await _run_clients(client, count, interval)


@asynccontextmanager
async def _socket(port: int, send_buffer: int = 0) -> AsyncIterator[socket.socket]:
    """A socket with a small receive buffer."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        if send_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        yield connection


@attack
async def texts(port: int, count: int, seconds: float, key: Fields) -> None:
    """Small bodies whose responses are hundreds of thousands of texts."""
    size = 4 * 100 * 156 * 128
    frames = {"name": "frames", "shape": [100, 156, 128], "datatype": "FP32",
              "parameters": {"binary_data_size": size}}  # fmt: skip
    lengths = {"name": "lengths", "shape": [100], "datatype": "INT32",
               "parameters": {"binary_data_size": 400}}  # fmt: skip
    parameters = {"binary_data": True, "classification": 26}
    outputs = [{"name": "probabilities", "parameters": parameters}]
    head = json.dumps({"inputs": [frames, lengths], "outputs": outputs}).encode()
    tail = bytes(size) + (1).to_bytes(4, "little") * 100
    length = b"Inference-Header-Content-Length: %d" % len(head)
    fields = (*key, length, b"Content-Encoding: gzip")
    body = gzip.compress(head + tail)
    request = http("POST", "/v2/models/letters/infer", body, *fields)
    await _repeat(port, count, [request])


@attack
async def large_bodies(port: int, count: int, seconds: float, key: Fields) -> None:
    """Valid bodies of 6 MiB, one after another; of few steps and very many spaces, as
    the attack is on parsing."""
    number = b"0.5".ljust(6 * MIB // (28 * STEPS))
    steps = [b"[%b]" % b",".join([number] * 28)] * STEPS
    body = b'{"sequences":[[%b]]}' % b",".join(steps)
    await _repeat(port, count, [http("POST", "/classify", body, *key)])


@attack
async def wrong_bodies(port: int, count: int, seconds: float, key: Fields) -> None:
    """Bodies of the maximum size in which every number is wrong."""
    step = b"[%b]" % b",".join([b"1e39"] * 28)
    part = b"[%b]" % b",".join([step] * (MIB * 97 // 100 // len(step)))
    body = b'{"sequences":[%b]}' % b",".join([part] * 8)
    await _repeat(port, count, [http("POST", "/classify", body, *key)])


@attack
async def texts_and_records(port: int, count: int, seconds: float, key: Fields) -> None:
    """Texts and records of the maximum size in 8 KB of gzip each: one word, one letter, empty
    lists and objects, and thousands of members, tokens and spans."""
    inputs = (
        b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ['
    )
    label = b'{"model": "tags", "top_k": 1, "spans": true, '
    forms = (
        ("/label", b'{"model": "tags", "texts": ["1', b".1", b'"]}'),
        ("/classify", b'{"texts": ["', "€".encode(), b'"]}'),
        ("/label", b'{"model": "tags", "texts": ["', b"a", b'"]}'),
        ("/label", b'{"model": "tags", "tokens": [[""', b',"a"', b"]]}"),
        ("/classify", b'{"records": [[{"a": 1', b',"a":1', b"}]]}"),
        ("/v1/models/tags:predict", b'{"instances": [{}', b", {}", b"]}"),
        ("/v2/models/tags/infer", inputs + b"[]", b",[]", b"]}]}"),
    )
    requests = []
    for path, start, piece, end in forms:
        times = (8 * MIB - len(start) - len(end)) // len(piece)
        body = gzip.compress(start + piece * times + end)
        requests.append(http("POST", path, body, *key, b"Content-Encoding: gzip"))
    for start, piece, times, end in (
        (b'"texts": ["', b"a " * 100, 99, b'"]}'),
        (b'"tokens": [["', b"a" * 4_000 + b'", "', 2_000, b'a"]]}'),
    ):
        body = gzip.compress(label + start + piece * times + end)
        requests.append(http("POST", "/label", body, *key, b"Content-Encoding: gzip"))
    await _repeat(port, count, requests)


@attack
async def handshakes(port: int, count: int, seconds: float, key: Fields) -> None:
    """WebSocket handshakes without a key, with long heads."""
    request = handshake("/stream?model=digits", *PADDING)
    await _repeat(port, CLIENTS, [request], count)


@attack
async def trailers(port: int, count: int, seconds: float, key: Fields) -> None:
    """Endless trailers after an empty body."""
    head = http("POST", "/stream?model=digits", b"", *key, media_type=NDJSON)
    head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    parts = [head, b"0\r\nX: ", *[b"a" * MIB] * 60]
    loop = asyncio.get_running_loop()

    async def client() -> None:
        while True:
            with socket.socket() as connection, suppress(OSError):
                connection.setblocking(False)
                await loop.sock_connect(connection, ("127.0.0.1", port))
                for part in parts:
                    await loop.sock_sendall(connection, part)
            await asyncio.sleep(READ_SECONDS)

    await _run_clients(client, count)


@attack
async def unknown_paths(port: int, count: int, seconds: float, key: Fields) -> None:
    """Unknown paths of the compatible APIs, with long heads."""
    fields = (*key, *PADDING)
    paths = [http("GET", path, b"", *fields) for path in ("/v1/none", "/v2/none")]
    await _repeat(port, CLIENTS, paths, count)


async def _repeat(port: int, clients: int, requests: list[bytes], limit: int = 0) -> None:  # fmt: skip
    """Send the requests again and again, on so many connections."""
    numbers = counter()

    async def client() -> None:
        connection = None
        while not limit or next(numbers) < limit:
            try:
                if connection is None or not connection.usable:
                    connection = await RawConnection.open(port)
                for request in requests:
                    await connection.request(request)
            except OSError:
                await asyncio.sleep(0.05)

    await _run_clients(client, clients)


@attack
async def idle_sockets(port: int, count: int, seconds: float, key: Fields) -> None:
    """WebSockets that send one large message, and then nothing."""
    frame = websocket_frame(_long_message().ljust(MIB))

    async def client() -> None:
        with suppress(OSError):
            connection = await _open_stream(port, key, "letters-live")
            while b'"overloaded' in await connection.send_frame(frame):
                await asyncio.sleep(1)
            await asyncio.Event().wait()

    await _run_clients(client, count, seconds / 2 / count)


@attack
async def single_bytes(port: int, count: int, seconds: float, key: Fields) -> None:
    """WebSockets that send most of a large frame, and then single bytes."""
    frame = websocket_frame(b" " * (MIB - 10))

    async def client() -> None:
        with suppress(OSError, RuntimeError):  # closed by the service
            connection = await _open_stream(port, key)
            connection.send(frame[:1_000_000])
            for place in range(1_000_000, len(frame)):
                await asyncio.sleep(0.01)
                connection.send(frame[place : place + 1])

    await _run_clients(client, count)


@attack
async def slow_readers(port: int, count: int, seconds: float, key: Fields) -> None:
    """Large responses to compressed requests, read slowly."""
    # More than a socket takes at once.
    body = {"sequences": [[[0] * 128] * 7_800] * 2, "model": "letters-live"}
    packed = gzip.compress(json.dumps(body).encode())
    request = http("POST", "/label", packed, *key, b"Content-Encoding: gzip")
    loop = asyncio.get_running_loop()

    async def client() -> None:
        while True:
            with suppress(OSError):
                async with _socket(port) as connection:
                    await loop.sock_sendall(connection, request)
                    while await loop.sock_recv(connection, READ_BYTES):
                        await asyncio.sleep(READ_SECONDS)
            await asyncio.sleep(READ_SECONDS)

    await _run_clients(client, count)


@attack
async def starts(port: int, count: int, seconds: float, key: Fields) -> None:
    """Streams and sequences that stay open, started by one key."""
    numbers = counter(1)
    tensor = {"name": "frames", "shape": [1, 1, 28], "datatype": "FP32", "data": [0] * 28}  # fmt: skip

    async def start_sequences() -> None:
        connection = None
        while (number := next(numbers)) <= count:
            flags = {"sequence_id": f"{os.getpid()} {number}", "sequence_start": True}
            body = json.dumps({"parameters": flags, "inputs": [tensor]}).encode()
            request = http("POST", "/v2/models/digits/infer", body, *key)
            with suppress(OSError):
                if connection is None or not connection.usable:
                    connection = await RawConnection.open(port)
                await connection.request(request)

    async def start_stream() -> None:
        with suppress(OSError):
            connection = await _open_stream(port, key)
            if connection.usable or not connection.closed:
                await asyncio.Event().wait()

    sequences = asyncio.create_task(_run_clients(start_sequences, CLIENTS))
    await _run_clients(start_stream, count, seconds / 2 / count)
    await sequences


async def _open_stream(port: int, key: Fields, model: str = "digits") -> RawConnection:
    connection = await RawConnection.open(port)
    await connection.request(handshake(f"/stream?model={model}", *key))
    return connection


async def _run_clients(
    client: Callable[[], Awaitable[None]], count: int, interval: float = 0
) -> None:
    """So many clients, started at an interval."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.ensure_future(client()))
        await asyncio.sleep(interval)
    await asyncio.gather(*tasks)


async def _run(name: str, port: int, count: int, seconds: float, key: Fields) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ATTACKS[name](port, count, seconds, key)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.load.attackers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("attack", choices=sorted(ATTACKS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--key", default="", help="API key, if they have one")
    options = parser.parse_args()
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    # Attackers run on other machines: here they take the processor time that the
    # service and the honest clients leave, and delay neither.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    key = (b"X-API-Key: " + options.key.encode(),) if options.key else ()
    uvloop.run(_run(options.attack, options.port, options.count, options.seconds, key))


if __name__ == "__main__":
    main()
