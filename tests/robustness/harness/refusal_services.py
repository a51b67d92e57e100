"""The services that refuse what `refusal_table` has: their settings, and what they
are brought to."""

import hashlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness import refusal_table as table
from tests.robustness.harness.raw_connection import frame, whole
from tests.robustness.harness.refusal import handshake, http
from tests.robustness.harness.service import START_SECONDS, Service, launch
from tests.robustness.harness.strict_http import Closed

CONNECTIONS = 300  # of the one that is to be crowded
QUEUE_STEPS = 1000  # of the one that is to be full
HOUR = 3600
SABOTAGED = "tests.robustness.harness.fault_injection"


@dataclass(frozen=True, slots=True)
class Stage:
    """What a service is brought to, for the entries of that name."""

    name: str
    prepare: Callable[[Service, ExitStack], None] = lambda service, held: None
    stays: bool = False  # what it holds is held in the stages after it, too


@dataclass(frozen=True, slots=True)
class Setup:
    """A service, and its stages one after another."""

    stages: tuple[Stage, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    ready: bool = True  # it will be
    broken: str = ""  # a bundle that it can't load


def _spend(service: Service, held: ExitStack) -> None:
    """Use up what the key may ask."""
    service.get("/models", headers={"X-API-Key": "first"})


def _tell_to_stop(service: Service, held: ExitStack) -> None:
    service.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 5
    while service.ready() and time.monotonic() < end:
        time.sleep(0.02)


def _fill(service: Service, held: ExitStack) -> None:
    """Have an engine wait for ever, with as many steps as may wait: those of a stream,
    which a stop waits for, and those of a request."""
    for name in ("digits", "letters-live"):
        network = reference.alone(name).metadata
        step = b",".join([b"%d" % fault_injection.HANGS] * network.input.features)
        sequence = b"[%b]" % b",".join([b"[%b]" % step] * table.STEPS)
        _stream(service, held, name).sendall(frame(b'{"frames": %b}' % sequence))
        rest = [sequence] * (QUEUE_STEPS // table.STEPS - 1)
        body = b'{"model": "%b", "sequences": [%b]}'
        body %= (name.encode(), b",".join(rest))
        made = held.enter_context(socket.create_connection(_address(service), 5))
        made.sendall(http("POST", f"/{network.task}", body))
    end = time.monotonic() + 5
    while service.metric("unrolled_waiting_steps") < 2 * QUEUE_STEPS:
        if time.monotonic() > end:
            raise RuntimeError("the queues are not full")
        time.sleep(0.02)


def _crowd(service: Service, held: ExitStack) -> None:
    """Open as many streams as there may be connections."""
    with suppress(Closed):
        for _ in range(2 * CONNECTIONS):
            _stream(service, held, "digits")
        raise RuntimeError("there is no limit of connections")


def _stream(service: Service, held: ExitStack, name: str) -> socket.socket:
    """A WebSocket that stays open as long as the stage."""
    made = held.enter_context(socket.create_connection(_address(service), 5))
    made.sendall(handshake(f"/stream?model={name}"))
    answer = b""
    while not whole(answer) and (part := made.recv(4096)):
        answer += part
    if not answer.startswith(b"HTTP/1.1 101"):
        raise Closed(answer[:80].decode("latin-1"))
    return made


def _address(service: Service) -> tuple[str, int]:
    return "127.0.0.1", service.port


_LIMITS = {
    "max_steps": table.STEPS,
    "max_sequences": 2,
    "stream_message_bytes": table.MESSAGE_BYTES,
    "max_body_bytes": table.BODY_BYTES,
}
_FAILS = {
    "module": SABOTAGED,
    "workers": 1,
    "state_key": table.STATE_KEY,
    "max_steps": table.STEPS,
    "queue_steps": QUEUE_STEPS,
    "max_connections": CONNECTIONS,
    "request_seconds": HOUR,
    "stall_seconds": HOUR,
    "grace_seconds": 4,
}
SETUPS = [
    Setup((Stage(table.OPEN),)),
    Setup(
        (Stage(table.KEYS, _spend),),
        {
            "api_keys": f"first:{hashlib.sha256(b'first').hexdigest()}",
            "rate_per_key": 0.001,
            "bundles": reference.folder("vowels"),
            "workers": 1,
        },
    ),
    Setup(
        (Stage(table.LIMITED),),
        {"cors_origins": "https://here.example", "request_seconds": 1e-6, "workers": 1}
        | _LIMITS,
    ),
    Setup(
        (Stage(table.TIMED), Stage(table.DRAINING, _tell_to_stop)),
        {
            "header_seconds": 1,
            "body_seconds": 1,
            "max_streams": 0,
            "admin": True,
            "skip_broken": True,
            "drain_seconds": HOUR,
            "grace_seconds": 1,
            "workers": 1,
        },
        broken="vowels",
    ),
    Setup(
        (
            Stage(table.FAILING),
            Stage(table.CROWDED, _crowd),
            Stage(table.FULL, _fill, stays=True),
            Stage(table.STOPPING),
        ),
        _FAILS,
    ),
    Setup(
        (Stage(table.BUFFERED),),
        {"max_body_bytes": 200_000, "buffer_bytes": 200_000, "workers": 1},
    ),
    Setup(
        (Stage(table.LOADING),),
        {
            "module": SABOTAGED,
            "injected": {fault_injection.LOAD_SECONDS: HOUR},
            "load_seconds": HOUR,
            "grace_seconds": 1,
            "workers": 1,
        },
        ready=False,
    ),
]  # fmt: skip


def staged(setup: Setup, wanted: Container[str]) -> Iterator[tuple[Service, str]]:
    """Its service at each of its stages that is wanted."""
    with served(setup) as service, ExitStack() as until_end:
        for stage in setup.stages:
            if stage.name not in wanted and not stage.stays:
                continue
            with ExitStack() as held:
                stage.prepare(service, until_end if stage.stays else held)
                yield service, stage.name


@contextmanager
def served(setup: Setup) -> Iterator[Service]:
    """Its service, started."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, settings = Path(temporary), dict(setup.settings)
        if setup.broken:
            settings["bundles"] = _with_broken(folder / "bundles", setup.broken)
        service, family = launch(folder, **settings), []
        try:
            if setup.ready:
                service.wait()
            else:
                _wait_alive(service)
            family = [os.pidfd_open(pid) for pid in service.family()]
            yield service
        finally:
            service.stop(5)
            for process in family:  # an engine that waits for ever keeps its worker
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                os.close(process)


def _with_broken(folder: Path, name: str) -> Path:
    """A folder of all bundles, one of them damaged."""
    shutil.copytree(reference.BUNDLES, folder)
    network = folder / name / "1" / "assets.extra" / "network.onnx"
    network.write_bytes(network.read_bytes()[:-1])
    return folder


def _wait_alive(service: Service) -> None:
    end = time.monotonic() + START_SECONDS
    while not service.lives():
        if service.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"not alive: {service.log.read_text()[-300:]}")
        time.sleep(0.05)
