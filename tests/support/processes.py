"""Runs the commands as processes, and finds their child processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.servers import ROOT, SECONDS, wait


def environment(**variables):
    """The environment of a command: this process's, and these variables."""
    defaults = {"PYTHONUNBUFFERED": "1", "UNROLLED_DRAIN_SECONDS": "0"}
    return os.environ | defaults | variables


def run(*arguments, timeout=SECONDS, **variables):
    """Run a command as a process, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@dataclass
class Started:
    """A `serve` process."""

    process: subprocess.Popen
    url: str
    output: Path

    def records(self):
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def answers(self, path):
        """Return whether a GET succeeds; fail if the process has ended."""
        assert self.process.poll() is None, self.output.read_text()
        try:
            return httpx.get(self.url + path, timeout=5).is_success
        except httpx.TransportError:
            return False


@contextmanager
def serving(folder, *flags, port=None, preexec_fn=None, **variables):
    """Run `python -m service serve` as a process, until the block ends."""
    port, output = port or free_port(), folder / "log"
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, *map(str, flags)],
            cwd=ROOT,
            env=environment(**variables),
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=preexec_fn,
        )
    try:
        started = Started(process, f"http://127.0.0.1:{port}", output)
        wait(lambda: started.answers("/livez"), "it lives")
        yield started
    finally:
        process.kill()
        process.wait(SECONDS)


def processes():
    """Return the parent of every running process, by process id."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    return parents


def family(process):
    """Return the ids of a process and its descendants."""
    parents, pids = processes(), {process.pid}
    while new := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= new
    return pids


@contextmanager
def standing_still(process):
    """Suspend all descendants of a process, until the block ends."""
    others = family(process) - {process.pid}
    try:
        for number in others:
            os.kill(number, signal.SIGSTOP)
        yield
    finally:
        for number in others:
            with contextlib.suppress(ProcessLookupError):  # it has been killed
                os.kill(number, signal.SIGCONT)
