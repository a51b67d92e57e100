"""Registries and services over a folder of bundles, whose versions come and go and show
which of them answered."""

import itertools
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model.bundle import bundle, folders, vocabulary
from model.bundle.golden import Golden
from model.bundle.labels import LABELS
from model.bundle.metadata import Ids, Metadata
from model.bundle.vocabulary import Column, Vocabulary, tokenize
from service.pool import spawn
from service.pool.pool import Pool
from service.registry.registry import Registry
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.bundles import OnnxEngine, make_metadata
from tests.support.scheduler import MODULUS, FakeEngine, metadata_of, write_bundle
from tests.support.servers import SECONDS, Running, running, wait
from tests.support.streams import KEY

GOOD = {"sequences": [[[7]]]}
INFER = {
    "inputs": [{"name": "frames", "datatype": "FP32", "shape": [1, 1, 1], "data": [7]}]
}
PREDICT = {"instances": [[[7]]]}
TEXT = "ab ab cd"
ENTRIES = {"tokens": ("ab", "cd"), "characters": ("a", "b", " ", "c", "d")}
POISON = 666  # weights that no engine can load
_numbers = itertools.count()


def make_versions(folder, *versions):
    """Folders of versions, as far as a scan reads them."""
    for version in versions:
        marker = folder / str(version) / bundle.MARKER
        marker.parent.mkdir(parents=True)
        marker.write_text("{}")
    return folder


def write_labels(folder, content):
    """Write `labels.json`: bytes unchanged, other content as JSON."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / LABELS).write_bytes(text)


def flip(path):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_golden(folder, name, by):
    """Golden answers that no engine gives, with matching digests."""
    with np.load(folder / bundle.GOLDEN) as arrays:
        golden = {key: arrays[key] for key in arrays.files}
    golden[name] = golden[name] + np.float32(by)
    np.savez(folder / bundle.GOLDEN, **golden)
    text = (folder / bundle.MARKER).read_text()
    bundle.seal(folder, Metadata.model_validate_json(text))


@contextmanager
def loaded_registry(root, load_engine=OnnxEngine, **settings):
    """A registry that has finished loading, its calls of `on_failure`, and its metrics."""
    calls, metrics = [], Metrics()
    settings = Settings(bundles=root, **{"workers": 2} | settings)
    pool = Pool(settings, metrics, spawn.thread({"given": load_engine}))
    pool.start()
    registry = Registry(
        settings, metrics, pool, on_failure=lambda: calls.append(registry.ready)
    )
    registry.start()
    try:
        wait(lambda: registry.complete, "the bundles are loaded")
        if registry.failed:
            registry._thread.join(SECONDS)
        else:
            registry.load("none").exception(SECONDS)  # it has done all before
        yield registry, calls, metrics
    finally:
        registry.close()


class WeightedEngine(FakeEngine):
    """Adds its bundle's weights to each probability, which shows the version."""

    def __init__(self, bundle, settings):
        super().__init__(bundle.metadata.task)
        self.weights = weights = bundle.metadata.training.seed
        if weights == POISON:
            raise RuntimeError("poison")
        self.hook = lambda call, answer: answer + np.float32(weights)


def weights_of(probabilities):
    """The weights in the answer to one step of 7."""
    weights = round(probabilities[0]) - 1
    assert probabilities == [1 + weights, 7 + weights, 7 + weights]
    return weights


def vocabulary_of(kind):
    """The vocabulary of a network that reads `TEXT`."""
    name = "word" if kind == "tokens" else "character"
    entries = ENTRIES[kind]
    column = Column(name=name, size=1 + len(entries), width=1)
    return Vocabulary(kind=kind, columns=(column,), entries=entries)


def version_of_text(probabilities, steps=1):
    """The version in the answer to `TEXT`, once or several times in a row: characters are
    read by odd versions, and words by even ones.

    Raises:
        AssertionError: it was read as the other, or mixed up.
    """
    version = round(probabilities[1]) - 1
    kind = ("tokens", "characters")[version % 2]
    tokens = tokenize(TEXT, kind) * steps
    ids = [1 + ENTRIES[kind].index(token) for token in tokens]
    total = sum(place * id for place, id in enumerate(ids, 1)) % MODULUS
    expected = [len(ids), ids[0], total]
    assert [round(p) - version for p in probabilities] == expected, version
    return version


