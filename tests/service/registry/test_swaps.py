"""Requests, streams, metrics and replaced workers while versions change."""

import gc
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.pool import pool
from service.settings import Settings
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import SECONDS, running, wait
from tests.support.streams import NdjsonStream, WebSocketStream, wait_closed
from tests.support.versions import (
    GOOD,
    INFER,
    PREDICT,
    blocked,
    put,
    versioned_service,
    weights_of,
)

TRANSPORTS = [WebSocketStream, NdjsonStream]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_restart_delay(monkeypatch):
    """Workers are replaced without a pause."""
    monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)


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
            with ThreadPoolExecutor(1) as thread, blocked(*service.engines):
                request = thread.submit(service.http.post, path, json=body)
                wait(lambda: before.wait_estimate.steps == 1, "it is with a worker")
                service.put(2)
                wait(lambda: service.about()["version"] == "2", "the new one is served")
                service.wait_status("made@1", 404)
                service.assert_served(2)
            assert request.result().status_code == 200
            answer = request.result().json()
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


def test_statistics(tmp_path):
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


class TestWorkers:
    def test_replaced(self, tmp_path):
        """A worker's replacement loads only the versions that are served or used."""
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
        """A stream and a kept sequence of a former version go on when all workers were
        replaced: new ones load it while it is used. If they can't, the error is final, and
        the stream ends."""
        with (
            versioned_service(tmp_path, 1, workers=2) as service,
            kind(service.url, "model=made") as client,
        ):

            def infer(**flags):
                parameters = {"sequence_id": 5, **flags}
                body = INFER | {"parameters": parameters}
                return service.http.post("/v2/models/made/infer", json=body)

            client.ask([[7]])
            assert infer(sequence_start=True).json()["model_version"] == "1"
            service.put(2)
            service.wait_served(2)
            for _ in range(2):
                kill(service)
            assert client.ask([[7]])["probabilities"][:2] == [2 + 1, 7 + 1]
            assert infer().json()["outputs"][0]["data"][:2] == [2 + 1, 7 + 1]
            service.remove(1)
            for _ in range(2):
                kill(service)
            client.send({"frames": [[7]]})
            error = client.receive()["error"]
            assert (error["status"], "made@1" in error["detail"]) == (410, True)
            assert client.assert_ended("retired")["steps"] == 2
            assert infer().status_code == 410
            assert infer(sequence_start=True).json()["model_version"] == "2"
            service.assert_served(2)

    def test_gone_while_loading(self, tmp_path):
        """A version that is removed just when it has been loaded leaves nothing that new
        workers would load."""
        with versioned_service(tmp_path, 1) as service:
            folder = service.root / "made" / "2"
            workers = service.registry._pool
            load = workers.load

            def load_and_lose(*args, **kwargs):
                workers.load = load  # the next scan may load version 1 again
                loaded = load(*args, **kwargs)
                shutil.rmtree(folder)
                return loaded

            workers.load = load_and_lose
            service.put(2)
            wait(lambda: not folder.exists(), "it is loaded, and gone")
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
