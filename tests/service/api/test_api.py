"""Predictions, models, probes and request ids, over a real socket."""

import concurrent.futures
import json
import re
import time

import anyio
import httpx
import numpy as np
import pytest

from model.bundle import bundle
from service.client import AsyncClient, Client
from service.settings import Settings
from tests.support.bundles import PNG, OnnxEngine, random_frames
from tests.support.servers import CLASSES, TASKS, Running, running, send_get, value

ODD_IDS = [
    *(b"", b"a b", b"a" * 65, b"a" * 10_240, b"a\tb", "ä".encode(), b"\xe2\x80\xa8"),
    *(b'{"level":"error"}', b"../../etc/passwd", b"%0d%0aSet-Cookie:x=1"),
]
TRAVERSALS = [
    *("..", "../bundle.json", "..%2fbundle.json", "..%2F..%2Fsaved_model.pb"),
    *("%2e%2e%2fbundle.json", "%2e%2e/bundle.json", "....//bundle.json"),
    *("..%5cbundle.json", "%2fetc%2fpasswd", "/etc/passwd", "card.md%00.png"),
    *("CARD.MD", "bundle.json", "golden.npz", "report%2Fcard.md", "%20"),
    *("%F0%9F%A6%80", "x" * 10_240),
]


def ask(http, name, sequences, **members):
    body = {"model": name, "sequences": [s.tolist() for s in sequences]} | members
    response = http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def assert_right(name, prediction, expected):
    """All members of a prediction agree with the expected probabilities."""
    probabilities = np.array(prediction["probabilities"], np.float32)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5, strict=True)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    best = [CLASSES[name][k] for k in np.atleast_1d(probabilities.argmax(-1))]
    if TASKS[name] == "classify":
        assert set(prediction) == {"label", "probability", "probabilities"}
        assert [prediction["label"]] == best
        assert prediction["probability"] == pytest.approx(probabilities.max())
    else:
        assert set(prediction) == {"labels", "probabilities"}
        assert prediction["labels"] == best


def random_sequences(name, lengths=(1, 2, 3, 17, 100)):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, int(length)) for length in lengths]


@pytest.mark.parametrize("name", TASKS)
class TestPredictions:
    def test_answers(self, http, saved_model, name):
        """A request with one sequence gets the SavedModel's answer, and zeros count as
        frames wherever they stand."""
        zeros = np.zeros((6, 3), np.float32)
        zeros[2] = 1
        parts = [zeros, zeros[:2], zeros[2:]]
        for frames in [*random_sequences(name), *parts]:
            answer = ask(http, name, [frames])
            assert (answer["model"], answer["version"]) == (name, "1")
            assert answer["classes"] == CLASSES[name]
            assert len(answer["predictions"]) == 1
            assert_right(name, answer["predictions"][0], saved_model(name, frames))

    def test_batch(self, http, saved_model, name):
        """Sequences of many lengths in one request do not affect each other, and are
        answered in order."""
        rng = np.random.default_rng(7)
        sequences = random_sequences(name, rng.integers(1, 120, 48))
        answer = ask(http, name, sequences)
        for prediction, frames in zip(answer["predictions"], sequences, strict=True):
            assert_right(name, prediction, saved_model(name, frames))

    def test_large_values(self, http, name):
        """The largest numbers of float32 still give probabilities."""
        frames = np.full((3, 3), 3e38, np.float32)
        answer = ask(http, name, [frames, -frames])
        for prediction in answer["predictions"]:
            total = np.sum(prediction["probabilities"], -1)
            np.testing.assert_allclose(total, 1, atol=1e-5)

    def test_top_k(self, http, name):
        """`top_k` returns the k most probable classes, in descending order, in place of
        all probabilities. null is the same as no `top_k`."""
        (frames,) = random_sequences(name, [4])
        plain = ask(http, name, [frames])["predictions"][0]
        assert ask(http, name, [frames], top_k=None)["predictions"][0] == plain
        count = len(CLASSES[name])
        for top_k in (1, 2, count, 100, 10**15):
            prediction = ask(http, name, [frames], top_k=top_k)["predictions"][0]
            assert "probabilities" not in prediction
            tops, rows = prediction["top"], plain["probabilities"]
            if TASKS[name] == "classify":
                tops, rows = [tops], [rows]
            for top, row in zip(tops, rows, strict=True):
                pairs = zip(CLASSES[name], row, strict=True)
                pairs = sorted(pairs, key=lambda pair: -pair[1])[:top_k]
                assert [choice["label"] for choice in top] == [p[0] for p in pairs]
                probabilities = [choice["probability"] for choice in top]
                assert probabilities == pytest.approx([p[1] for p in pairs])
                assert len(top) == min(top_k, count)

    def test_server_timing(self, http, name):
        """`Server-Timing` has the time of each stage, and all of it lies within the time
        that the client waited."""
        for frames in random_sequences(name, [1, 700]):
            body = {"model": name, "sequences": [frames.tolist()]}
            started = time.perf_counter()
            response = http.post(f"/{TASKS[name]}", json=body)
            waited = 1000 * (time.perf_counter() - started)
            stages = [
                stage.partition(";dur=")
                for stage in response.headers["server-timing"].split(", ")
            ]
            names = [stage[0] for stage in stages]
            assert names == ["parse", "queue", "infer", "serialize"]
            spent = [float(stage[2]) for stage in stages]
            assert min(spent) >= 0
            assert 0 < sum(spent) < waited

    @pytest.mark.anyio
    async def test_clients(self, server, saved_model, name):
        """Both Python clients return the same, as arrays; the asyncio client also for
        many calls at a time."""
        sequences = random_sequences(name)
        with Client(server) as client:
            answer = getattr(client, TASKS[name])(sequences, model=name)
        assert (answer.model, answer.version) == (name, "1")
        assert answer.classes == CLASSES[name]
        answers = {}

        async with AsyncClient(server) as client, anyio.create_task_group() as group:

            async def call(index):
                method = getattr(client, TASKS[name])
                answers[index] = await method([sequences[index]], model=name)

            for index in range(len(sequences)):
                group.start_soon(call, index)
        for index, frames in enumerate(sequences):
            expected = saved_model(name, frames)
            single, batched = answers[index].predictions[0], answer.predictions[index]
            for prediction in (single, batched):
                assert prediction.probabilities.dtype == np.float32
                np.testing.assert_allclose(
                    prediction.probabilities, expected, atol=1e-5
                )


