"""Tiny real bundles, and a real server over them."""

import http.client
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as examples

from model.bundle import bundle
from model.bundle.bundle import Bundle, Metadata
from service import app as application
from service import server as servers
from service.callers.caller import Caller
from service.callers.memory_budget import Hold, MemoryBudget
from service.pool import spawn
from service.settings import PREFIX, Settings
from service.telemetry.metrics import Metrics
from service.worker import onnx_engine

ROOT = Path(__file__).parent.parent
SECONDS = 60  # nothing here may take longer
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8ffff3f0005fe02fea735818d"
    "0000000049454e44ae426082"
)

# How long an example takes is nothing that a busy machine can promise.
examples.register_profile(
    "ours", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
examples.load_profile("ours")


def pytest_addoption(parser):
    parser.addoption(
        "--behind",
        choices=["ray"],
        help="What the shared server is reached through, in place of nothing.",
    )


def pytest_collection_modifyitems(config, items):
    """Leave out what takes minutes, unless `-m` asks for it."""
    if not config.getoption("markexpr"):
        long = {
            item
            for item in items
            if any(map(item.get_closest_marker, ("slow", "browser", "ray")))
        }
        _leave_out(config, items, long)
    if config.getoption("--behind"):
        own = {item for item in items if item.get_closest_marker("direct")}
        _leave_out(config, items, own)


def _leave_out(config, items, others):
    config.hook.pytest_deselected(items=list(others))
    items[:] = [item for item in items if item not in others]


def wait(true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Return as soon as `true()`; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not in {seconds} s"
        time.sleep(0.005)


def make_metadata(task="classify", **changes) -> Metadata:
    """What `bundle.json` says of a small network that was never trained."""
    features = changes.pop("features", 1)
    values = {
        "name": "made",
        "version": "1",
        "task": task,
        "input": bundle.Frames(
            features=features, names=tuple(f"x{i}" for i in range(features))
        ),
        "classes": ("length", "value"),
        "cell": "gru",
        "layers": 1,
        "hidden": 2,
        "bidirectional": False,
        "reset_after": True,
        "dropout": 0.5,
        "state_size": 2,
        "normalisation": bundle.Normalisation(
            mean=(0.0,) * features, scale=(1.0,) * features
        ),
        "temperature": 1.0,
        "training": bundle.Training(
            source="made",
            data="0" * 64,
            seed=0,
            validation_fraction=0.15,
            test_fraction=0.15,
            epochs=1,
            best_epoch=1,
            longest=16,
            created="2026-01-01",
            parts={},
            calibration_error_before=1.0,
        ),
    }
    return Metadata(**values | changes)


def random_frames(rng: np.random.Generator, length: int, features: int = 3):
    """A sequence [T, F] that a client can write in JSON without loss."""
    return rng.normal(size=(length, features)).round(3).astype(np.float32)


def value(exposition: str, name: str, **labels: str) -> float:
    """A metric's value in Prometheus' text format; 0 when it isn't there."""
    wanted = {f'{key}="{text}"' for key, text in labels.items()}
    for line in exposition.splitlines():
        head, _, number = line.rpartition(" ")
        series, _, inner = head.partition("{")
        if series == name and wanted <= set(inner.rstrip("}").split(",")):
            return float(number)
    return 0.0


def nobody() -> Caller:
    """A caller of no connection and no key, for whom nothing is too much."""
    account = MemoryBudget(2**40, Metrics()).account()
    return Caller(account, Hold(account))


def send(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request, sent byte by byte as it
    stands: clients tidy up what they send."""
    at = httpx.URL(url)
    with socket.create_connection((at.host, at.port), timeout=SECONDS) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        headers = {name.lower(): text for name, text in response.getheaders()}
        return response.status, headers, response.read()


def send_get(url: str, target: bytes) -> tuple[int, dict[str, str], bytes]:
    """The same for a GET of that very target."""
    return send(url, b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n")


# --- bundles ---------------------------------------------------------------------


def write_bundle(
    root: Path,
    name: str,
    task: str,
    classes: tuple[str, ...],
    *,
    int8: str | None = None,
    **network,
) -> Path:
    """Export a network with random weights; also with int8 ones, as a part's name
    asks for."""
    # Imported here: most tests need no TensorFlow.
    import keras

    from model.config import NetworkConfig
    from model.datasets.dataset import Dataset, default_features
    from model.export import export
    from model.network.network import Network

    keras.utils.set_random_seed(len(name))
    rng = np.random.default_rng(len(name))
    config, features = NetworkConfig(layers=1, **network), 3
    mean, scale = rng.normal(size=features), rng.uniform(0.5, 2, features)
    made = Network(
        config,
        task=task,
        features=features,
        classes=len(classes),
        mean=mean,
        scale=scale,
    )
    kernel, bias = made.head.get_weights()
    # Far apart, so that one sequence's answer can't pass for another's.
    made.head.set_weights([4 * kernel, bias])
    lengths = np.arange(1, 17)
    frames = rng.normal(size=(lengths.sum(), features))
    targets = np.zeros(len(lengths if task == "classify" else frames), np.int32)
    dataset = Dataset(
        name="made",
        task=task,
        frames=frames,
        lengths=lengths,
        targets=targets,
        classes=classes,
        features=default_features(features),
        split=np.zeros(len(lengths), np.int8),
    )

    def describe(version: str) -> Metadata:
        return make_metadata(
            task,
            name=name,
            version=version,
            features=features,
            classes=classes,
            cell=config.cell,
            hidden=config.hidden,
            bidirectional=config.bidirectional,
            state_size=config.state_size,
            normalisation=bundle.Normalisation(
                mean=tuple(made.mean.numpy().tolist()),
                scale=tuple(made.scale.numpy().tolist()),
            ),
        )

    def report(folder: Path, metadata: Metadata) -> None:
        (folder / "card.md").write_text(f"# {metadata.name}\n", encoding="utf-8")
        (folder / "metrics.json").write_text("{}\n", encoding="utf-8")
        (folder / "history.png").write_bytes(PNG)

    return export.export(
        made, dataset, root, describe=describe, report=report, int8=int8
    )


def copy_bundle(folder: Path, to: Path, **changes) -> Path:
    """A copy of a bundle whose `bundle.json` (no digest holds it) says otherwise."""
    shutil.copytree(folder, to)
    marker = to / bundle.MARKER
    text = json.loads(marker.read_text()) | changes
    marker.write_text(json.dumps(text))
    return to


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> Path:
    """A folder with `walks` (classify), `tags` (label) and `both` (label, in both
    directions), each of 3 features."""
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(
        root, "walks", "classify", ("run", "sit", "stand", "wälk"), cell="gru", hidden=6
    )
    write_bundle(
        root, "tags", "label", ("noun", "verb", "other"), cell="lstm", hidden=5
    )
    write_bundle(
        root,
        "both",
        "label",
        ("down", "flat", "up"),
        cell="lstm",
        hidden=4,
        bidirectional=True,
    )
    return root


@pytest.fixture(scope="session")
def quantised(tmp_path_factory) -> Path:
    """A folder with `small` (label), which has int8 weights too."""
    root = tmp_path_factory.mktemp("quantised")
    classes = ("noun", "verb", "other")
    write_bundle(root, "small", "label", classes, int8="test", cell="lstm", hidden=8)
    return root


class OnnxEngine(onnx_engine.OnnxEngine):
    """The service's own, made as it is by the registry; for tests to spoil."""

    def __init__(self, found: Bundle, settings: Settings):
        super().__init__(found, settings.precision)


# --- servers ---------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A server that runs in a thread."""

    url: str
    app: application.Service
    server: servers.Server
    http: httpx.Client

    @property
    def registry(self):
        return self.app.registry

    def metrics(self) -> str:
        return self.http.get("/metrics").text


@contextmanager
def running(
    settings: Settings, *, ready: bool = True, load_engine=None, **options
) -> Iterator[Running]:
    """The real application behind a real socket, until the block ends.

    Args:
        ready: wait until it is.
        load_engine: the only engine to choose from, in workers that are threads.
        options: what `create_app` takes.
    """
    if load_engine is not None:
        options["start"] = spawn.thread({"given": load_engine})
    app = application.create_app(settings, **options)
    server = servers.make(app, settings)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    try:
        wait(lambda: server.started or not thread.is_alive(), "the server starts")
        assert server.started
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as client:
            made = Running(url, app, server, client)
            if ready:
                registry = made.registry
                wait(lambda: registry.ready or registry.failed, "the models load")
                response = client.get("/readyz")
                assert response.status_code == 200, response.text
            yield made
    finally:
        server.stop()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside():
    """The machine's own settings of the service change no test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith((PREFIX, "OTEL_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def running_server(bundles, tmp_path_factory, request) -> Iterator[Running]:
    """The service with the bundles and the engines of its choice, ready."""
    wanted = {"bundles": bundles, "default_label": "tags"}
    if request.config.getoption("--behind") == "ray":
        import ray_fixtures

        with (
            ray_fixtures.behind(tmp_path_factory.mktemp("ray"), **wanted) as url,
            httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as http,
        ):
            yield Running(url, None, None, http)
        return
    with running(Settings(port=0, **wanted)) as made:
        yield made


@pytest.fixture(scope="session")
def server(running_server) -> str:
    """Its address."""
    return running_server.url


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