def put(
    root,
    version,
    *,
    weights=None,
    name="made",
    at=None,
    features=1,
    kind="frames",
    spoil=None,
):
    """Write a bundle, which appears as a whole; returns its folder.

    Args:
        weights: by default the version's number.
        at: the number of its folder, if it is another.
        kind: of the input: frames, tokens or characters.
        spoil: changes the folder before it appears.
    """
    new = root.parent / f"new-{next(_numbers)}"
    write_bundle(new)
    weights = version if weights is None else weights
    golden = Golden.read((new / bundle.GOLDEN).read_bytes())
    probabilities = golden.probabilities + np.float32(weights)
    frames = golden.frames.repeat(features, 2)
    Golden(frames, golden.lengths, probabilities, golden.state).save(
        new / bundle.GOLDEN
    )
    metadata, shape = metadata_of("classify", "lanes"), make_metadata(features=features)
    changes = {
        "name": name,
        "version": str(version),
        "training": metadata.training.model_copy(update={"seed": weights}),
        "input": shape.input,
        "normalisation": shape.normalisation,
    }
    if kind != "frames":
        words = vocabulary_of(kind)
        (new / vocabulary.FILE).write_bytes(words.to_json())
        sizes = (words.columns[0].size,)
        changes["input"] = Ids(
            kind=kind, features=1, names=words.names, sizes=sizes, widths=(1,)
        )
    bundle.seal(new, metadata.model_copy(update=changes))
    if spoil is not None:
        spoil(new)
    folder = root / "made" / str(at or version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        os.rename(folder, root.parent / f"old-{next(_numbers)}")
    os.rename(new, folder)
    return folder


@dataclass(frozen=True)
class VersionedService(Running):
    """A service with versions of the model `made`."""

    root: Path
    engines: list[weakref.ref[WeightedEngine]]
    scans: list[int]
    gate: threading.Event  # while it is closed nothing is loaded
    hooks: list[Callable[[], object]]  # called before each scan
    tries: list[str]  # versions that were loaded, or are being loaded

    def put(self, version, **options):
        return put(self.root, version, **options)

    def remove(self, *versions):
        for version in versions:
            shutil.rmtree(self.root / "made" / str(version))

    def label(self, content):
        """Replace the labels, as a whole."""
        write_labels(self.root.parent, content)
        os.rename(self.root.parent / LABELS, self.root / "made" / LABELS)

    def wait_scanned(self):
        """Return after enough scans to try whatever is new."""
        before = len(self.scans)
        wait(lambda: len(self.scans) >= before + 4, "the folder is scanned")

    def ask(self, model="made"):
        """The version and the weights that answer."""
        response = self.http.post("/classify", json=GOOD | {"model": model})
        assert response.status_code == 200, response.text
        body = response.json()
        return body["version"], weights_of(body["predictions"][0]["probabilities"])

    def assert_served(self, version, model="made", weights=None):
        assert self.ask(model) == (str(version), weights or version)

    def wait_served(self, version, model="made", weights=None):
        expected = (str(version), weights or version)
        if "@" in model:  # the bare name is always served
            wait(lambda: self.status(model) != 404, f"{model} exists")
        wait(lambda: self.ask(model) == expected, f"{expected} is served")

    def status(self, model):
        return self.http.post("/classify", json=GOOD | {"model": model}).status_code

    def wait_status(self, model, status):
        wait(lambda: self.status(model) == status, f"{model} is {status}")

    def about(self, model="made"):
        return self.http.get(f"/models/{model}").json()

    def admin(self, verb, name="made"):
        """The status of a load or an unload on request."""
        path = f"/v2/repository/models/{name}/{verb}"
        return self.http.post(path).status_code

    def get_token(self, model):
        """A state token after one step of 7."""
        body = GOOD | {"model": model, "return_state": True}
        answer = self.http.post("/classify", json=body).json()
        return answer["predictions"][0]["state"]

    def continue_from(self, model, token):
        """The response to one more step from a token's state."""
        body = GOOD | {"model": model, "states": [token]}
        return self.http.post("/classify", json=body)

    @property
    def versions(self):
        return self.http.get("/v2/models/made").json()["versions"]

    @property
    def broken(self):
        return self.http.get("/models").json()["broken"]

    @property
    def loads(self):
        """The number of engines made so far."""
        return len(self.engines)

    @property
    def loaded(self):
        """The weights of the engines that the workers have."""
        engines = [engine() for engine in list(self.engines)]
        return sorted(engine.weights for engine in engines if engine is not None)


@contextmanager
def blocked(*engines):
    """These engines, given by weak references, compute nothing until the block ends."""
    for engine in engines:
        engine().closed()
    try:
        yield
    finally:
        for engine in engines:
            engine().gate.set()


@contextmanager
def versioned_service(
    folder, *versions, root=None, labels=None, start=None, **settings
):
    """The service with these versions of `made`, until the block ends."""
    root = folder / "bundles" if root is None else root
    for version in versions:
        put(root, version)
    if labels is not None:
        write_labels(root / "made", labels)
    engines, scans, gate, hooks, tries = [], [], threading.Event(), [], []
    gate.set()

    def load(bundle, settings):
        tries.append(bundle.metadata.version)
        assert gate.wait(SECONDS)
        engine = WeightedEngine(bundle, settings)
        engines.append(weakref.ref(engine))
        return engine

    def scan(*roots, scan=folders.scan):
        if root in roots:  # not of another service
            scans.append(1)
            for hook in hooks:
                hook()
        return scan(*roots)

    defaults = {
        "port": 0,
        "bundles": root,
        "workers": 1,
        "reload_seconds": 0.02,
        "state_key": KEY,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "scan", scan)
        try:
            options = Settings(**defaults | settings)
            with running(options, load_engine=load) as service:
                parts = (service.url, service.app, service.server, service.http)
                yield VersionedService(*parts, root, engines, scans, gate, hooks, tries)
        finally:
            gate.set()
