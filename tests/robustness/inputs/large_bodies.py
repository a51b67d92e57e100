"""Rows A5, A7 and A9: bodies of the maximum size, deeply nested, or wrong throughout."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import (
    ENDPOINTS,
    HTTP,
    STREAMS,
    Endpoint,
    check_refusal,
)
from tests.robustness.harness.service import MIB, Service, serving, watch_memory
from tests.robustness.harness.strict_http import ConnectionClosed, StrictConnection
from tests.robustness.inputs.malformed_bodies import member

MAX_BODY, MAX_MESSAGE = 8 * MIB, MIB
CHUNK = 2**16
MEMORY_GROWTH = 8  # MiB
DEPTHS = (50, 120, 1_100, 250_000)
NESTED_SECONDS = 1.0
MAX_ERRORS = 20  # listed in a refusal
WRONG_CPU_SECONDS = 0.3
WRONG_NUMBER = b"1e39"  # valid JSON, but no float32


@row("A5", "Bodies of the maximum size, and one byte more", full=100, fast=8)
def maximum_size(tally: Tally, amount: int) -> None:
    """A body of the maximum size is answered, and one byte more gets 413, with its
    length declared or not; many oversized bodies leave no memory behind."""
    with serving(tally) as service:
        for endpoint in HTTP:
            _boundary(tally, service, endpoint)
        for endpoint in STREAMS:
            _stream_boundary(tally, service, endpoint)
        _oversized(tally, service, 10)  # allocate the buffers that are kept
        with watch_memory(service, MEMORY_GROWTH) as memory:
            _oversized(tally, service, amount)
        tally.figure("grown MiB", memory.increase)
        tally.figure("peak MiB", memory.peak_increase)
        grown = memory.increase
        tally.check(grown < MEMORY_GROWTH, f"grown by {grown:.1f} MiB")
        for endpoint in ENDPOINTS:
            status = endpoint.status_of_valid_body(service.port)
            tally.check(status == 200, f"{endpoint.name}: then valid gets {status}")


def _boundary(tally: Tally, service: Service, endpoint: Endpoint) -> None:
    longest = endpoint.valid_body().ljust(MAX_BODY)
    with StrictConnection(service.port) as connection:
        for chunk in (0, CHUNK, MAX_BODY):
            for extra, status in ((b"", 200), (b" ", 413)):
                body = longest + extra
                response = connection.request("POST", endpoint.path, body, chunk=chunk)
                where = f"{endpoint.name}, {len(extra)} over, chunks of {chunk}"
                tally.check(response.status == status, f"{where}: {response}")
                if status == 413:
                    check_refusal(tally, where, response, compat=endpoint.compat)


def _stream_boundary(tally: Tally, service: Service, endpoint: Endpoint) -> None:
    longest = endpoint.valid_body().ljust(MAX_MESSAGE)
    with endpoint.connect(service.port) as client:
        for extra, status in ((b"", 200), (b" ", 413), (b" " * MAX_MESSAGE, 413)):
            where = f"{endpoint.name}, {len(extra)} over"
            try:
                response = client.send(longest + extra)
            except ConnectionClosed as error:
                # A WebSocket closes with 1009 (RFC 6455); a client that still sends
                # may not see the reason.
                closes = endpoint.name == "socket" and status == 413
                tally.check(closes, f"{where}: {error}")
                continue
            tally.check(response.status == status, f"{where}: {response.status}")
            if status == 413:
                check_refusal(tally, where, response, compat=False)


def _oversized(tally: Tally, service: Service, amount: int) -> None:
    """Send oversized bodies in chunks, without their length."""
    body = b"[" * (MAX_BODY + 2 * CHUNK)
    for number in range(amount):
        endpoint = HTTP[number % len(HTTP)]
        with StrictConnection(service.port) as connection:
            response = connection.request("POST", endpoint.path, body, chunk=CHUNK)
        where = f"{endpoint.name}, oversized in chunks"
        tally.check(response.status == 413, f"{where}: {response.status}")


def nested(endpoint: Endpoint, depth: int) -> Iterator[tuple[str, bytes]]:
    """Nested lists and objects, closed and open, in place of each part of a body."""
    lists = b"[" * depth + b"]" * depth
    objects = b'{"a":' * depth + b"1" + b"}" * depth
    for name, value in (("lists", lists), ("objects", objects)):
        yield name, value
        yield f"{name} as sequence", endpoint.body(value)
        yield (
            f"{name} as text",
            member(endpoint.valid_body(), endpoint.text_field, value),
        )
    yield "open lists", b"[" * depth
    yield "open objects", b'{"a":' * depth
    yield "numbers", endpoint.body(b"[" * depth + b"0.5" + b"]" * depth)


@row("A7", "Deeply nested bodies", full=3, fast=1)
def deeply_nested(tally: Tally, amount: int) -> None:
    """Deeply nested bodies are refused within a second: as malformed, as invalid, or as
    too large. The tests' amount asserts no time."""
    with serving(tally) as service:
        slowest = 0.0
        for endpoint in ENDPOINTS:
            with endpoint.connect(service.port) as client:
                for depth in DEPTHS * amount:
                    for name, body in nested(endpoint, depth):
                        if len(body) > MAX_MESSAGE and endpoint in STREAMS:
                            continue
                        start = time.monotonic()
                        response = client.send(body)
                        seconds = time.monotonic() - start
                        slowest = max(slowest, seconds)
                        where = f"{endpoint.name}, {depth} {name}: {response.status}"
                        refused = response.status in (400, 413, 422)
                        refused &= seconds < NESTED_SECONDS or amount == 1
                        got = f"in {seconds:.1f} s {response.text:.80}"
                        tally.check(refused, f"{where} {got}")
                        check_refusal(tally, where, response, compat=endpoint.compat)
                    status = client.send(endpoint.valid_body()).status
                    where = f"{endpoint.name}, {depth}"
                    tally.check(status == 200, f"{where}: then valid gets {status}")
        tally.figure("slowest ms", 1000 * slowest)


