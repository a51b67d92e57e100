"""Row A6: compressed bodies and streams: valid, broken, and decompression bombs."""

import gzip
import json
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import HTTP, LINES, check_refusal
from tests.robustness.harness.service import MIB, Service, serving, watch_memory
from tests.robustness.harness.strict_http import (
    ConnectionClosed,
    MalformedResponse,
    Response,
    StrictConnection,
)

WINDOW_BITS = {"gzip": 31, "deflate": 15}
COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}
UNSUPPORTED = (
    "gzip, gzip",
    "identity, gzip",
    "br",
    "zstd",
    "compress",
    "x",
    "gzip;q=1",
)
MEMORY_GROWTH = 32  # MiB
MEMORY_PEAK = 64  # MiB: a body of the maximum size, compressed and decompressed
BOMB_SECONDS = 2.0
STREAM_BOMB = 2 * MIB  # expands to 2 GiB
STREAM_BOMBS = {"one endless line": b" ", "empty lines": b"\n", "invalid lines": b"x\n", "brackets": b"["}  # fmt: skip


def bomb(coding: str, size: int, content: bytes = b" ") -> bytes:
    """About `size` bytes, which expand a thousandfold. One block is repeated, since
    compressing gigabytes takes a minute."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, WINDOW_BITS[coding])
    text = content * (MIB // len(content))
    head = compressor.compress(text) + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(text) + compressor.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // len(block))


def broken(coding: str, valid: bytes) -> Iterator[tuple[str, bytes]]:
    """Bodies that are not one complete compressed stream."""
    compress = COMPRESS.get(coding, zlib.compress)
    packed = compress(valid)
    yield "nothing", b""
    yield "plain", valid
    yield "a byte", packed[:1]
    yield "half", packed[: len(packed) // 2]
    yield "all but one", packed[:-1]
    yield "trailing byte", packed + b"x"
    yield "another coding", gzip.compress(valid) if coding != "gzip" else zlib.compress(valid)  # fmt: skip
    yield "raw", zlib.compress(valid, wbits=-15)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0x55
    yield "damaged", bytes(damaged)
    damaged = bytearray(compress(valid))
    damaged[-2] ^= 1
    yield "damaged checksum", bytes(damaged)
    yield "compressed twice", compress(compress(valid))
    yield "too many members", compress(b" ") * 65 if coding == "gzip" else b"\x78\x9c"


@row("A6", "Compressed bodies, and decompression bombs", full=100, fast=10)
def compressed(tally: Tally, amount: int) -> None:
    """Compressed bodies are answered as plain ones; broken ones get 400, unsupported
    codings 415, and bodies that expand beyond the limit 413, fast and in little memory."""
    with serving(tally) as service, StrictConnection(service.port) as connection:

        def post(path: str, body: bytes, coding: str) -> Response:
            fields = {"Content-Encoding": coding}
            return connection.request("POST", path, body, fields)

        for endpoint in HTTP:
            valid = endpoint.valid_body()
            for coding, compress in COMPRESS.items():
                for written in (coding, coding.upper(), f" {coding} "):
                    response = post(endpoint.path, compress(valid), written)
                    got = f"{response.status} {response.text:.80}"
                    where = f"{endpoint.name}, {written!r}"
                    tally.check(response.status == 200, f"{where}: {got}")
                for name, body in broken(coding, valid):
                    response = post(endpoint.path, body, coding)
                    where = f"{endpoint.name}, {coding}, {name}: {response.status}"
                    tally.check(response.status == 400, where)
                    check_refusal(tally, where, response, compat=endpoint.compat)
            twice = gzip.compress(gzip.compress(valid))
            for coding in UNSUPPORTED:
                response = post(endpoint.path, twice, coding)
                where = f"{endpoint.name}, {coding}: {response.status}"
                tally.check(response.status == 415, where)
                accepts = "accept-encoding" in response.headers
                tally.check(accepts, f"{where}, no Accept-Encoding")
                check_refusal(tally, where, response, compat=endpoint.compat)
        spaces = gzip.compress(b" " * MIB)
        with watch_memory(service, MEMORY_GROWTH) as memory:
            for number in range(amount):
                endpoint = HTTP[number % len(HTTP)]
                status = post(endpoint.path, spaces, "gzip").status
                tally.check(status in (400, 422), f"{endpoint.name}, spaces: {status}")
        grown = memory.increase
        tally.figure("grown MiB", grown)
        tally.check(grown < MEMORY_GROWTH, f"grown by {grown:.1f} MiB")
        oversized = [(c, bomb(c, size * MIB)) for c in WINDOW_BITS for size in (7, 10)]
        with watch_memory(service, MEMORY_GROWTH) as memory:
            for endpoint in HTTP:
                for number, (coding, body) in enumerate(oversized):
                    start = time.monotonic()
                    status = post(endpoint.path, body, coding).status
                    seconds = time.monotonic() - start
                    where = f"{endpoint.name}, bomb {number}"
                    fast = seconds < BOMB_SECONDS or amount <= 10
                    refused = status == 413 and fast
                    tally.check(refused, f"{where}: {status}, {seconds:.1f} s")
        grown, peak = memory.increase, memory.peak_increase
        tally.figure("bombs' peak MiB", peak)
        tally.check(grown < MEMORY_GROWTH, f"bombs: grown by {grown:.1f} MiB")
        tally.check(peak < MEMORY_PEAK, f"bombs: a peak of {peak:.1f} MiB")
        _streams(tally, service)
        if amount > 10:
            for coding in WINDOW_BITS:
                for name, content in STREAM_BOMBS.items():
                    body = bomb(coding, STREAM_BOMB, content)
                    _stream_bomb(tally, service, f"{coding}, {name}", coding, body)


def _streams(tally: Tally, service: Service) -> None:
    """Compressed NDJSON is answered as plain NDJSON; a broken stream ends with 400."""
    valid = (LINES.valid_body() + b"\n") * 3
    fields = {"Content-Type": "application/x-ndjson"}
    with StrictConnection(service.port) as connection:
        plain = connection.request("POST", LINES.path, valid, fields)
        tally.check(plain.status == 200, f"plain lines: {plain.status}")
        for coding, compress in COMPRESS.items():
            coded = fields | {"Content-Encoding": coding}
            response = connection.request("POST", LINES.path, compress(valid), coded)
            # The end carries a state token, signed anew.
            same = response.body.splitlines()[:3] == plain.body.splitlines()[:3]
            tally.check(same, f"{coding} lines: {response.text[:100]}")
            for name, body in broken(coding, valid):
                if name == "trailing byte" or "members" in name:
                    continue  # their lines are complete, or blank
                response = connection.request("POST", LINES.path, body, coded)
                messages = [json.loads(line) for line in response.body.splitlines()]
                errors = [m["error"]["status"] for m in messages if "error" in m]
                ended = "end" in messages[-1] and errors[-1:] == [400]
                tally.check(ended, f"{coding} lines, {name}: {response.text[:100]}")


def _stream_bomb(
    tally: Tally, service: Service, where: str, coding: str, body: bytes
) -> None:
    """Send a bomb: the service stays alive meanwhile, and well when the client has
    disconnected."""
    head = (
        f"POST {LINES.path} HTTP/1.1\r\nHost: here\r\nContent-Encoding: {coding}\r\n"
        f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with (
        watch_memory(service, MEMORY_PEAK) as memory,
        StrictConnection(service.port, 2) as connection,
    ):

        def send() -> None:
            with suppress(OSError, ConnectionClosed, MalformedResponse):
                connection.send(head.encode() + body)
                connection.read_response()

        thread = threading.Thread(target=send)
        thread.start()
        for _ in range(6):
            alive = service.is_alive()
            tally.check(alive, f"/livez does not respond beside a bomb of {where}")
            if not alive or not thread.is_alive():
                break
            time.sleep(0.05)
        thread.join()
    peak = memory.peak_increase
    tally.check(peak < MEMORY_PEAK, f"{where}: a peak of {peak:.0f} MiB")
    try:
        status: object = LINES.status_of_valid_body(service.port)
    except (ConnectionClosed, TimeoutError) as error:
        status = repr(error)
    tally.check(status == 200, f"after {where}: {status}")
