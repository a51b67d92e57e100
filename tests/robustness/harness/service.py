"""The service under test: a process of its own, observed from outside."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench import servers
from bench.servers import MemoryUse, free_port, memory_mib, process_tree
from tests.robustness.harness.checklist import Tally

ROOT = Path(__file__).parents[3]
START_SECONDS = 60
MIB = 2**20
LEAKED = 2  # tolerated growth in descriptors and threads
# Never in a log line or a response.
INTERNALS = ("Traceback", "site-packages", str(ROOT), 'File "')


@dataclass(slots=True)
class Service:
    """`python -m service serve` as a running process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    baseline: dict[str, int] = field(default_factory=dict)  # open resources at first

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, timeout: float = 5, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=timeout, **options)

    def is_alive(self) -> bool:
        """`/livez` responds with 200 within a second."""
        return self._responds("/livez")

    def is_ready(self) -> bool:
        """`/readyz` responds with 200 within a second."""
        return self._responds("/readyz")

    def _responds(self, path: str) -> bool:
        try:
            return self.get(path, timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def wait_until_ready(self) -> None:
        self._wait_until(self.is_ready)

    def wait_until_alive(self) -> None:
        self._wait_until(self.is_alive)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"did not start: {self.log.read_text()[-300:]}")
            time.sleep(0.05)

    def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, by its name with labels."""
        lines = self.get("/metrics").text.splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def metric(self, name: str, *labels: str) -> float:
        """The sum of all samples of a name whose labels contain these texts."""
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(x in sample for x in labels)
        )

    def records(self) -> list[dict[str, Any]]:
        """The log, each line a JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def processes(self) -> list[int]:
        """The ids of all its processes, the serving one first."""
        return process_tree(self.process.pid)

    def memory_mib(self, pid: int | None = None) -> float:
        """Memory of one process, or of all."""
        return memory_mib(*([pid] if pid else self.processes()))

    def settled_memory_mib(self, seconds: float = 5) -> float:
        """Memory of all processes, once it has been stable for a second."""
        deadline, last = time.monotonic() + seconds, self.memory_mib()
        stable = 0
        while time.monotonic() < deadline and stable < 5:
            time.sleep(0.2)
            now = self.memory_mib()
            stable = stable + 1 if abs(now - last) < 0.25 else 0
            last = now
        return last

    def open_resources(self) -> dict[str, int]:
        """Open descriptors and threads of the serving process."""
        task = Path(f"/proc/{self.process.pid}")
        return {
            "descriptors": len(list((task / "fd").iterdir())),
            "threads": len(list((task / "task").iterdir())),
        }

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self, seconds: float = 40) -> int:
        """Terminate it; returns the exit code, or -9 if it had to be killed."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def launch(
    folder: Path,
    module: str = "service",
    injected: Mapping[str, object] | None = None,
    **settings: Any,
) -> Service:
    """Start the service without waiting for it.

    Args:
        folder: for the log.
        module: `fault_injection.MODULE` is the service with faults built in.
        injected: environment variables that select those faults.
        settings: by name, lower case and without the prefix.
    """
    port, log = int(settings.pop("port", 0)) or free_port(), folder / "log"
    environment = {"UNROLLED_LOG_FORMAT": "json", "UNROLLED_DRAIN_SECONDS": "0"}
    environment["UNROLLED_BUNDLES"] = str(ROOT / "bundles")  # none that was trained
    environment |= {f"UNROLLED_{k.upper()}": str(v) for k, v in settings.items()}
    environment |= {k: str(v) for k, v in (injected or {}).items()}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Service(process, port, log)


@contextmanager
def started(**settings: Any) -> Iterator[Service]:
    """A service that is ready; stopped at the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        service = launch(Path(folder), **settings)
        try:
            service.wait_until_ready()
            service.baseline = service.open_resources()
            yield service
        finally:
            service.stop()


@contextmanager
def serving(
    tally: Tally, *, expect_tracebacks: bool = False, **settings: Any
) -> Iterator[Service]:
    """A service that is ready, and must be as healthy at the end of the block: alive
    within a second, the same process, no leaked descriptor or thread, no traceback.

    Args:
        expect_tracebacks: an injected fault logs one rightly.
        settings: as for `launch`.
    """
    with started(**settings) as service:
        yield service
        _check_health(tally, service, expect_tracebacks)


def _check_health(tally: Tally, service: Service, expect_tracebacks: bool) -> None:
    tally.check(service.process.poll() is None, "the service has ended")
    tally.check(service.is_alive(), "/livez does not respond with 200 within a second")
    deadline = time.monotonic() + 5  # for connections that are being closed
    while True:
        after = service.open_resources()
        leaked = {k: after[k] - before for k, before in service.baseline.items()}
        if max(leaked.values()) <= LEAKED or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    tally.check(max(leaked.values()) <= LEAKED, f"more than before: {leaked}")
    if not expect_tracebacks:
        lines = service.log.read_text().splitlines()
        traceback = next((line for line in lines if "Traceback" in line), "")
        tally.check(not traceback, f"a traceback: {traceback[-250:]}")


def reveals_internals(text: str) -> bool:
    return any(word in text for word in INTERNALS)


@contextmanager
def watch_memory(service: Service, allowed: float) -> Iterator[MemoryUse]:
    """Measure memory until the block ends; if more than `allowed` MiB is left then,
    wait until it settles."""
    with servers.watch_memory(service.process.pid, 0.05) as memory:
        yield memory
    if memory.increase > allowed:
        memory.after = service.settled_memory_mib()
        memory.peak = max(memory.peak, memory.after)
