"""What becomes of work that is under way, of workers and of figures in a swap."""

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
from tests.service.registry.test_versions import (
    GOOD,
    INFER,
    PREDICT,
    put,
    shop,
    told,
    weights_of,
)
from tests.support.bundles import OnnxEngine, copy_bundle, random_frames
from tests.support.processes import processes
from tests.support.servers import SECONDS, running, value, wait
from tests.support.streams import NdjsonStream, WebSocketStream, wait_closed

BODY = {"sequences": [[[1, 2, 3]]]}
TRANSPORTS = [
    pytest.param(WebSocketStream, id="websocket"),
    pytest.param(NdjsonStream, id="lines"),
]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Workers are replaced without a pause."""
    monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)


class Asking:
    """A request that has been answered when the block ends."""

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
def holding(*engines):
    """Requests to these engines are computed after the block."""
    for engine in engines:
        engine().closed()
    try:
        yield
    finally:
        for engine in engines:
            engine().gate.set()


def series(made, version):
    """What the metrics tell of a version."""
    text = f'version="{version}"'
    return [line for line in made.metrics().splitlines() if text in line]


class TestUnderWay:
    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_stream(self, tmp_path, kind):
        """A stream goes on with the version that it began with to its end, while new
        ones have the new; then the workers drop it, and its figures are gone."""
        with shop(tmp_path, 1) as made, kind(made.url, "model=made") as talk:
            assert weights_of(talk.ask([[7]])["probabilities"]) == 1
            for version in (2, 3):
                made.put(version)
                made.wait_served(version)
                answer = talk.ask([[7]])
                assert answer["probabilities"][:2] == [version + 1, 7 + 1]
            made.look()
            with kind(made.url, "model=made") as other:
                assert weights_of(other.ask([[7]])["probabilities"]) == 3
            wait(lambda: made.alive == [1, 3], "the one between is dropped")
            assert made.versions == ["3"]
            assert made.status("made@1") == 404
            assert series(made, 1)
            assert talk.ask([[7]])["steps"] == 4
            assert talk.end()["steps"] == 4
            wait_closed(made, "made")
            gc.collect()
            wait(lambda: made.alive == [3], "the workers drop it")
            wait(lambda: not series(made, 1), "its figures are gone")
            assert series(made, 3)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_stream_frees(self, tmp_path, kind):
        """That a stream has ended is enough: no garbage has to be looked for."""
        with shop(tmp_path, 1) as made:
            with kind(made.url, "model=made") as talk:
                talk.ask([[7]])
                made.put(2)
                made.wait_served(2)
                made.look()
                gc.disable()
                talk.end()
            try:
                wait(lambda: made.alive == [2], "the workers drop it", seconds=1)
            finally:
                gc.enable()

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            pytest.param("/classify", GOOD, id="native"),
            pytest.param("/v2/models/made/infer", INFER, id="v2"),
            pytest.param("/v1/models/made:predict", PREDICT, id="v1"),
        ],
    )
    def test_request(self, tmp_path, path, body):
        """A request that is under way in a swap is answered by the version that it
        began with, which is dropped then."""
        with shop(tmp_path, 1, workers=2) as made:
            before = made.registry.get("made").admission
            with Asking(made.url, path, body) as asked, holding(*made.engines):
                asked.start()
                wait(lambda: before.wait_estimate.steps == 1, "it is with a worker")
                made.put(2)
                wait(lambda: made.about()["version"] == "2", "the new one is served")
                made.wait_gone("made@1")
                made.assert_served(2)
            assert asked.response.status_code == 200
            found = asked.response.json()
            if path == "/classify":
                assert found["version"] == "1"
            elif "v2" in path:
                assert found["model_version"] == "1"
            else:
                assert weights_of(found["predictions"][0]) == 1
            wait(lambda: made.alive == [2, 2], "the workers drop it")

    def test_kept_sequence(self, tmp_path):
        """A sequence under an id stays with its version; begun anew it has the new."""

        def ask(**flags):
            given = {f"sequence_{key}": flag for key, flag in flags.items()}
            body = INFER | {"parameters": {"sequence_id": 5} | given}
            answer = made.http.post("/v2/models/made/infer", json=body)
            assert answer.status_code == 200, answer.text
            body = answer.json()
            steps = round(body["outputs"][0]["data"][0])
            return body["model_version"], steps - int(body["model_version"])

        with shop(tmp_path, 1) as made:
            assert ask(start=True) == ("1", 1)
            made.put(2)
            made.wait_served(2)
            assert ask() == ("1", 2)
            assert made.alive == [1, 2]
            assert ask(end=True) == ("1", 3)
            wait(lambda: made.alive == [2], "the workers drop it")
            assert ask(start=True) == ("2", 1)

    def test_kept_sequence_of_other_features(self, tmp_path):
        """Where the new version takes other features, it is told to begin anew."""
        parameters = {"sequence_id": 5, "sequence_start": True}
        with shop(tmp_path, 1) as made:
            path = "/v2/models/made/infer"
            begun = made.http.post(path, json=INFER | {"parameters": parameters})
            assert begun.status_code == 200
            made.put(2, features=2)
            made.wait_status("made", 422)
            parameters["sequence_start"] = False
            one = {"name": "frames", "shape": [1, 1, 2], "datatype": "FP32"}
            body = {"inputs": [one | {"data": [1, 2]}], "parameters": parameters}
            answer = made.http.post(path, json=body)
            assert answer.status_code == 400
            assert "features" in answer.json()["error"]
            parameters["sequence_start"] = True
            assert made.http.post(path, json=body).json()["model_version"] == "2"

    def test_report(self, tmp_path, bundles):
        """What is served from before, and gone from the disk, makes no mistake of
        ours where its report is asked for."""
        root = tmp_path / "bundles"
        copy_bundle(bundles / "walks" / "1", root / "walks" / "1")
        settings = Settings(port=0, bundles=root, reload_seconds=0, workers=1)
        with running(settings, load_engine=OnnxEngine) as made:
            card = "/models/walks/report/card.md"
            assert made.http.get(card).status_code == 200
            shutil.rmtree(root / "walks")
            assert made.http.get("/models/walks").status_code == 200
            assert made.http.get(card).status_code < 500


class TestFigures:
    def test_gone(self, tmp_path):
        """The metrics have no series of a version that is served no more, and each
        model in service once."""
        with shop(tmp_path, 1) as made:
            made.assert_served(1)
            for version in (2, 3):
                made.put(version)
                made.wait_served(version)
            wait(lambda: not series(made, 1) + series(made, 2), "they are gone")
            info = [x for x in series(made, 3) if x.startswith("unrolled_model_info")]
            assert len(info) == 1
            text = made.metrics()
            assert value(text, "unrolled_model_info", model="made") == 1
            assert value(text, "unrolled_waiting_steps", model="made") == 0

    def test_statistics(self, tmp_path):
        """Those of Triton begin with the version."""
        with shop(tmp_path, 1, keep_versions=2) as made:
            for _ in range(3):
                made.assert_served(1)
            made.put(2)
            wait(lambda: made.versions == ["1", "2"], "both are served")
            stats = made.http.get("/v2/models/stats").json()["model_stats"]
            assert [(one["version"], one["inference_count"]) for one in stats] == [
                ("1", 3),
                ("2", 0),
            ]


# --- workers ---------------------------------------------------------------------


def lose(made):
    """End a worker."""
    workers = made.registry._pool
    lost = workers.workers.all[0]
    with lost.jobs.dup() as jobs:
        jobs.shutdown(socket.SHUT_RDWR)
        wait(lambda: lost not in workers.workers.all, "it is missed")


def kill(made, seconds=SECONDS):
    """End a worker; return when another has taken its place."""
    size = made.registry._pool.size
    lose(made)
    wait(lambda: made.registry._pool.size == size, "another serves", seconds)


class TestWorkers:
    def test_replaced(self, tmp_path):
        """A worker that dies after swaps is replaced by one that loads only what is
        served."""
        with shop(tmp_path, 1, workers=2, labels={"stable": 1}) as made:
            for version in (2, 3):
                made.put(version)
                made.wait_served(version)
            wait(lambda: made.alive == [1, 1, 3, 3], "both have both")
            loads = made.loads
            kill(made)
            assert made.loads == loads + 2
            wait(lambda: made.alive == [1, 1, 3, 3], "both have both")
            for _ in range(10):
                made.assert_served(3)
                made.assert_served(1, "made@stable")
            made.put(4)
            made.wait_served(4)
            wait(lambda: made.alive == [1, 1, 4, 4], "the new one swaps, too")

    def test_replaced_while_gone(self, tmp_path):
        """Where one name is gone from the disk a new worker serves the others."""
        folder = put(tmp_path / "else" / "bundles", 4, name="alpha")
        with shop(tmp_path, 1) as made:
            os.rename(folder.parent, made.root / "alpha")
            made.wait_served(4, "alpha@4")
            shutil.move(made.root / "made", tmp_path / "away")
            made.look()
            made.assert_served(1)
            kill(made, seconds=2)
            made.assert_served(4, "alpha")

    def test_replaced_by_another(self, tmp_path, caplog):
        """A new worker never answers by what was put in the place of a bundle since,
        under the digest of that from before."""
        with shop(tmp_path, 1, reload_seconds=0) as made:
            made.put(1, weights=11)
            lose(made)
            workers, died = made.registry._pool, "a new worker died"
            wait(lambda: workers.size or died in caplog.messages, "another comes")
            response = made.http.post("/classify", json=GOOD)
            if response.status_code != 503:
                made.assert_served(1)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_stream_survives(self, tmp_path, kind):
        """A stream on a version from before goes on with the workers that have it,
        when another one is replaced."""
        with shop(tmp_path, 1, workers=2) as made, kind(made.url, "model=made") as talk:
            talk.ask([[7]])
            made.put(2)
            made.wait_served(2)
            made.look()
            kill(made)
            (survivor,) = (one for one in made.engines[2:4] if one() is not None)
            with Asking(made.url, "/classify", GOOD) as asked, holding(survivor):
                asked.start()
                busy = made.registry.get("made").admission
                wait(
                    lambda: busy.wait_estimate.steps == 1,
                    "the one that has both is busy",
                )
                talk.send({"frames": [[7]]})
                made.look()
            assert "probabilities" in talk.receive()

    def test_gone_while_loading(self, tmp_path):
        """A version that is taken away in the moment in which it has been loaded
        leaves nothing behind that workers would have to load."""
        with shop(tmp_path, 1) as made:
            folder = made.root / "made" / "2"
            workers = made.registry._pool
            load = workers.load

            def load_and_lose(*given, **more):
                loaded = load(*given, **more)
                shutil.rmtree(folder)
                return loaded

            workers.load = load_and_lose
            made.put(2)
            wait(lambda: not folder.exists(), "it is loaded, and gone")
            workers.load = load
            made.look()
            assert len(workers.workers._wanted) == 1

    def test_loads_too_long(self, tmp_path):
        """A version that a new worker does not come to the end of is told as broken,
        and served on by the others, until it is asked for again."""
        with shop(tmp_path, 1, workers=2, load_seconds=1, admin=True) as made:
            made.gate.clear()
            try:
                kill(made)
                wait(lambda: made.broken, "it is told")
                reason = f"{made.root / 'made' / '1'}: did not load within 1 s"
                assert made.broken == {"made@1": reason}
                made.look()
                made.assert_served(1)
                assert made.alive == [1]
                assert made.registry._pool.size == 2
            finally:
                made.gate.set()
            assert told(made, "load") == 200
            assert made.broken == {}
            made.assert_served(1)
            wait(lambda: made.alive == [1, 1], "both have it")

    def test_loads_in_time_again(self, tmp_path):
        """Where no worker has it any more it is loaded as a new version would be."""
        with shop(tmp_path, 1, load_seconds=1) as made:
            made.gate.clear()
            try:
                lose(made)
                wait(
                    lambda: made.registry._pool.workers.load_failures,
                    "it takes too long",
                )
            finally:
                made.gate.set()
            made.wait_status("made", 200)
            made.assert_served(1)
            assert made.broken == {}


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
    """All of a stream is by one version."""
    with WebSocketStream(str(http.base_url).rstrip("/"), "model=made") as talk:
        version = weights_of(talk.ask([[7]])["probabilities"])
        for steps in (2, 3):
            answer = talk.ask([[7]])
            assert answer["probabilities"][:2] == [steps + version, 7 + version]
        talk.end()
    return version


def sequence(http, at):
    """So is all of a sequence under an id."""
    seen = set()
    for flags in ({"sequence_start": True}, {}, {"sequence_end": True}):
        key = {"sequence_id": 1 + len(at)}
        body = INFER | {"parameters": key | flags}
        answer = http.post("/v2/models/made/infer", json=body)
        assert answer.status_code == 200, answer.text
        seen.add(int(answer.json()["model_version"]))
    (version,) = seen
    return version


def told_of(service):
    """What is broken, and why."""
    return service.get("/models").json()["broken"]


def deaths(service):
    """Workers that were lost so far."""
    return service.metric("unrolled_worker_deaths_total")


class Clients:
    """They ask without a pause, each over one connection, until the block ends: none
    is ever refused, and none sees a version before the last one."""

    def __init__(self, url, *ways):
        self.seen = [[] for _ in ways]  # versions
        self._url, self._faults = url, []
        self._stop = threading.Event()
        pairs = zip(ways, self.seen, strict=True)
        self._threads = [threading.Thread(target=self._run, args=p) for p in pairs]

    def go_on(self):
        """Return when each has asked and been answered from now on."""
        before = [len(versions) for versions in self.seen]

        def answered():
            assert self._faults == []
            pairs = zip(self.seen, before, strict=True)
            return all(len(versions) >= count + 2 for versions, count in pairs)

        wait(answered, "all are answered")

    def _run(self, way, versions):
        try:
            with httpx.Client(
                base_url=self._url, timeout=SECONDS, trust_env=False
            ) as http:
                while not self._stop.is_set():
                    version = way(http, versions)
                    assert version >= (versions[-1] if versions else 0), "it went back"
                    versions.append(version)
        except BaseException as error:
            self._faults.append(error)

    def __enter__(self):
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for one in self._threads:
            one.join(SECONDS)
        assert self._faults == []


def test_a_hundred(tmp_path):
    """In a hundred swaps under load no request fails, each is answered rightly by one
    version, which only grows; at the end each worker has one engine, and the service
    nothing of those before."""
    ways = (classify, infer, predict, stream, sequence)
    with shop(tmp_path, 1, workers=2, reload_seconds=0, admin=True) as made:
        with Clients(made.url, *ways) as clients:
            for version in range(2, 102):
                if version % 2:
                    clients.go_on()
                made.put(version)
                made.remove(version - 1)
                assert told(made, "load") == 200
            clients.go_on()
        for versions in clients.seen:
            assert {101, *range(2, 101, 2)} <= set(versions) <= {*range(1, 102)}
        gc.collect()
        wait(lambda: made.alive == [101, 101], "one engine a worker")
        workers = made.registry._pool
        wait(lambda: len(workers.on_batch) == 1, "nobody counts the others")
        assert len(workers.workers._wanted) == 1
        assert all(len(link.pending_by_model) <= 1 for link in workers._links)
        assert made.broken == {}
        assert made.versions == ["101"]
        lines = [x for x in made.metrics().splitlines() if 'version="' in x]
        assert lines
        assert all('version="101"' in line for line in lines)


def test_unloaded(tmp_path):
    """While a name is unloaded and loaded again and again, requests are answered, or
    told that there is no such model: nothing else."""
    statuses = set()

    def ask(http, at):
        for model in ("made", "made@9"):
            answer = http.post("/classify", json=GOOD | {"model": model})
            statuses.add((model, answer.status_code))
        return 0

    with shop(tmp_path, 1, reload_seconds=0, admin=True) as made:
        with Clients(made.url, ask, ask) as clients:
            for _ in range(40):
                clients.go_on()
                assert told(made, "unload") == 200
                clients.go_on()
                assert told(made, "load") == 200
        made.assert_served(1)
        gc.collect()
        wait(lambda: made.alive == [1], "the workers have it once")
    assert statuses == {("made", 200), ("made", 404), ("made@9", 404)}


def test_processes(tmp_path, bundles):
    """Real workers swap real networks under load: each answer is that of the network,
    and a worker's memory does not grow with the versions."""
    root = tmp_path / "bundles"
    source = bundles / "walks" / "1"
    copy_bundle(source, root / "walks" / "1")
    frames = random_frames(np.random.default_rng(0), 20)
    found = bundle.read(source)
    start = np.zeros((1, found.metadata.state_size), np.float32)
    lengths = np.array([len(frames)], np.int32)
    right, _ = OnnxEngine(found, Settings()).step(frames[None], lengths, start)
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

    def launched(settings):
        made = spawn.process(settings)
        started.append(made.wait.__self__.pid)
        return made

    def memory():
        pages = []
        for pid in started:
            with open(f"/proc/{pid}/statm") as file:
                pages.append(int(file.read().split()[1]))
        return np.array(pages) * os.sysconf("SC_PAGE_SIZE")

    with running(settings, start=launched) as made:
        assert set(started) <= processes().keys()
        with Clients(made.url, ask, ask) as clients:
            for version in range(2, 22):
                clients.go_on()
                new = copy_bundle(source, tmp_path / "new", version=str(version))
                os.rename(new, root / "walks" / str(version))
                if version == 12:
                    before = memory()
                assert told(made, "load", "walks") == 200
            clients.go_on()
        for versions in clients.seen:
            assert set(versions) == set(range(1, 22))
        assert (memory() - before < 2**24).all()
        assert set(started) <= processes().keys(), "a worker was replaced"
        assert len(started) == 2