def test_many_clients(running_server: Running, saved_model):
    """64 clients at once each get their own answers. They share engine calls, and at the
    end no step is counted as waiting."""

    def run_client(number):
        rng = np.random.default_rng(number)
        name = ("walks", "tags", "both")[number % 3]
        pairs = []
        with httpx.Client(base_url=running_server.url, timeout=30) as http:
            for _ in range(3):
                lengths = rng.integers(1, 60, rng.integers(1, 4))
                sequences = [random_frames(rng, int(n)) for n in lengths]
                answer = ask(http, name, sequences)["predictions"]
                pairs += zip(sequences, answer, strict=True)
        return name, pairs

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        results = list(pool.map(run_client, range(64), timeout=60))
    for name, pairs in results:
        for frames, prediction in pairs:
            assert_right(name, prediction, saved_model(name, frames))
    text = running_server.metrics()
    for name in TASKS:
        calls = value(text, "unrolled_batch_rows_count", model=name)
        rows = value(text, "unrolled_batch_rows_sum", model=name)
        assert 0 < calls < rows
        assert value(text, "unrolled_waiting_steps", model=name) == 0


class TestModels:
    def test_default(self, http):
        """A request that names no model goes to the setting's, or to the first."""
        body = {"sequences": [[[1, 2, 3]]]}
        assert http.post("/classify", json=body).json()["model"] == "walks"
        assert http.post("/label", json=body).json()["model"] == "tags"

    def test_list(self, http, bundles):
        """`/models` describes every model."""
        body = http.get("/models").json()
        assert body["broken"] == {}
        models = {model["name"]: model for model in body["models"]}
        assert {name: model["task"] for name, model in models.items()} == TASKS
        defaults = {name for name, model in models.items() if model["default"]}
        assert defaults == {"walks", "tags"}
        for name, model in models.items():
            assert model["classes"] == CLASSES[name]
            assert model["digest"] == bundle.read(bundles / name / "1").digest
            assert model["feature_count"] == 3
            assert (model["engine"], model["precision"]) == ("onnx", "float32")
            assert model["engine_reason"].startswith("the fastest, golden answers")
            assert model["streamable"] == (name != "both")
            assert model["longest_trained"] == 16

    def test_limits(self, bundles):
        """`/models` has the limits of a request: one that reaches them all is answered,
        and one more sequence, step, number or byte is refused."""
        settings = Settings(
            port=0,
            workers=1,
            bundles=bundles,
            max_sequences=3,
            max_steps=4,
            max_cells=24,
            max_body_bytes=200,
        )
        with running(settings, load_engine=OnnxEngine) as service:
            limits = service.http.get("/models").json()["limits"]
            assert limits == {
                "sequences": 3,
                "steps": 4,
                "numbers": 24,
                "body_bytes": 200,
            }
            step = [1, 2, 3]
            for sequences, padding, status in (
                ([[step] * 3, [step] * 4, [step]], 200, 200),
                ([[step]] * 4, 0, 413),
                ([[step] * 5], 0, 413),
                ([[step] * 4, [step] * 4, [step]], 0, 413),
                ([[step]], 201, 413),
            ):
                body = json.dumps({"sequences": sequences}).ljust(padding)
                response = service.http.post("/classify", content=body)
                assert response.status_code == status, response.text

    def test_model(self, http):
        """`/models/NAME` adds features, training and the files of the report."""
        listed = {
            model["name"]: model for model in http.get("/models").json()["models"]
        }
        for name in TASKS:
            model = http.get(f"/models/{name}").json()
            assert model | listed[name] == model
            assert len(model["features"]) == 3
            assert model["training"]["source"] == "made"
            card = http.get(model["card"])
            assert (card.status_code, card.text) == (200, f"# {name}\n")
            assert model["plots"] == [f"/models/{name}/report/history.png"]
            plot = http.get(model["plots"][0])
            assert (plot.headers["content-type"], plot.content) == ("image/png", PNG)
            metrics = http.get(f"/models/{name}/report/metrics.json")
            assert metrics.json() == {}

    def test_not_found(self, server):
        """Only files of a report are served, whatever a name looks like, and the error
        does not repeat the name."""
        unknown = ("..", "nobody", "Walks", "walks%00", "..%2f..", "x" * 10_240)
        for name in [*unknown, *(f"walks/report/{file}" for file in TRAVERSALS)]:
            status, headers, body = send_get(server, b"/models/" + name.encode())
            assert status == 404, name
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["status"] == 404
            assert len(body) < 1024, name


