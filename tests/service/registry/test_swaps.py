"""Requests, workers and metrics while versions change."""

import asyncio
import gc
import os
import shutil
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from model.bundle import bundle
from service.pool import pool, spawn
from service.settings import Settings
from tests.robustness.harness import fault_injection
from tests.robustness.harness.service import launch as launch_process
from tests.support.bundles import OnnxEngine, copy_bundle, random_frames
from tests.support.processes import processes
from tests.support.servers import SECONDS, running, value, wait
from tests.support.streams import NdjsonStream, WebSocketStream, wait_closed
from tests.support.versions import (
    GOOD,
    INFER,
    PREDICT,
    put,
    versioned_service,
    weights_of,
)

BODY = {"sequences": [[[1, 2, 3]]]}
TRANSPORTS = [WebSocketStream, NdjsonStream]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_restart_delay(monkeypatch):
    """Workers are replaced without a pause."""
    monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)


class BackgroundRequest:
    """A request in a thread, which has its response when the block ends."""

    def __init__(self, url, path, body):
        self._thread = threading.Thread(target=self._ask, args=(url + path, body))

    def _ask(self, url, body):
        self.response = httpx.post(url, json=body, timeout=SECONDS, trust_env=False)

    def start(self):
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.join(SECONDS)


@contextmanager
def blocked(*engines):
    """These engines compute nothing until the block ends."""
    for engine in engines:
        engine().closed()
    try:
        yield
    finally:
        for engine in engines:
            engine().gate.set()


def series(service, version):
    """The metrics' lines about a version."""
    text = f'version="{version}"'
    return [line for line in service.metrics().splitlines() if text in line]