# --- the thread that loads -------------------------------------------------------


class TestThread:
    def test_callers_leave(self, tmp_path):
        """A caller that leaves while its load is under way changes nothing; what one
        asked for that leaves before is not done; the next load is."""

        async def leave():
            there = httpx.ASGITransport(made.app)
            async with httpx.AsyncClient(transport=there, base_url=made.url) as http:
                path = "/v2/repository/models/made/load"
                asked = [asyncio.create_task(http.post(path)) for _ in range(2)]
                while made.tries[-1] != "2":
                    await asyncio.sleep(0.01)
                for one in asked:
                    one.cancel()  # as an ASGI server does
                await asyncio.wait(asked)

        with shop(tmp_path, 1, admin=True, reload_seconds=0) as made:
            made.gate.clear()
            made.put(2)
            asyncio.run(asyncio.wait_for(leave(), SECONDS))
            made.gate.set()
            made.wait_served(2)
            made.put(3)
            assert told(made, "load") == 200
            made.assert_served(3)
            assert len(made.looks) == 3  # at the start, of the first, of the last

    @pytest.mark.parametrize("error", [MemoryError, SystemExit])
    def test_survives(self, tmp_path, error):
        """Whatever is raised in a look, or in a load that is asked for, the next one
        finds what is new."""
        faults = [error("injected")]

        def fail():
            if faults:
                raise faults.pop()

        with shop(tmp_path, 1, admin=True) as made:
            made.hooks.append(fail)
            wait(lambda: not faults, "a look fails")
            made.put(2)
            made.wait_served(2)
        faults.append(error("injected"))
        with shop(tmp_path, admin=True, reload_seconds=0) as made:
            made.hooks.append(fail)
            assert told(made, "load") >= 500
            made.put(3)
            assert told(made, "load") == 200
            made.assert_served(3)


