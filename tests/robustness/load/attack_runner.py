"""The service while somebody is after its memory: what the others, and it, feel."""

import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally
from tests.robustness.harness.raw_connection import whole
from tests.robustness.harness.reference import Question
from tests.robustness.harness.refusal import http
from tests.robustness.harness.service import ROOT, Service
from tests.robustness.harness.traffic import Traffic, p, saturation

HONEST, ATTACKER = "honest", "attacker"  # their keys
FIELD = b"X-API-Key: " + HONEST.encode() + b"\r\n"
NETWORK = "digits"
LOAD = 0.3  # of R
CLIENTS = 32
BASE_SECONDS = 5
PEAK, KEPT = 400.0, 32.0  # MiB of the serving process: at most; more than before
AFTER_SECONDS = 60
MOST = 4_000.0  # MiB, at which it is ended for the machine's sake
WORSE, NOISE_MS = 2.0, 10.0  # of the others' p99
PROBE_SECONDS, LOOK_SECONDS = 0.1, 0.05
SLOW_MS, SLOWEST_MS, SLOW_SHARE = 250.0, 1000.0, 0.01  # of /livez
PROCESSES = 2  # of attackers
END_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Attack:
    """What is done, in its simple size."""

    act: str  # of `attackers.ATTACKS`
    count: int
    seconds: float
    key: bool = True  # they have one
    longer: bool = False  # a larger one takes longer
    worse_ms: float = NOISE_MS  # of the others' p99, where that is not doubled
    asked: tuple[Question, ...] = ()  # what the others ask; else small questions


@dataclass(slots=True)
class Watch:
    """The serving process, looked at from outside."""

    service: Service
    mib: list[float] = field(default_factory=list)
    livez: list[float] = field(default_factory=list)  # ms

    @property
    def now(self) -> float:
        return self.service.rss(self.service.process.pid)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look as long as the block lasts."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                self.mib.append(self.now)

        def probe() -> None:
            made: socket.socket | None = None
            while not over.wait(PROBE_SECONDS):
                begun = time.monotonic()
                made = _alive(self.service.port, made)
                self.livez.append(1000 * (time.monotonic() - begun))
            if made is not None:
                made.close()

        threads = [threading.Thread(target=one, daemon=True) for one in (look, probe)]
        for one in threads:
            one.start()
        try:
            yield
        finally:
            over.set()
            for one in threads:
                one.join(5)


def _alive(port: int, made: socket.socket | None) -> socket.socket | None:
    """Ask /livez; the connection to ask again."""
    try:
        if made is None:
            made = socket.create_connection(("127.0.0.1", port), 2)
        made.sendall(http("GET", "/livez"))
        answer = b""
        while not whole(answer):
            part = made.recv(4096)
            if not part:
                raise ConnectionError
            answer += part
        return made
    except OSError:
        if made is not None:
            made.close()
        return None


def settings() -> dict[str, str]:
    """Of a service with a key for the attackers and one for the others."""
    digests = {name: hashlib.sha256(name.encode()) for name in (HONEST, ATTACKER)}
    return {"api_keys": ",".join(f"{k}:{v.hexdigest()}" for k, v in digests.items())}


def attacked(tally: Tally, service: Service, attack: Attack, factor: int) -> None:
    """So many times the simple size; once: only the memory is judged."""
    asked = list(attack.asked) or reference.some(NETWORK, 200, 60)
    quick = factor == 1
    rate = 50.0
    if not quick:
        rate = LOAD * saturation(service.port, asked, fields=FIELD)
    with Traffic(service.port, asked, CLIENTS, rate, fields=FIELD) as traffic:
        time.sleep(1 if quick else BASE_SECONDS)
    base, watch = p(traffic.told), Watch(service)
    before = watch.now
    # Its answers may wait for the last of the attackers' work.
    with (
        watch.looking(),
        Traffic(service.port, asked, CLIENTS, rate, fields=FIELD) as traffic,
    ):
        _assault(tally, attack, watch, factor)
    end = time.monotonic() + AFTER_SECONDS
    while (after := watch.now) > before + KEPT and time.monotonic() < end:
        time.sleep(0.2)
    _memory(tally, watch, before, after)
    _others(tally, traffic, watch, base, attack.worse_ms, judged=not quick)


def _assault(tally: Tally, attack: Attack, watch: Watch, factor: int) -> None:
    """Have the attackers come, and go."""
    seconds = attack.seconds * (factor if attack.longer else 1)
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        for command in _commands(attack, watch.service.port, factor, seconds)
    ]
    end = time.monotonic() + seconds + END_SECONDS
    try:
        while any(one.poll() is None for one in running) and time.monotonic() < end:
            time.sleep(0.1)
            if max(watch.mib, default=0) > MOST:
                break
    finally:
        for one in running:
            with suppress(OSError):
                one.kill()
            one.wait()
    codes = {one.returncode for one in running}
    tally.check(codes == {0}, f"the attackers end with {codes}")


def _commands(attack: Attack, port: int, factor: int, seconds: float) -> Iterator[list[str]]:  # fmt: skip
    count = attack.count * factor
    processes = min(PROCESSES, count)
    for place in range(processes):
        part = count // processes + (place < count % processes)
        command = [sys.executable, "-m", "tests.robustness.load.attackers", attack.act]
        command += ["--port", str(port), "--count", str(part)]
        command += ["--seconds", str(seconds)]
        yield command + (["--key", ATTACKER] if attack.key else [])


def _memory(tally: Tally, watch: Watch, before: float, after: float) -> None:
    peak = max(watch.mib)
    told = f"{before:.0f} MiB before, {peak:.0f} at most, {after:.0f} a minute later"
    tally.figure("MiB", told)
    tally.check(peak < PEAK, told)
    tally.check(after <= before + KEPT, told)


def _others(
    tally: Tally,
    traffic: Traffic,
    watch: Watch,
    base: float,
    worse_ms: float,
    *,
    judged: bool,
) -> None:
    for one in traffic.told:
        tally.check(one.right, f"an honest request got {one.status} {one.body[:80]!r}")
    now, livez = p(traffic.told), watch.livez
    slow = sum(one > SLOW_MS for one in livez) / max(len(livez), 1)
    slowest = max(livez, default=0)
    told = f"{slowest:.0f} ms at most, {slow:.1%} over {SLOW_MS:.0f}"
    tally.figure("/livez", told)
    tally.figure("p99 ms", f"{now:.1f} (before {base:.1f})")
    if judged:
        tally.check(slow <= SLOW_SHARE and slowest <= SLOWEST_MS, f"/livez: {told}")
        good = now <= max(WORSE * base, base + worse_ms)
        tally.check(good, f"p99 {now:.1f} ms, before {base:.1f}")