class TestRequests:
    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_stream(self, tmp_path, kind):
        """A stream keeps its version to its end, while new streams get the new one; then
        the workers drop it, and its metrics are removed."""
        with (
            versioned_service(tmp_path, 1) as service,
            kind(service.url, "model=made") as client,
        ):
            assert weights_of(client.ask([[7]])["probabilities"]) == 1
            for version in (2, 3):
                service.put(version)
                service.wait_served(version)
                answer = client.ask([[7]])
                assert answer["probabilities"][:2] == [version + 1, 7 + 1]
            service.wait_scanned()
            with kind(service.url, "model=made") as other:
                assert weights_of(other.ask([[7]])["probabilities"]) == 3
            wait(lambda: service.loaded == [1, 3], "the one between is dropped")
            assert service.versions == ["3"]
            assert service.status("made@1") == 404
            assert series(service, 1)
            assert client.ask([[7]])["steps"] == 4
            assert client.end()["steps"] == 4
            wait_closed(service, "made")
            gc.collect()
            wait(lambda: service.loaded == [3], "the workers drop it")
            wait(lambda: not series(service, 1), "its figures are gone")
            assert series(service, 3)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_stream_frees(self, tmp_path, kind):
        """A version is dropped with its last stream, without a garbage collection."""
        with versioned_service(tmp_path, 1) as service:
            with kind(service.url, "model=made") as client:
                client.ask([[7]])
                service.put(2)
                service.wait_served(2)
                service.wait_scanned()
                gc.disable()
                client.end()
            try:
                wait(lambda: service.loaded == [2], "the workers drop it", seconds=1)
            finally:
                gc.enable()

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/classify", GOOD),
            ("/v2/models/made/infer", INFER),
            ("/v1/models/made:predict", PREDICT),
        ],
    )
    def test_request(self, tmp_path, path, body):
        """A request during a swap is answered by the version that it started with, which is
        then dropped."""
        with versioned_service(tmp_path, 1, workers=2) as service:
            before = service.registry.get("made").admission
            with (
                BackgroundRequest(service.url, path, body) as request,
                blocked(*service.engines),
            ):
                request.start()
                wait(lambda: before.wait_estimate.steps == 1, "it is with a worker")
                service.put(2)
                wait(lambda: service.about()["version"] == "2", "the new one is served")
                service.wait_status("made@1", 404)
                service.assert_served(2)
            assert request.response.status_code == 200
            answer = request.response.json()
            if path == "/classify":
                assert answer["version"] == "1"
            elif "v2" in path:
                assert answer["model_version"] == "1"
            else:
                assert weights_of(answer["predictions"][0]) == 1
            wait(lambda: service.loaded == [2, 2], "the workers drop it")

    def test_kept_sequence(self, tmp_path):
        """A kept sequence stays with its version; restarted it gets the new one."""

        def ask(**flags):
            parameters = {f"sequence_{key}": flag for key, flag in flags.items()}
            body = INFER | {"parameters": {"sequence_id": 5} | parameters}
            answer = service.http.post("/v2/models/made/infer", json=body)
            assert answer.status_code == 200, answer.text
            body = answer.json()
            steps = round(body["outputs"][0]["data"][0])
            return body["model_version"], steps - int(body["model_version"])

        with versioned_service(tmp_path, 1) as service:
            assert ask(start=True) == ("1", 1)
            service.put(2)
            service.wait_served(2)
            assert ask() == ("1", 2)
            assert service.loaded == [1, 2]
            assert ask(end=True) == ("1", 3)
            wait(lambda: service.loaded == [2], "the workers drop it")
            assert ask(start=True) == ("2", 1)

    def test_kept_sequence_of_other_features(self, tmp_path):
        """If the new version takes other features, the sequence must be restarted."""
        parameters = {"sequence_id": 5, "sequence_start": True}
        with versioned_service(tmp_path, 1) as service:
            path = "/v2/models/made/infer"
            begun = service.http.post(path, json=INFER | {"parameters": parameters})
            assert begun.status_code == 200
            service.put(2, features=2)
            service.wait_status("made", 422)
            parameters["sequence_start"] = False
            frames = {"name": "frames", "shape": [1, 1, 2], "datatype": "FP32"}
            body = {"inputs": [frames | {"data": [1, 2]}], "parameters": parameters}
            answer = service.http.post(path, json=body)
            assert answer.status_code == 400
            assert "features" in answer.json()["error"]
            parameters["sequence_start"] = True
            assert service.http.post(path, json=body).json()["model_version"] == "2"

    def test_report(self, tmp_path, bundles):
        """The report of a bundle that is gone from the disk is no internal error."""
        root = tmp_path / "bundles"
        copy_bundle(bundles / "walks" / "1", root / "walks" / "1")
        settings = Settings(port=0, bundles=root, reload_seconds=0, workers=1)
        with running(settings, load_engine=OnnxEngine) as service:
            card = "/models/walks/report/card.md"
            assert service.http.get(card).status_code == 200
            shutil.rmtree(root / "walks")
            assert service.http.get("/models/walks").status_code == 200
            assert service.http.get(card).status_code < 500


class TestMetrics:
    def test_gone(self, tmp_path):
        """The metrics have no series of a dropped version, and one of each model."""
        with versioned_service(tmp_path, 1) as service:
            service.assert_served(1)
            for version in (2, 3):
                service.put(version)
                service.wait_served(version)
            wait(lambda: not series(service, 1) + series(service, 2), "they are gone")
            info = [
                x for x in series(service, 3) if x.startswith("unrolled_model_info")
            ]
            assert len(info) == 1
            text = service.metrics()
            assert value(text, "unrolled_model_info", model="made") == 1
            assert value(text, "unrolled_waiting_steps", model="made") == 0

    def test_statistics(self, tmp_path):
        """Triton's statistics start with the version."""
        with versioned_service(tmp_path, 1, keep_versions=2) as service:
            for _ in range(3):
                service.assert_served(1)
            service.put(2)
            wait(lambda: service.versions == ["1", "2"], "both are served")
            stats = service.http.get("/v2/models/stats").json()["model_stats"]
            assert [(s["version"], s["inference_count"]) for s in stats] == [
                ("1", 3),
                ("2", 0),
            ]


# --- workers ---------------------------------------------------------------------