def wrong_throughout(endpoint: Endpoint, numbers: int) -> tuple[bytes, int]:
    """Sequences whose numbers are all wrong, and how many errors that makes."""
    step = b"[%b]" % b",".join([WRONG_NUMBER] * endpoint.features)
    steps = min(numbers // endpoint.features, MAX_BODY // (len(step) + 1) - 10)
    if endpoint.name == "infer":
        steps = min(steps, 9_999)
        shape = b"[1, %d, %d]" % (steps, endpoint.features)
        sequence = b"[%b]" % b",".join([step] * steps)
        return endpoint.body(sequence).replace(b"[1, 2, 28]", shape), 1
    lengths = [9_000] * (steps // 9_000) + [steps % 9_000] * (steps % 9_000 > 0)
    sequences = [b"[%b]" % b",".join([step] * length) for length in lengths]
    return endpoint.body_of_sequences(sequences), steps * endpoint.features


@row("A9", "The largest bodies, every number wrong", full=20, fast=2)
def many_errors(tally: Tally, amount: int) -> None:
    """A refusal lists at most 20 errors and their total, in at most 8 KiB."""
    with serving(tally) as service:
        for endpoint in HTTP:
            body, count = wrong_throughout(endpoint, 1_600_000 if amount > 5 else 300_000)  # fmt: skip
            before = _cpu_seconds(service)
            with endpoint.connect(service.port, 10) as client:
                for _ in range(amount):
                    response = client.send(body)
                    where = f"{endpoint.name}: {response.status} {response.text:.100}"
                    tally.check(response.status == endpoint.status(422), where)
                    check_refusal(tally, where, response, compat=endpoint.compat)
                    problem = json.loads(response.body)
                    if endpoint.compat:
                        listed = problem["error"].count("must be finite")
                        tally.check(
                            0 < listed <= MAX_ERRORS, f"{where}: {listed} listed"
                        )
                        continue
                    listed, total = len(problem["errors"]), problem["error_count"]
                    tally.check(listed == MAX_ERRORS, f"{where}: {listed} listed")
                    tally.check(total == count, f"{where}: {total} of {count}")
            seconds = (_cpu_seconds(service) - before) / amount
            name = f"{endpoint.name} {len(body) / MIB:.1f} MiB, ms"
            tally.figure(name, 1000 * seconds)
            if amount > 5:  # the tests' amount asserts no time
                tally.check(seconds < WRONG_CPU_SECONDS, f"{name} {seconds:.2f} s")


def _cpu_seconds(service: Service) -> float:
    """CPU time of all its processes."""
    ticks = 0
    for pid in service.processes():
        with suppress(OSError):  # it has just ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
