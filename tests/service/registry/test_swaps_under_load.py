"""Versions that change, or never finish loading, while clients send without a pause."""

import gc
import os
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from model.bundle import bundle
from service.pool import spawn
from service.settings import Settings
from tests.robustness.harness import fault_injection
from tests.robustness.harness.service import launch as launch_process
from tests.support.bundles import OnnxEngine, copy_bundle, random_frames
from tests.support.processes import processes
from tests.support.servers import SECONDS, running, value, wait
from tests.support.streams import WebSocketStream
from tests.support.versions import GOOD, INFER, PREDICT, versioned_service, weights_of

BODY = {"sequences": [[[1, 2, 3]]]}
LOAD_SECONDS = 5
pytestmark = pytest.mark.slow


def post(http, path, request):
    response = http.post(path, json=request)
    assert response.status_code == 200, response.text
    return response.json()


def classify(http, at):
    body = post(http, "/classify", GOOD)
    version = int(body["version"])
    assert weights_of(body["predictions"][0]["probabilities"]) == version
    return version


def infer(http, at):
    body = post(http, "/v2/models/made/infer", INFER)
    version = int(body["model_version"])
    assert weights_of(body["outputs"][0]["data"]) == version
    return version


def predict(http, at):
    body = post(http, "/v1/models/made:predict", PREDICT)
    return weights_of(body["predictions"][0])


def stream(http, at):
    """A whole stream has one version."""
    with WebSocketStream(str(http.base_url).rstrip("/"), "model=made") as client:
        version = weights_of(client.ask([[7]])["probabilities"])
        for steps in (2, 3):
            answer = client.ask([[7]])
            assert answer["probabilities"][:2] == [steps + version, 7 + version]
        client.end()
    return version


def sequence(http, at):
    """So has a kept sequence."""
    seen = set()
    for flags in ({"sequence_start": True}, {}, {"sequence_end": True}):
        key = {"sequence_id": 1 + len(at)}
        body = INFER | {"parameters": key | flags}
        answer = http.post("/v2/models/made/infer", json=body)
        assert answer.status_code == 200, answer.text
        seen.add(int(answer.json()["model_version"]))
    (version,) = seen
    return version


class Clients:
    """Clients that send requests without a pause, each over one connection, until the
    block ends: none is refused, and none sees an older version than before."""

    def __init__(self, url, *functions):
        self.seen = [[] for _ in functions]  # versions
        self._url, self._errors = url, []
        self._stop = threading.Event()
        pairs = zip(functions, self.seen, strict=True)
        self._threads = [threading.Thread(target=self._run, args=p) for p in pairs]

    def wait_answered(self):
        """Wait until each client has sent and received from now on."""
        before = [len(versions) for versions in self.seen]

        def answered():
            assert self._errors == []
            pairs = zip(self.seen, before, strict=True)
            return all(len(versions) >= count + 2 for versions, count in pairs)

        wait(answered, "all are answered")

    def _run(self, send, versions):
        try:
            with httpx.Client(
                base_url=self._url, timeout=SECONDS, trust_env=False
            ) as http:
                while not self._stop.is_set():
                    version = send(http, versions)
                    assert version >= (versions[-1] if versions else 0), "it went back"
                    versions.append(version)
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(SECONDS)
        assert self._errors == []


def test_many_swaps(tmp_path):
    """In fifty swaps under load no request fails, and each is answered correctly by one
    version, which never decreases; in the end each worker has one engine, and nothing of
    the former versions is left."""
    functions = (classify, infer, predict, stream, sequence)
    with versioned_service(
        tmp_path, 1, workers=2, reload_seconds=0, admin=True
    ) as service:
        with Clients(service.url, *functions) as clients:
            for version in range(2, 52):
                if version % 2:
                    clients.wait_answered()
                service.put(version)
                service.remove(version - 1)
                assert service.admin("load") == 200
            clients.wait_answered()
        for versions in clients.seen:
            assert {51, *range(2, 51, 2)} <= set(versions) <= {*range(1, 52)}
        gc.collect()
        wait(lambda: service.loaded == [51, 51], "one engine a worker")
        workers = service.registry._pool
        wait(lambda: len(workers.on_batch) == 1, "nobody counts the others")
        assert len(workers.workers._models) == 1
        assert all(len(link.pending_by_model) <= 1 for link in workers._links)
        assert service.broken == {}
        assert service.versions == ["51"]
        text = service.metrics()
        lines = [line for line in text.splitlines() if 'version="' in line]
        assert all('version="51"' in line for line in lines)
        assert sum(line.startswith("unrolled_model_info") for line in lines) == 1
        assert value(text, "unrolled_model_info", model="made") == 1
        assert value(text, "unrolled_waiting_steps", model="made") == 0


def test_unloaded(tmp_path):
    """While a name is repeatedly unloaded and loaded, requests are answered or 404, and
    nothing else."""
    statuses = set()

    def ask(http, at):
        for model in ("made", "made@9"):
            answer = http.post("/classify", json=GOOD | {"model": model})
            statuses.add((model, answer.status_code))
        return 0

    with versioned_service(tmp_path, 1, reload_seconds=0, admin=True) as service:
        with Clients(service.url, ask, ask) as clients:
            for _ in range(20):
                clients.wait_answered()
                assert service.admin("unload") == 200
                clients.wait_answered()
                assert service.admin("load") == 200
        service.assert_served(1)
        gc.collect()
        wait(lambda: service.loaded == [1], "the workers have it once")
    assert statuses == {("made", 200), ("made", 404), ("made@9", 404)}


