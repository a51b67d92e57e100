"""A server as a process: started, waited for, paused while others have their turn.

All are started before anything is measured. A server whose turn it isn't is
stopped by SIGSTOP, since some of them poll when they are idle.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

SECONDS = 120  # to start


class Unavailable(Exception):
    """A server that can't be compared; the text says why."""


@dataclass(slots=True, eq=False)
class Server:
    """A command that serves on `port`."""

    name: str
    command: list[str]
    port: int
    ready: str  # answers 200 once it serves
    path: str | None = None  # asked for predictions; None: as the workload says
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None  # to run in
    tolerance: float = 1e-4
    _process: subprocess.Popen | None = None
    _log: IO[bytes] | None = None

    def start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives on)
        self._process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> None:
        """Return when it serves.

        Raises:
            Unavailable: it ended, or took too long; with the last it wrote.
        """
        end = time.monotonic() + SECONDS
        url = f"http://127.0.0.1:{self.port}{self.ready}"
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise Unavailable(f"ended with {self._process.returncode}: {self.last}")
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise Unavailable(f"not ready in {SECONDS} s: {self.last}")

    @property
    def last(self) -> str:
        """The last that it wrote."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " ".join(lines[-2:])[-300:] or "it wrote nothing"

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is None:
            return
        self.resume()
        members = family(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in members[1:]:  # whom it left behind
            _send(pid, signal.SIGKILL)
        self._process = None
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_seconds(self) -> float:
        """Used so far by all its processes that are there."""
        return sum(_cpu_seconds(pid) for pid in family(self._process.pid))

    def _signal(self, number: signal.Signals) -> None:
        for pid in family(self._process.pid):
            _send(pid, number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all that descend from it; some lead sessions of their own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found
