"""Servers as processes: started, waited for, paused during others' turns, measured.

All servers of a comparison are started first. A server is paused by SIGSTOP outside its
turn, since some of them poll while they are idle.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from bench.environment import ROOT

START_SECONDS = 120


class ServerUnavailable(Exception):
    """A server that cannot be compared, and why."""


@dataclass(slots=True, eq=False)
class Server:
    """A command that serves on a port."""

    name: str
    command: list[str]
    port: int
    ready: str  # the path that responds with 200 once it serves
    path: str | None = None  # of predictions; None: the workload's
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None  # to run in
    tolerance: float = 1e-4
    _process: subprocess.Popen | None = None
    _log: IO[bytes] | None = None

    def start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> None:
        """Wait until it is ready.

        Raises:
            ServerUnavailable: it ended, or took too long; with its last log lines.
        """
        deadline = time.monotonic() + START_SECONDS
        url = f"http://127.0.0.1:{self.port}{self.ready}"
        while time.monotonic() < deadline:
            code = self._process.poll()
            if code is not None:
                raise ServerUnavailable(f"ended with {code}: {self.last_lines}")
            try:
                with urllib.request.urlopen(url, timeout=5) as response:
                    if response.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise ServerUnavailable(f"not ready in {START_SECONDS} s: {self.last_lines}")

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def last_lines(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " ".join(lines[-2:])[-300:] or "no output"

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is None:
            return
        self.resume()
        processes = process_tree(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in processes[1:]:  # those left behind
            _send_signal(pid, signal.SIGKILL)
        self._process = None
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all its present processes."""
        return sum(_cpu_seconds(pid) for pid in process_tree(self.pid))

    def _signal(self, number: signal.Signals) -> None:
        for pid in process_tree(self.pid):
            _send_signal(pid, number)


def unrolled(
    bundles: Path, name: str = "Unrolled", tolerance: float = 1e-4, **settings: object
) -> Server:
    """This service, with settings by their lower-case names; with float32 weights, if
    they don't say otherwise, since most answers are compared with exact ones."""
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    fixed = {"bundles": bundles, "log_level": "warning", "precision": "float32"}
    settings = fixed | settings
    return Server(
        name,
        command,
        port,
        "/readyz",
        environment={f"UNROLLED_{k.upper()}": str(v) for k, v in settings.items()},
        folder=ROOT,
        tolerance=tolerance,
    )


@contextmanager
def started(servers: Sequence[Server]) -> Iterator[list[Server]]:
    """Start servers, and pause them: those that become ready. All are stopped at the end."""
    ready = []
    try:
        for server in servers:
            try:
                server.start()
                server.wait()
            except (ServerUnavailable, OSError) as error:
                print(f"left out: {server.name}, {error}")
                continue
            server.pause()
            ready.append(server)
        yield ready
    finally:
        for server in servers:
            server.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> list[int]:
    """A process and all its descendants; some lead sessions of their own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    tree = [pid]
    for parent in tree:
        tree += children.get(parent, [])
    return tree


def memory_mib(*pids: int) -> float:
    """Memory of processes: anonymous and proportional, so that shared pages count once
    and those of files, which other programs share, not at all."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.partition("Pss_Anon:")[2].split()[0])
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
    return total / 1024


@contextmanager
def repeating(function: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call a function in a thread every so many seconds until the block ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


@dataclass(slots=True)
class MemoryUse:
    """MiB of a server's processes before, at most and after a block."""

    before: float
    peak: float
    after: float = 0.0

    @property
    def peak_increase(self) -> float:
        return self.peak - self.before

    @property
    def increase(self) -> float:
        return self.after - self.before


@contextmanager
def watch_memory(pid: int, seconds: float = 0.5) -> Iterator[MemoryUse]:
    """Measure a server's memory every so many seconds until the block ends."""
    mib = memory_mib(*process_tree(pid))
    memory = MemoryUse(mib, mib)

    def measure() -> None:
        memory.after = memory_mib(*process_tree(pid))
        memory.peak = max(memory.peak, memory.after)

    try:
        with repeating(measure, seconds):
            yield memory
    finally:
        measure()