def test_processes(tmp_path, bundles):
    """Worker processes swap real networks under load: each answer is the network's, and a
    worker's memory does not grow with the versions."""
    root = tmp_path / "bundles"
    source = bundles / "walks" / "1"
    copy_bundle(source, root / "walks" / "1")
    frames = random_frames(np.random.default_rng(0), 20)
    exported = bundle.read(source)
    initial = np.zeros((1, exported.metadata.state_size), np.float32)
    lengths = np.array([len(frames)], np.int32)
    right, _ = OnnxEngine(exported, Settings()).step(frames[None], lengths, initial)
    body = {"sequences": [frames.tolist()]}

    def ask(http, at):
        response = http.post("/classify", json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        numbers = answer["predictions"][0]["probabilities"]
        np.testing.assert_allclose(numbers, right[0], atol=1e-5)
        return int(answer["version"])

    settings = Settings(port=0, bundles=root, workers=2, reload_seconds=0, admin=True)
    started = []

    def start(settings):
        worker = spawn.process(settings)
        started.append(worker.wait.__self__.pid)
        return worker

    def memory():
        pages = []
        for pid in started:
            with open(f"/proc/{pid}/statm") as file:
                pages.append(int(file.read().split()[1]))
        return np.array(pages) * os.sysconf("SC_PAGE_SIZE")

    with running(settings, start=start) as service:
        assert set(started) <= processes().keys()
        with Clients(service.url, ask, ask) as clients:
            for version in range(2, 22):
                clients.wait_answered()
                new = copy_bundle(source, tmp_path / "new", version=str(version))
                os.rename(new, root / "walks" / str(version))
                if version == 12:
                    before = memory()
                path = "/v2/repository/models/walks/load"
                assert service.http.post(path).status_code == 200
            clients.wait_answered()
        for versions in clients.seen:
            assert set(versions) == set(range(1, 22))
        assert (memory() - before < 2**24).all()
        assert set(started) <= processes().keys(), "a worker was replaced"
        assert len(started) == 2


def broken_in(service):
    """The reasons by model."""
    return service.get("/models").json()["broken"]


@contextmanager
def hanging(folder, root, *names, **settings):
    """The service as a process, in which these bundles never finish loading."""
    service = launch_process(
        folder,
        module="tests.robustness.harness.fault_injection",
        injected={fault_injection.HANGING_LOAD: ",".join(names)},
        **{"bundles": root, "workers": 2, "load_seconds": LOAD_SECONDS} | settings,
    )
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait(SECONDS)


def too_long(folder):
    return f"{folder}: did not load within {LOAD_SECONDS} s"


class TestHanging:
    def test_served(self, tmp_path, bundles):
        """A bundle that never finishes loading is broken after its timeout, at the start
        and in a reload: the others are served without an error, later ones are loaded,
        and no worker ever sees it. A stop during such a load does not wait for it."""
        root = tmp_path / "bundles"
        for name in ("tags", "walks"):
            copy_bundle(bundles / name / "1", root / name / "1")
        settings = {"skip_broken": "true", "admin": "true", "reload_seconds": 0.2}
        names = ("tags", "walks@2", "walks@4")
        with hanging(tmp_path, root, *names, **settings) as service:
            service.wait_until_ready()
            assert broken_in(service) == {"tags": too_long(root / "tags" / "1")}

            def ask(http, at):
                answer = http.post("/classify", json=BODY)
                assert answer.status_code == 200, answer.text
                return int(answer.json()["version"])

            def add(version):
                new = copy_bundle(
                    bundles / "walks" / "1", tmp_path / "new", version=version
                )
                os.rename(new, root / "walks" / version)

            with Clients(service.url, ask, ask) as clients:
                clients.wait_answered()
                add("2")
                wait(lambda: "walks@2" in broken_in(service), "it is reported")
                assert broken_in(service)["walks@2"] == too_long(root / "walks" / "2")
                add("3")
                wait(lambda: clients.seen[0][-1] == 3, "the next one is served")
                path = "/v2/repository/models/tags/load"
                answer = httpx.post(
                    service.url + path, timeout=SECONDS, trust_env=False
                )
                assert answer.status_code == 503
                assert answer.json()["error"] == too_long(root / "tags" / "1")
                clients.wait_answered()
            assert service.metric("unrolled_worker_deaths_total") == 0
            add("4")
            time.sleep(LOAD_SECONDS / 2)
            begun = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() < begun + LOAD_SECONDS

    def test_exit_code(self, tmp_path, bundles):
        """Without `skip_broken` the service ends with exit code 3."""
        with hanging(tmp_path, bundles, "walks") as service:
            assert service.process.wait(SECONDS) == 3
            assert too_long(bundles / "walks" / "1") in service.log.read_text()