# --- loads without an end --------------------------------------------------------

LOAD_SECONDS = 5


@contextmanager
def hanging(folder, root, *names, **settings):
    """The service as a process, in which these bundles never come to the end of their
    load."""
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
        """A bundle whose load has no end is broken after so many seconds, at the start
        as in a reload: the others are served without a failure, what comes afterwards
        is loaded, and no worker ever sees it. A stop in the midst of such a load does
        not wait for its end."""
        root = tmp_path / "bundles"
        for name in ("tags", "walks"):
            copy_bundle(bundles / name / "1", root / name / "1")
        settings = {"skip_broken": "true", "admin": "true", "reload_seconds": 0.2}
        names = ("tags", "walks@2", "walks@4")
        with hanging(tmp_path, root, *names, **settings) as made:
            made.wait()
            assert told_of(made) == {"tags": too_long(root / "tags" / "1")}

            def ask(http, at):
                answer = http.post("/classify", json=BODY)
                assert answer.status_code == 200, answer.text
                return int(answer.json()["version"])

            def add(version):
                new = copy_bundle(
                    bundles / "walks" / "1", tmp_path / "new", version=version
                )
                os.rename(new, root / "walks" / version)

            with Clients(made.url, ask, ask) as clients:
                clients.go_on()
                add("2")
                wait(lambda: "walks@2" in told_of(made), "it is told")
                assert told_of(made)["walks@2"] == too_long(root / "walks" / "2")
                add("3")
                wait(lambda: clients.seen[0][-1] == 3, "the next one is served")
                path = "/v2/repository/models/tags/load"
                answer = httpx.post(made.url + path, timeout=SECONDS, trust_env=False)
                assert answer.status_code == 503
                assert answer.json()["error"] == too_long(root / "tags" / "1")
                clients.go_on()
            assert deaths(made) == 0
            add("4")
            time.sleep(LOAD_SECONDS / 2)
            begun = time.monotonic()
            assert made.stop() == 0
            assert time.monotonic() < begun + LOAD_SECONDS

    def test_exit_code(self, tmp_path, bundles):
        """Without `skip_broken` the service ends with exit code 3."""
        with hanging(tmp_path, bundles, "walks") as made:
            assert made.process.wait(SECONDS) == 3
            assert too_long(bundles / "walks" / "1") in made.log.read_text()
