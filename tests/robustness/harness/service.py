"""The service under test: a process of its own, looked at from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.memory import mib
from bench.servers import family
from tests.robustness.harness.checklist import Tally

ROOT = Path(__file__).parents[3]
START_SECONDS = 60
MIB = 2**20
LEAKED = 2  # more descriptors or threads than at the start are too many
# In no log and no answer.
SECRETS = ("Traceback", "site-packages", str(ROOT), 'File "')


@dataclass(slots=True)
class Service:
    """`python -m service serve`, started and ready."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    before: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, timeout: float = 5, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=timeout, **options)

    def lives(self) -> bool:
        """/livez answers 200 within a second."""
        try:
            return self.get("/livez", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def ready(self) -> bool:
        try:
            return self.get("/readyz", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def wait(self) -> None:
        """Return when it is ready."""
        end = time.monotonic() + START_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"not ready: {self.log.read_text()[-300:]}")
            time.sleep(0.05)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with its labels as they are written."""
        lines = self.get("/metrics").text.splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def metric(self, name: str, *labels: str) -> float:
        """The sum of all samples of a name whose labels contain these texts."""
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(one in sample for one in labels)
        )

    def records(self) -> list[dict[str, Any]]:
        """Its log, each line a JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def family(self) -> list[int]:
        """Its processes."""
        return family(self.process.pid)

    def rss(self, pid: int | None = None) -> float:
        """Memory in MiB, of one process or all; see `mib`."""
        return mib(*([pid] if pid else self.family()))

    def settled_rss(self, seconds: float = 5) -> float:
        """Memory in MiB, when it has not moved for a second or so."""
        end, last = time.monotonic() + seconds, self.rss()
        calm = 0
        while time.monotonic() < end and calm < 5:
            time.sleep(0.2)
            now = self.rss()
            calm = calm + 1 if abs(now - last) < 0.25 else 0
            last = now
        return last

    def counts(self) -> dict[str, int]:
        """Open descriptors and threads of the serving process."""
        task = Path(f"/proc/{self.process.pid}")
        return {
            "descriptors": len(list((task / "fd").iterdir())),
            "threads": len(list((task / "task").iterdir())),
        }

    def stop(self, seconds: float = 40) -> int:
        """Told to stop; its exit code, or -9 where it had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def launch(
    folder: Path,
    module: str = "service",
    injected: Mapping[str, object] | None = None,
    **settings: Any,
) -> Service:
    """Start it, and wait for nothing. Settings without their prefix, small letters.

    Args:
        module: `tests.robustness.harness.fault_injection` is the same service with faults built in;
        injected: which of them, by their variables.
    """
    port, log = free_port(), folder / "log"
    if "port" in settings:
        port = int(settings.pop("port"))
    given = {f"UNROLLED_{k.upper()}": str(v) for k, v in settings.items()}
    given = {"UNROLLED_LOG_FORMAT": "json", "UNROLLED_DRAIN_SECONDS": "0"} | given
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | given | {k: str(v) for k, v in (injected or {}).items()},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Service(process, port, log)


@contextmanager
def started(**settings: Any) -> Iterator[Service]:
    """A service that is ready, and ended with the block where it still runs."""
    with tempfile.TemporaryDirectory() as folder:
        made = launch(Path(folder), **settings)
        try:
            made.wait()
            made.before = made.counts()
            yield made
        finally:
            made.stop()


@contextmanager
def serving(tally: Tally, *, told: bool = False, **settings: Any) -> Iterator[Service]:
    """A service that is ready; afterwards it must be as well as before: alive within
    a second, the same process, no descriptor or thread more, no traceback logged.

    Args:
        told: a fault is injected whose traceback stands rightly in the log.
        settings: as `launch` takes them.
    """
    with started(**settings) as made:
        yield made
        _well(tally, made, told)


def _well(tally: Tally, service: Service, told: bool) -> None:
    tally.check(service.process.poll() is None, "the service has ended")
    tally.check(service.lives(), "/livez does not answer 200 within a second")
    end = time.monotonic() + 5  # what is being closed
    while True:
        after = service.counts()
        more = {k: after[k] - before for k, before in service.before.items()}
        if max(more.values()) <= LEAKED or time.monotonic() > end:
            break
        time.sleep(0.1)
    tally.check(max(more.values()) <= LEAKED, f"more than before: {more}")
    lines = service.log.read_text().splitlines()
    failed = next((line for line in lines if "Traceback" in line), "")
    tally.check(told or not failed, f"a traceback: {failed[-250:]}")


def silent(body: str) -> bool:
    """That an answer tells nothing of our insides."""
    return not any(secret in body for secret in SECRETS)
