"""Rows M1 to M14: attacks on memory and the event loop, at ten times the size that once hurt.

`attackers` runs them in processes of their own, while honest clients with another API
key are served.
"""

import asyncio
import gzip
import hashlib
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from bench.http_connection import post_request
from bench.servers import repeating
from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.raw_connection import (
    RawConnection,
    is_complete,
    websocket_frame,
)
from tests.robustness.harness.reference import ReferenceRequest
from tests.robustness.harness.refusal import handshake, http
from tests.robustness.harness.service import ROOT, Service, serving
from tests.robustness.harness.traffic import Traffic, baseline, capacity, with_fields

HONEST, ATTACKER = "honest", "attacker"  # API keys
FIELD = b"X-API-Key: " + HONEST.encode() + b"\r\n"
MODEL = "digits"
LOAD = 0.3  # of the capacity
CLIENTS = 32
BASELINE_SECONDS = 5
PEAK_MIB = 400.0  # of the serving process
KEPT_MIB = 32.0  # that it may keep after the attack
SETTLE_SECONDS = 60
ABORT_MIB = 4_000.0  # the attack is stopped here for the machine's sake
WORSE, NOISE_MS = 2.0, 10.0  # allowed p99 of honest clients
# The attackers' computation takes turns with the honest clients'.
SHARED_MS = 1000.0
SLOW_MS, SLOWEST_MS, SLOW_SHARE = 250.0, 1000.0, 0.01  # of /livez
PROCESSES = 2
END_SECONDS = 60


class GzipRequest(ReferenceRequest):
    """A request whose body is compressed."""

    @property
    def http_request(self) -> bytes:
        request = post_request(self.path, gzip.compress(self.body, 1))
        return with_fields(request, b"Content-Encoding: gzip\r\n")


def small_requests() -> list[ReferenceRequest]:
    return reference.requests(MODEL, 200, 60)


def gzip_requests() -> list[ReferenceRequest]:
    plain = reference.requests(MODEL, 100, 60)
    return [GzipRequest(r.path, r.body, r.expected) for r in plain]