def lose(service):
    """End a worker, without waiting for its replacement."""
    workers = service.registry._pool
    lost = workers.workers.all[0]
    with lost.jobs.dup() as jobs:
        jobs.shutdown(socket.SHUT_RDWR)
        wait(lambda: lost not in workers.workers.all, "it is missed")


def kill(service, seconds=SECONDS):
    """End a worker, and wait for its replacement."""
    size = service.registry._pool.size
    lose(service)
    wait(lambda: service.registry._pool.size == size, "another serves", seconds)


class TestWorkers:
    def test_replaced(self, tmp_path):
        """A worker's replacement loads only the versions that are served."""
        with versioned_service(tmp_path, 1, workers=2, labels={"stable": 1}) as service:
            for version in (2, 3):
                service.put(version)
                service.wait_served(version)
            wait(lambda: service.loaded == [1, 1, 3, 3], "both have both")
            loads = service.loads
            kill(service)
            assert service.loads == loads + 2
            wait(lambda: service.loaded == [1, 1, 3, 3], "both have both")
            for _ in range(10):
                service.assert_served(3)
                service.assert_served(1, "made@stable")
            service.put(4)
            service.wait_served(4)
            wait(lambda: service.loaded == [1, 1, 4, 4], "the new one swaps, too")

    def test_replaced_while_gone(self, tmp_path):
        """If a name is gone from the disk, a new worker serves the others."""
        folder = put(tmp_path / "else" / "bundles", 4, name="alpha")
        with versioned_service(tmp_path, 1) as service:
            os.rename(folder.parent, service.root / "alpha")
            service.wait_served(4, "alpha@4")
            shutil.move(service.root / "made", tmp_path / "away")
            service.wait_scanned()
            service.assert_served(1)
            kill(service, seconds=2)
            service.assert_served(4, "alpha")

    def test_replaced_by_another(self, tmp_path, caplog):
        """A new worker never answers with what replaced a bundle on disk since, under the
        former digest."""
        with versioned_service(tmp_path, 1, reload_seconds=0) as service:
            service.put(1, weights=11)
            lose(service)
            workers, died = service.registry._pool, "a new worker died"
            wait(lambda: workers.size or died in caplog.messages, "another comes")
            response = service.http.post("/classify", json=GOOD)
            if response.status_code != 503:
                service.assert_served(1)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_stream_survives(self, tmp_path, kind):
        """A stream with a former version continues in the workers that have it, when
        another worker is replaced."""
        with (
            versioned_service(tmp_path, 1, workers=2) as service,
            kind(service.url, "model=made") as client,
        ):
            client.ask([[7]])
            service.put(2)
            service.wait_served(2)
            service.wait_scanned()
            kill(service)
            (other_engine,) = (e for e in service.engines[2:4] if e() is not None)
            with (
                BackgroundRequest(service.url, "/classify", GOOD) as request,
                blocked(other_engine),
            ):
                request.start()
                busy = service.registry.get("made").admission
                wait(
                    lambda: busy.wait_estimate.steps == 1,
                    "the one that has both is busy",
                )
                client.send({"frames": [[7]]})
                service.wait_scanned()
            assert "probabilities" in client.receive()

    def test_gone_while_loading(self, tmp_path):
        """A version that is removed just when it has been loaded leaves nothing that new
        workers would load."""
        with versioned_service(tmp_path, 1) as service:
            folder = service.root / "made" / "2"
            workers = service.registry._pool
            load = workers.load

            def load_and_lose(*args, **kwargs):
                loaded = load(*args, **kwargs)
                shutil.rmtree(folder)
                return loaded

            workers.load = load_and_lose
            service.put(2)
            wait(lambda: not folder.exists(), "it is loaded, and gone")
            workers.load = load
            service.wait_scanned()
            assert len(workers.workers._models) == 1

    def test_loads_too_long(self, tmp_path):
        """A version that does not load in time in a new worker is reported as broken, and
        served by the others, until it is loaded on request."""
        with versioned_service(
            tmp_path, 1, workers=2, load_seconds=1, admin=True
        ) as service:
            service.gate.clear()
            try:
                kill(service)
                wait(lambda: service.broken, "it is reported")
                reason = f"{service.root / 'made' / '1'}: did not load within 1 s"
                assert service.broken == {"made@1": reason}
                service.wait_scanned()
                service.assert_served(1)
                assert service.loaded == [1]
                assert service.registry._pool.size == 2
            finally:
                service.gate.set()
            assert service.admin("load") == 200
            assert service.broken == {}
            service.assert_served(1)
            wait(lambda: service.loaded == [1, 1], "both have it")

    def test_loads_in_time_again(self, tmp_path):
        """If no worker has it any more it is loaded like a new version."""
        with versioned_service(tmp_path, 1, load_seconds=1) as service:
            service.gate.clear()
            try:
                lose(service)
                wait(
                    lambda: service.registry._pool.workers.load_failures,
                    "it takes too long",
                )
            finally:
                service.gate.set()
            service.wait_status("made", 200)
            service.assert_served(1)
            assert service.broken == {}


