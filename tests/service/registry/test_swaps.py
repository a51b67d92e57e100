"""Requests, streams and metrics while versions change."""

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.settings import Settings
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import running, wait
from tests.support.streams import NdjsonStream, WebSocketStream, wait_closed
from tests.support.versions import (
    GOOD,
    INFER,
    PREDICT,
    blocked,
    versioned_service,
    weights_of,
)

TRANSPORTS = [WebSocketStream, NdjsonStream]
pytestmark = pytest.mark.slow


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