class TestProbes:
    def test_health(self, http):
        """A working process is alive, under both names, and ready with its models."""
        for path in ("/livez", "/healthz"):
            response = http.get(path)
            assert (response.status_code, response.json()) == (200, {"status": "alive"})
        response = http.get("/readyz")
        body = {"status": "ready", "models": ["both", "tags", "walks"]}
        assert (response.status_code, response.json()) == (200, body)

    def test_metrics(self, http, bundles):
        """Metrics are in Prometheus' text format, describe the models, and count requests
        by route and by known methods."""
        before = http.get("/metrics").text
        http.get("/models/walks")
        for number in range(20):
            http.get(f"/nowhere/{number}")
        for method in ("PROPFIND", "MKCOL", "UNLOCK"):
            assert http.request(method, "/livez").status_code == 405
        response = http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        text = response.text
        assert value(text, "unrolled_ready") == 1
        digest = bundle.read(bundles / "walks" / "1").digest
        info = {"model": "walks", "engine": "onnx", "precision": "float32"}
        assert value(text, "unrolled_model_info", digest=digest, **info) == 1

        def count(exposition, route, status):
            name = "http_server_request_duration_seconds_count"
            return value(exposition, name, route=route, status=status)

        for route, status, times in (
            ("/models/{name}", "200", 1),
            ("unmatched", "404", 20),
        ):
            grown = count(text, route, status) - count(before, route, status)
            assert grown == times
        assert "nowhere" not in text
        assert "PROPFIND" not in text
        assert 'method="other"' in text


class TestRequestId:
    def test_kept(self, http):
        """A short and plain id of the client's is returned, in errors too."""
        for path in ("/livez", "/models/nobody", "/nowhere"):
            for request_id in ("a", "0af7651916cd43dd-8448_EB", "x" * 64):
                response = http.get(path, headers={"X-Request-ID": request_id})
                assert response.headers["x-request-id"] == request_id
                if response.is_error:
                    assert response.json()["request_id"] == request_id

    @pytest.mark.direct
    def test_replaced(self, http):
        """Any other id is replaced, and returned nowhere."""
        for request_id in ODD_IDS:
            response = http.get("/nowhere", headers={b"X-Request-ID": request_id})
            replacement = response.headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{16}", replacement), request_id
            assert response.json()["request_id"] == replacement

    def test_created(self, http):
        """A request without an id gets a new one."""
        ids = {http.get("/livez").headers["x-request-id"] for _ in range(10)}
        assert len(ids) == 10


def test_unknown_paths(http):
    """An unknown path gets 404, as problem details."""
    for path in ("/classif", "/classify/x", "/CLASSIFY", "/v", "/v3/models", "/%00"):
        response = http.post(path, json={})
        assert response.status_code == 404, path
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["type"] == "urn:unrolled:error:not-found"
        assert problem["status"] == 404
        assert problem["request_id"] == response.headers["x-request-id"]


def test_other_methods(http):
    """Another method gets 405, as problem details, and the method that works."""
    for method, path, allowed in (
        ("GET", "/classify", "POST"),
        ("PUT", "/label", "POST"),
        ("DELETE", "/models", "GET"),
        ("POST", "/livez", "GET"),
        ("OPTIONS", "/readyz", "GET"),
        ("TRACE", "/metrics", "GET"),
    ):
        response = http.request(method, path)
        assert response.status_code == 405, (method, path)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["allow"] == allowed
        problem = response.json()
        assert problem["type"] == "urn:unrolled:error:method-not-allowed"
        assert allowed in problem["detail"]


def test_bodies(http):
    """The media type of `curl -d` is taken for JSON, and a body needs no length."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    body = b'{"sequences": [[[1, 2, 3]]]}'
    assert http.post("/classify", content=body, headers=headers).status_code == 200
    parts = (b'{"sequences"', b": [[[1, 2,", b" 3]]]}")
    assert http.post("/classify", content=iter(parts)).status_code == 200