# --- under load ------------------------------------------------------------------


def classify(http, at):
    body = http.post("/classify", json=GOOD)
    assert body.status_code == 200, body.text
    body = body.json()
    version = int(body["version"])
    assert weights_of(body["predictions"][0]["probabilities"]) == version
    return version


def infer(http, at):
    body = http.post("/v2/models/made/infer", json=INFER)
    assert body.status_code == 200, body.text
    body = body.json()
    version = int(body["model_version"])
    assert weights_of(body["outputs"][0]["data"]) == version
    return version


def predict(http, at):
    body = http.post("/v1/models/made:predict", json=PREDICT)
    assert body.status_code == 200, body.text
    return weights_of(body.json()["predictions"][0])


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


def broken_in(service):
    """The reasons by model."""
    return service.get("/models").json()["broken"]


def deaths(service):
    """The number of workers that died."""
    return service.metric("unrolled_worker_deaths_total")


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
        lines = [x for x in service.metrics().splitlines() if 'version="' in x]
        assert lines
        assert all('version="51"' in line for line in lines)


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


# --- the thread that loads -------------------------------------------------------


class TestThread:
    def test_disconnect(self, tmp_path):
        """A client that disconnects during its load changes nothing; the load of one that
        disconnected before is not done; the next one is."""

        async def disconnect():
            transport = httpx.ASGITransport(service.app)
            async with httpx.AsyncClient(
                transport=transport, base_url=service.url
            ) as http:
                path = "/v2/repository/models/made/load"
                tasks = [asyncio.create_task(http.post(path)) for _ in range(2)]
                while service.tries[-1] != "2":
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()  # as an ASGI server does
                await asyncio.wait(tasks)

        with versioned_service(tmp_path, 1, admin=True, reload_seconds=0) as service:
            service.gate.clear()
            service.put(2)
            asyncio.run(asyncio.wait_for(disconnect(), SECONDS))
            service.gate.set()
            service.wait_served(2)
            service.put(3)
            assert service.admin("load") == 200
            service.assert_served(3)
            assert len(service.scans) == 3  # at the start, of the first, of the last

    @pytest.mark.parametrize("error", [MemoryError, SystemExit])
    def test_survives(self, tmp_path, error):
        """After any exception in a scan, or in a load on request, the next one finds what is
        new."""
        failures = [error("injected")]

        def fail():
            if failures:
                raise failures.pop()

        with versioned_service(tmp_path, 1, admin=True) as service:
            service.hooks.append(fail)
            wait(lambda: not failures, "a scan fails")
            service.put(2)
            service.wait_served(2)
        failures.append(error("injected"))
        with versioned_service(tmp_path, admin=True, reload_seconds=0) as service:
            service.hooks.append(fail)
            assert service.admin("load") >= 500
            service.put(3)
            assert service.admin("load") == 200
            service.assert_served(3)


# --- loads without an end --------------------------------------------------------

LOAD_SECONDS = 5


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
            assert deaths(service) == 0
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
