"""The services that refuse the entries of `refusal_table`: their settings and stages."""

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

import httpx

from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.endpoints import CLASSIFY, INFER
from tests.robustness.harness.raw_connection import is_complete, websocket_frame
from tests.robustness.harness.refusal import handshake, http
from tests.robustness.harness.service import Service, launch
from tests.robustness.harness.strict_http import ConnectionClosed
from tests.robustness.inputs import refusal_table as table
from tests.robustness.lifecycle.crashes import worker_ids
from tests.robustness.lifecycle.endless_loads import add_version, wait_for

CONNECTIONS = 300  # the limit of the crowded service
QUEUE_STEPS = 1000  # the limit of the full one
HOUR = 3600


@dataclass(frozen=True, slots=True)
class Stage:
    """A state of a service, for the entries that name it."""

    name: str
    prepare: Callable[[Service, ExitStack], None] = lambda service, resources: None
    stays: bool = False  # its resources stay open in later stages


@dataclass(frozen=True, slots=True)
class Setup:
    """A service and its stages, one after another."""

    stages: tuple[Stage, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    ready: bool = True  # it becomes ready
    broken: str = ""  # a bundle that is damaged
    only: str = ""  # the bundle, in a folder of its own


def _spend(service: Service, resources: ExitStack) -> None:
    """Use up the rate of the key."""
    service.get("/models", headers={"X-API-Key": "first"})


def _start_draining(service: Service, resources: ExitStack) -> None:
    service.terminate()
    deadline = time.monotonic() + 5
    while service.is_ready() and time.monotonic() < deadline:
        time.sleep(0.02)


def _fill(service: Service, resources: ExitStack) -> None:
    """Make the engines hang with full queues: by a stream, which shutdown waits for,
    and by a request."""
    for name in ("digits", "letters-live"):
        network = reference.model(name).metadata
        step = b",".join([b"%d" % fault_injection.HANGS] * network.input.features)
        sequence = b"[%b]" % b",".join([b"[%b]" % step] * table.STEPS)
        _stream(service, resources, name).sendall(
            websocket_frame(b'{"frames": %b}' % sequence)
        )
        rest = [sequence] * (QUEUE_STEPS // table.STEPS - 1)
        body = b'{"model": "%b", "sequences": [%b]}'
        body %= (name.encode(), b",".join(rest))
        connection = resources.enter_context(
            socket.create_connection(_address(service), 5)
        )
        connection.sendall(http("POST", f"/{network.task}", body))
    deadline = time.monotonic() + 5
    while service.metric("unrolled_waiting_steps") < 2 * QUEUE_STEPS:
        if time.monotonic() > deadline:
            raise RuntimeError("the queues are not full")
        time.sleep(0.02)


def _open_many_streams(service: Service, resources: ExitStack) -> None:
    """Open streams up to the connection limit."""
    with suppress(ConnectionClosed):
        for _ in range(2 * CONNECTIONS):
            _stream(service, resources, "digits")
        raise RuntimeError("there is no limit of connections")


def _retire(service: Service, resources: ExitStack) -> None:
    """Begin a sequence, replace its version, and lose the workers that had it."""
    root = service.log.parent / "bundles"
    start = table.sequence(table.RETIRED_ID + b', "sequence_start": true')
    url = f"http://127.0.0.1:{service.port}"
    httpx.post(f"{url}{INFER.path}", content=start).raise_for_status()
    add_version(root, "digits", "2")
    wait_for(lambda: service.get("/models/digits").json()["version"] == "2")
    shutil.rmtree(root / "digits" / "1")
    for pid in worker_ids(service):
        os.kill(pid, signal.SIGKILL)
    body = CLASSIFY.valid_body()
    wait_for(lambda: httpx.post(f"{url}/classify", content=body).status_code == 200)


def _stream(service: Service, resources: ExitStack, name: str) -> socket.socket:
    """A WebSocket that stays open during the stage."""
    connection = resources.enter_context(socket.create_connection(_address(service), 5))
    connection.sendall(handshake(f"/stream?model={name}"))
    response = b""
    while not is_complete(response) and (part := connection.recv(4096)):
        response += part
    if not response.startswith(b"HTTP/1.1 101"):
        raise ConnectionClosed(response[:80].decode("latin-1"))
    return connection


def _address(service: Service) -> tuple[str, int]:
    return "127.0.0.1", service.port


_LIMITS = {
    "max_steps": table.STEPS,
    "max_sequences": 2,
    "stream_message_bytes": table.MESSAGE_BYTES,
    "max_body_bytes": table.BODY_BYTES,
}
_FAILURES = {
    "module": fault_injection.MODULE,
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
            "bundles": reference.bundle_folder("vowels"),
            "workers": 1,
        },
    ),
    Setup(
        (Stage(table.LIMITED),),
        {"cors_origins": "https://here.example", "request_seconds": 1e-6, "workers": 1}
        | _LIMITS,
    ),
    Setup(
        (Stage(table.TIMED), Stage(table.DRAINING, _start_draining)),
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
            Stage(table.CROWDED, _open_many_streams),
            Stage(table.FULL, _fill, stays=True),
            Stage(table.STOPPING),
        ),
        _FAILURES,
    ),
    Setup(
        (Stage(table.RETIRED, _retire),),
        {"workers": 1, "reload_seconds": 0.1},
        only="digits",
    ),
    Setup(
        (Stage(table.BUFFERED),),
        {"max_body_bytes": 200_000, "buffer_bytes": 200_000, "workers": 1},
    ),
    Setup(
        (Stage(table.LOADING),),
        {
            "module": fault_injection.MODULE,
            "injected": {fault_injection.LOAD_SECONDS: HOUR},
            "load_seconds": HOUR,
            "grace_seconds": 1,
            "workers": 1,
        },
        ready=False,
    ),
]  # fmt: skip


def staged(setup: Setup, names: Container[str]) -> Iterator[tuple[Service, str]]:
    """A setup's service in each of the named stages."""
    with served(setup) as service, ExitStack() as until_end:
        for stage in setup.stages:
            if stage.name not in names and not stage.stays:
                continue
            with ExitStack() as resources:
                stage.prepare(service, until_end if stage.stays else resources)
                yield service, stage.name


@contextmanager
def served(setup: Setup) -> Iterator[Service]:
    """A setup's service, started."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, settings = Path(temporary), dict(setup.settings)
        if setup.only:
            settings["bundles"] = folder / "bundles"
            settings["bundles"].mkdir()
            add_version(settings["bundles"], setup.only, "1")
        if setup.broken:
            settings["bundles"] = _with_broken(folder / "bundles", setup.broken)
        service, processes = launch(folder, **settings), []
        try:
            service.wait_until_ready() if setup.ready else service.wait_until_alive()
            processes = [os.pidfd_open(pid) for pid in service.processes()]
            yield service
        finally:
            service.stop(5)
            for process in processes:  # a worker outlives SIGTERM if its engine hangs
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                os.close(process)


def _with_broken(folder: Path, name: str) -> Path:
    """A folder with all bundles, one of them damaged."""
    shutil.copytree(reference.BUNDLES, folder)
    network = folder / name / "1" / "assets.extra" / "network.onnx"
    network.write_bytes(network.read_bytes()[:-1])
    return folder