def large_requests() -> list[ReferenceRequest]:
    """Requests whose bodies are parsed in another process."""
    requests = [reference.request_of_length(MODEL, 700 + n) for n in range(10)]
    assert all(len(request.body) > 2**16 for request in requests)
    return requests


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack in the size that once hurt."""

    row: str
    title: str
    name: str  # of `attackers.ATTACKS`
    count: int
    seconds: float
    key: bool = True  # the attackers have an API key
    longer: bool = False  # a larger attack takes longer
    worse_ms: float = NOISE_MS  # allowed in honest p99, if that is not doubled
    grown_mib: float = math.inf  # allowed of all processes together
    honest: Callable[[], list[ReferenceRequest]] = small_requests
    fast: int = 0


ATTACKS = (
    Attack("M1", "pipelined requests without a key, unread", "pipelined", 60, 20, key=False, fast=1),
    Attack("M2", "small bodies, responses of 400,000 texts", "texts", 4, 20),
    Attack("M3", "long responses of streams, unread", "unread_streams", 80, 60, worse_ms=SHARED_MS),
    Attack("M4", "7 of 8 MiB of a body, and nothing more", "half_bodies", 150, 25),
    Attack("M5", "bodies of 6 MiB, one after another", "large_bodies", 1, 20),
    Attack("M6", "WebSockets without a key, heads of 12 KB", "handshakes", 10_000, 6, key=False, longer=True),
    Attack("M7", "idle WebSockets after a message of 1 MiB", "idle_sockets", 60, 60, worse_ms=SHARED_MS),
    Attack("M8", "a WebSocket frame in single bytes", "single_bytes", 40, 20),
    Attack("M9", "large responses, read at 12 KB/s; honest clients send gzip", "slow_readers", 16, 60,
           worse_ms=SHARED_MS, honest=gzip_requests),
    Attack("M10", "large invalid bodies; honest clients send large valid ones", "wrong_bodies", 4, 20,
           honest=large_requests),
    Attack("M11", "unknown paths of /v1 and /v2, heads of 12 KB", "unknown_paths", 10_000, 6, longer=True),
    Attack("M12", "streams and sequences started by one key", "starts", 2_000, 30),
    Attack("M13", "endless trailers", "trailers", 12, 20),
    Attack("M14", "texts and records of 8 MiB in 8 KB", "texts_and_records", 2, 12, grown_mib=150, fast=1),
)  # fmt: skip


def _settings() -> dict[str, str]:
    """A service with a key for the attackers and one for the honest clients."""
    digests = {name: hashlib.sha256(name.encode()) for name in (HONEST, ATTACKER)}
    return {"api_keys": ",".join(f"{k}:{v.hexdigest()}" for k, v in digests.items())}


def _run(attack: Attack, tally: Tally, factor: int) -> None:
    """So many times the size; once: only the memory is asserted."""
    memory_only = factor == 1
    if memory_only:
        attack = replace(attack, seconds=min(attack.seconds, 4))
    with serving(tally, **_settings()) as service:
        starting = (
            _honest_starts(tally, service) if attack.row == "M12" else nullcontext()
        )
        with starting:
            requests, rate = attack.honest(), 50.0
            if not memory_only:
                rate = LOAD * capacity(service.port, requests, fields=FIELD)
            seconds = 1 if memory_only else BASELINE_SECONDS
            port = service.port
            p99 = baseline(port, requests, CLIENTS, rate, seconds, FIELD)
            observer = Observer(service)
            before = observer.memory
            # Honest responses may wait for the last of the attackers' work.
            with (
                observer.running(),
                Traffic(port, requests, CLIENTS, rate, fields=FIELD) as traffic,
            ):
                _attack(tally, attack, observer, factor)
        deadline = time.monotonic() + SETTLE_SECONDS
        while (after := observer.memory) > before + KEPT_MIB and time.monotonic() < deadline:  # fmt: skip
            time.sleep(0.2)
        peak = max(observer.mib)
        message = f"{before:.0f} MiB before, {peak:.0f} at most, {after:.0f} at the end"
        tally.figure("MiB", message)
        tally.check(peak < PEAK_MIB, message)
        tally.check(after <= before + KEPT_MIB, message)
        grown = max(observer.all_mib) - observer.all_mib[0]
        tally.figure("all processes MiB more", grown)
        message = f"all processes grow by {grown:.0f} MiB"
        tally.check(grown <= attack.grown_mib, message)
        traffic.check(tally)
        now = traffic.p99
        tally.figure("p99 ms", f"{now:.1f} (before {p99:.1f})")
        tally.figure("/livez", observer.livez)
        if not memory_only:
            tally.check(not observer.is_livez_slow, f"/livez: {observer.livez}")
            allowed = max(WORSE * p99, p99 + attack.worse_ms)
            tally.check(now <= allowed, f"p99 {now:.1f} ms, before {p99:.1f}")


for _attack_row in ATTACKS:
    row(
        _attack_row.row, f"Attack: {_attack_row.title}", full=10, fast=_attack_row.fast
    )(partial(_run, _attack_row))


@dataclass(slots=True)
class Observer:
    """Measures the memory of the serving process, and the latency of `/livez`."""

    service: Service
    mib: list[float] = field(default_factory=list)
    all_mib: list[float] = field(default_factory=list)  # of all processes
    livez_ms: list[float] = field(default_factory=list)
    _connection: socket.socket | None = None

    @property
    def memory(self) -> float:
        return self.service.memory_mib(self.service.process.pid)

    @contextmanager
    def running(self) -> Iterator[None]:
        with (
            repeating(lambda: self.mib.append(self.memory), 0.05),
            repeating(lambda: self.all_mib.append(self.service.memory_mib()), 0.2),
            repeating(self._probe, 0.1),
        ):
            yield
        if self._connection is not None:
            self._connection.close()

    def _probe(self) -> None:
        start = time.monotonic()
        try:
            if self._connection is None:
                address = "127.0.0.1", self.service.port
                self._connection = socket.create_connection(address, 2)
            self._connection.sendall(http("GET", "/livez"))
            response = b""
            while not is_complete(response):
                part = self._connection.recv(4096)
                if not part:
                    raise ConnectionError
                response += part
        except OSError:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
        self.livez_ms.append(1000 * (time.monotonic() - start))

    @property
    def slowest(self) -> float:
        return max(self.livez_ms, default=0)

    @property
    def slow_share(self) -> float:
        slow = sum(ms > SLOW_MS for ms in self.livez_ms)
        return slow / max(len(self.livez_ms), 1)

    @property
    def is_livez_slow(self) -> bool:
        return self.slow_share > SLOW_SHARE or self.slowest > SLOWEST_MS

    @property
    def livez(self) -> str:
        return (
            f"{self.slowest:.0f} ms at most, {self.slow_share:.1%} over {SLOW_MS:.0f}"
        )


def _attack(tally: Tally, attack: Attack, observer: Observer, factor: int) -> None:
    """Run the attackers until their time is up."""
    seconds = attack.seconds * (factor if attack.longer else 1)
    count = attack.count * factor
    processes = min(PROCESSES, count)
    running = []
    for place in range(processes):
        share = count // processes + (place < count % processes)
        command = [sys.executable, "-m", "tests.robustness.load.attackers", attack.name]
        command += ["--port", str(observer.service.port), "--count", str(share)]
        command += ["--seconds", str(seconds)]
        command += ["--key", ATTACKER] if attack.key else []
        running.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL))
    deadline = time.monotonic() + seconds + END_SECONDS
    try:
        while any(p.poll() is None for p in running) and time.monotonic() < deadline:
            time.sleep(0.1)
            if max(observer.mib, default=0) > ABORT_MIB:
                break
    finally:
        for process in running:
            with suppress(OSError):
                process.kill()
            process.wait()
    codes = {process.returncode for process in running}
    tally.check(codes == {0}, f"the attackers end with {codes}")


@contextmanager
def _honest_starts(tally: Tally, service: Service) -> Iterator[None]:
    """An honest client starts a stream and a sequence each second meanwhile."""
    responses: list[bytes] = []

    def start() -> None:
        responses.extend(asyncio.run(_start(service.port)))

    try:
        with repeating(start, 1):
            yield
    finally:
        for response in responses:
            valid = b'"label"' in response or b'"probabilities"' in response
            tally.check(valid, f"another key gets {response[:200]!r}")
        tally.figure("started by another key", len(responses))


async def _start(port: int) -> list[bytes]:
    """The responses to a stream's first message, and to a sequence's."""
    fields, responses = (FIELD.strip(),), []
    step = [0.5] * 28
    tensor = {"name": "frames", "shape": [1, 1, 28], "datatype": "FP32", "data": step}
    flags = {"sequence_id": HONEST, "sequence_start": True, "sequence_end": True}
    body = json.dumps({"parameters": flags, "inputs": [tensor]}).encode()
    message = websocket_frame(json.dumps({"frames": [step]}).encode())
    for request, frame in (
        (handshake("/stream?model=digits", *fields), message),
        (http("POST", "/v2/models/digits/infer", body, *fields), b""),
    ):
        response = b"nothing"
        with suppress(OSError, TimeoutError):
            connection = await RawConnection.open(port)
            async with asyncio.timeout(10):
                response = await connection.request(request, frame)
            connection.close()
        responses.append(response)
    return responses
