"""What the service answers, asked over a real socket."""

import concurrent.futures
import json
import re
import time

import anyio
import httpx
import numpy as np
import pytest
from fastapi.openapi.models import OpenAPI

from model.bundle import bundle
from service.client import AsyncClient, Client
from service.codecs import native
from tests.support.bundles import PNG, random_frames
from tests.support.servers import Running, send_get, value

TASKS = {"walks": "classify", "tags": "label", "both": "label"}
CLASSES = {
    "walks": ["run", "sit", "stand", "wälk"],
    "tags": ["noun", "verb", "other"],
    "both": ["down", "flat", "up"],
}
LENGTHS = [1, 1, 2, 3, 5, 8, 13, 17, 33, 64, 100]
ODD_IDS = [
    pytest.param(b"", id="empty"),
    pytest.param(b"a b", id="space"),
    pytest.param(b"a" * 65, id="too-long"),
    pytest.param(b"a" * 10_240, id="10-KiB"),
    pytest.param(b"a\tb", id="tab"),
    pytest.param("ä".encode(), id="not-ascii"),
    pytest.param(b"\xe2\x80\xa8", id="line-separator"),
    pytest.param(b'{"level":"error"}', id="json"),
    pytest.param(b"../../etc/passwd", id="path"),
    pytest.param(b"%0d%0aSet-Cookie:x=1", id="percent-line-break"),
]
TRAVERSALS = [
    "..",
    "../bundle.json",
    "..%2fbundle.json",
    "..%2F..%2Fsaved_model.pb",
    "%2e%2e%2fbundle.json",
    "%2e%2e/bundle.json",
    "....//bundle.json",
    "..%5cbundle.json",
    "%2fetc%2fpasswd",
    "/etc/passwd",
    "card.md%00.png",
    "CARD.MD",
    "bundle.json",
    "golden.npz",
    "report%2Fcard.md",
    "%20",
    "%F0%9F%A6%80",
    "x" * 10_240,
]


@pytest.fixture(scope="module")
def truth(bundles):
    """Bundle's name, frames -> the answer of its SavedModel, computed alone."""
    import tensorflow as tf

    loaded = {name: tf.saved_model.load(str(bundles / name / "1")) for name in TASKS}

    def alone(name, frames):
        outputs = loaded[name].signatures["serving_default"](
            frames=tf.constant(frames[None]),
            lengths=tf.constant([len(frames)], tf.int32),
        )
        return outputs["probabilities"].numpy()[0]

    return alone


@pytest.fixture
def http(running_server):
    return running_server.http


def ask(http, name, sequences, **members):
    body = {"model": name, "sequences": [s.tolist() for s in sequences]} | members
    response = http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def assert_right(name, prediction, expected):
    """A prediction says what the network says, in all of its members."""
    given = np.array(prediction["probabilities"], np.float32)
    np.testing.assert_allclose(given, expected, atol=1e-5, strict=True)
    np.testing.assert_allclose(given.sum(-1), 1, atol=1e-5)
    best = [CLASSES[name][k] for k in np.atleast_1d(given.argmax(-1))]
    if TASKS[name] == "classify":
        assert set(prediction) == {"label", "probability", "probabilities"}
        assert [prediction["label"]] == best
        assert prediction["probability"] == pytest.approx(given.max())
    else:
        assert set(prediction) == {"labels", "probabilities"}
        assert prediction["labels"] == best


def sequences_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, int(length)) for length in lengths]


@pytest.mark.parametrize("name", TASKS)
class TestPredictions:
    def test_alone(self, http, truth, name):
        """One sequence a request gets what the SavedModel says of it."""
        for frames in sequences_of(name):
            answer = ask(http, name, [frames])
            assert (answer["model"], answer["version"]) == (name, "1")
            assert answer["classes"] == CLASSES[name]
            assert len(answer["predictions"]) == 1
            assert_right(name, answer["predictions"][0], truth(name, frames))

    def test_together(self, http, truth, name):
        """Sequences of many lengths in one request change nothing for each other,
        and are answered in the order of the request."""
        rng = np.random.default_rng(7)
        sequences = sequences_of(name, rng.integers(1, 120, 48))
        answer = ask(http, name, sequences)
        assert len(answer["predictions"]) == len(sequences)
        for prediction, frames in zip(answer["predictions"], sequences, strict=True):
            assert_right(name, prediction, truth(name, frames))

    def test_zeros(self, http, truth, name):
        """Frames that are all zero are frames, wherever they stand."""
        frames = np.zeros((6, 3), np.float32)
        frames[2] = 1
        for part in (frames, frames[:2], frames[2:]):
            answer = ask(http, name, [part])
            assert_right(name, answer["predictions"][0], truth(name, part))

    def test_large_values(self, http, name):
        """The largest numbers of float32 give probabilities all the same."""
        frames = np.full((3, 3), 3e38, np.float32)
        answer = ask(http, name, [frames, -frames])
        for prediction in answer["predictions"]:
            total = np.sum(prediction["probabilities"], -1)
            np.testing.assert_allclose(total, 1, atol=1e-5)

    def test_top_k(self, http, name):
        """`top_k` gives the k likeliest classes, likeliest first, in place of the
        probabilities; more than there are gives all."""
        frames = sequences_of(name, [4])[0]
        plain = ask(http, name, [frames])["predictions"][0]
        count = len(CLASSES[name])
        for top_k in (1, 2, count, 100, 10**15):
            prediction = ask(http, name, [frames], top_k=top_k)["predictions"][0]
            assert "probabilities" not in prediction
            tops, rows = prediction["top"], plain["probabilities"]
            if TASKS[name] == "classify":
                tops, rows = [tops], [rows]
            assert len(tops) == len(rows)
            for top, row in zip(tops, rows, strict=True):
                pairs = zip(CLASSES[name], row, strict=True)
                pairs = sorted(pairs, key=lambda pair: -pair[1])[:top_k]
                assert [choice["label"] for choice in top] == [p[0] for p in pairs]
                given = [choice["probability"] for choice in top]
                assert given == pytest.approx([p[1] for p in pairs])
                assert len(top) == min(top_k, count)

    def test_times(self, http, name):
        """Each answer says where its time went, part by part; all of it lies within
        the time that the caller has waited."""
        for frames in sequences_of(name, [1, 700]):
            body = {"model": name, "sequences": [frames.tolist()]}
            begun = time.perf_counter()
            response = http.post(f"/{TASKS[name]}", json=body)
            waited = 1000 * (time.perf_counter() - begun)
            parts = [
                part.partition(";dur=")
                for part in response.headers["server-timing"].split(", ")
            ]
            names = [part[0] for part in parts]
            assert names == ["parse", "queue", "infer", "serialize"]
            spent = [float(part[2]) for part in parts]
            assert min(spent) >= 0
            assert 0 < sum(spent) < waited

    def test_null_is_absent(self, http, name):
        """`null` for an optional member is as good as nothing."""
        frames = sequences_of(name, [3])
        answer = ask(http, name, frames, top_k=None)
        assert answer == ask(http, name, frames)

    def test_client(self, server, truth, name):
        """The Python client gives the same as arrays."""
        sequences = sequences_of(name)
        with Client(server) as client:
            call = getattr(client, TASKS[name])
            answer = call(sequences, model=name)
        assert (answer.model, answer.version) == (name, "1")
        assert answer.classes == CLASSES[name]
        for prediction, frames in zip(answer.predictions, sequences, strict=True):
            expected = truth(name, frames)
            assert prediction.probabilities.dtype == np.float32
            np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)

    @pytest.mark.anyio
    async def test_async_client(self, server, truth, name):
        """So does the one for asyncio, many calls at a time."""
        sequences = sequences_of(name)
        answers = {}

        async with AsyncClient(server) as client, anyio.create_task_group() as group:

            async def one(place):
                call = getattr(client, TASKS[name])
                answers[place] = await call([sequences[place]], model=name)

            for place in range(len(sequences)):
                group.start_soon(one, place)
        for place, frames in enumerate(sequences):
            given = answers[place].predictions[0].probabilities
            np.testing.assert_allclose(given, truth(name, frames), atol=1e-5)


class TestManyClients:
    def test_no_cross_talk(self, server, truth):
        """64 clients at once, each with inputs of its own, each get their own
        answers."""

        def talk(number):
            rng = np.random.default_rng(number)
            name = ("walks", "tags", "both")[number % 3]
            pairs = []
            with httpx.Client(base_url=server, timeout=30) as http:
                for _ in range(3):
                    count = rng.integers(1, 4)
                    sequences = [
                        random_frames(rng, int(n)) for n in rng.integers(1, 60, count)
                    ]
                    answer = ask(http, name, sequences)["predictions"]
                    pairs += zip(sequences, answer, strict=True)
            return name, pairs

        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            results = list(pool.map(talk, range(64), timeout=60))
        for name, pairs in results:
            for frames, prediction in pairs:
                assert_right(name, prediction, truth(name, frames))

    def test_batched(self, running_server: Running):
        """Those clients shared engine calls: fewer calls than sequences."""
        text = running_server.metrics()
        for name in TASKS:
            calls = value(text, "unrolled_batch_rows_count", model=name)
            rows = value(text, "unrolled_batch_rows_sum", model=name)
            assert 0 < calls < rows

    def test_nothing_waits(self, running_server: Running):
        """When all are answered no step is counted as waiting."""
        text = running_server.metrics()
        for name in TASKS:
            assert value(text, "unrolled_waiting_steps", model=name) == 0


class TestModels:
    def test_default_by_setting(self, http):
        """A request that names no model goes to the setting's, or to the first."""
        body = {"sequences": [[[1, 2, 3]]]}
        assert http.post("/classify", json=body).json()["model"] == "walks"
        assert http.post("/label", json=body).json()["model"] == "tags"

    def test_list(self, http, bundles):
        """/models tells everything that a caller must know of each model."""
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

    @pytest.mark.parametrize("name", TASKS)
    def test_one(self, http, name):
        """/models/NAME adds features, training and the report, whose every file can
        be fetched."""
        model = http.get(f"/models/{name}").json()
        listed = http.get("/models").json()["models"]
        (summary,) = (one for one in listed if one["name"] == name)
        assert model | summary == model
        assert len(model["features"]) == 3
        assert model["training"]["source"] == "made"
        card = http.get(model["card"])
        assert (card.status_code, card.text) == (200, f"# {name}\n")
        assert model["plots"] == [f"/models/{name}/report/history.png"]
        plot = http.get(model["plots"][0])
        assert (plot.headers["content-type"], plot.content) == ("image/png", PNG)
        figures = http.get(f"/models/{name}/report/metrics.json")
        assert figures.json() == {}

    @pytest.mark.parametrize("file", TRAVERSALS, ids=lambda file: file[:32])
    def test_no_way_out_of_the_report(self, server, file):
        """Only files of the report are served, whatever the name looks like."""
        status, _, body = send_get(server, b"/models/walks/report/" + file.encode())
        assert status == 404
        assert json.loads(body)["status"] == 404
        assert len(body) < 1024

    @pytest.mark.parametrize(
        "name", ["..", "nobody", "Walks", "walks%00", "..%2f..", "x" * 10_240]
    )
    def test_unknown(self, server, name):
        """A model that isn't there is a 404 which doesn't repeat the name."""
        status, headers, body = send_get(server, b"/models/" + name.encode())
        assert status == 404
        assert headers["content-type"] == "application/problem+json"
        assert len(body) < 1024


class TestProbes:
    @pytest.mark.parametrize("path", ["/livez", "/healthz"])
    def test_alive(self, http, path):
        """A working process says so, and so does the alias."""
        response = http.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "alive"})

    def test_ready(self, http):
        """Ready names the models."""
        response = http.get("/readyz")
        body = {"status": "ready", "models": ["both", "tags", "walks"]}
        assert (response.status_code, response.json()) == (200, body)

    def test_metrics(self, http, bundles):
        """Metrics are Prometheus' text, know the models, and count requests by
        route, not by path."""
        before = http.get("/metrics").text
        http.get("/models/walks")
        for number in range(20):
            http.get(f"/nowhere/{number}")
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

    def test_odd_methods_make_no_series(self, http):
        """A method that the service doesn't have is counted as other."""
        for method in ("PROPFIND", "MKCOL", "UNLOCK"):
            assert http.request(method, "/livez").status_code == 405
        text = http.get("/metrics").text
        assert "PROPFIND" not in text
        assert 'method="other"' in text


class TestRequestId:
    @pytest.mark.parametrize("path", ["/livez", "/models/nobody", "/nowhere"])
    @pytest.mark.parametrize("given", ["a", "0af7651916cd43dd-8448_EB", "x" * 64])
    def test_kept(self, http, path, given):
        """A short and plain id of the caller's comes back, in errors too."""
        response = http.get(path, headers={"X-Request-ID": given})
        assert response.headers["x-request-id"] == given
        if response.is_error:
            assert response.json()["request_id"] == given

    @pytest.mark.direct
    @pytest.mark.parametrize("given", ODD_IDS)
    def test_replaced(self, http, given):
        """Any other is replaced, and doesn't come back anywhere."""
        response = http.get("/nowhere", headers={b"X-Request-ID": given})
        made = response.headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{16}", made)
        assert response.json()["request_id"] == made

    def test_made(self, http):
        """A request without one gets one of its own."""
        made = {http.get("/livez").headers["x-request-id"] for _ in range(10)}
        assert len(made) == 10


class TestOpenApi:
    @pytest.fixture
    def document(self, http):
        return http.get("/openapi.json").json()

    def test_valid(self, document):
        """The document is one of OpenAPI 3.1, every operation has an id of its own
        and declares each parameter of its path."""
        assert document["openapi"].startswith("3.1.")
        OpenAPI.model_validate(document)
        ids = []
        for path, operations in document["paths"].items():
            for operation in operations.values():
                ids.append(operation["operationId"])
                parameters = operation.get("parameters", [])
                named = {p["name"] for p in parameters if p["in"] == "path"}
                assert named == set(re.findall(r"{(\w+)}", path))
        assert len(ids) == len(set(ids))
        assert {"classify", "label"} <= set(ids)

    def test_references(self, document):
        """Every reference leads somewhere within the document."""

        def references(node):
            if isinstance(node, dict):
                if isinstance(node.get("$ref"), str):
                    yield node["$ref"]
                node = list(node.values())
            if isinstance(node, list):
                for child in node:
                    yield from references(child)

        lost = set()
        for reference in references(document):
            root, *parts = reference.split("/")
            assert root == "#"
            node = document
            for part in parts:
                node = node.get(part) if isinstance(node, dict) else None
            if node is None:
                lost.add(reference)
        assert lost == set()

    @pytest.mark.parametrize("path", ["/classify", "/label"])
    def test_refusals_are_declared(self, document, path):
        """Each refusal that a prediction can meet stands in the document, as problem
        details."""
        responses = document["paths"][path]["post"]["responses"]
        expected = {"200", "400", "404", "409", "413", "415", "422", "503"}
        assert expected <= set(responses)
        for status in expected - {"200"}:
            assert set(responses[status]["content"]) == {"application/problem+json"}

    @pytest.mark.parametrize("path", ["/classify", "/label"])
    def test_members_are_declared(self, http, document, path):
        """Every member that a request can have and a prediction has stands in the
        document, with what it means where that is not plain."""
        operation = document["paths"][path]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        assert set(content["schema"]["properties"]) == set(
            native.PredictBody.__struct_fields__
        )
        examples = content["examples"].values()
        told = set()
        for example in examples:
            for top_k in (None, 1):
                body = example["value"] | {"top_k": top_k}
                (prediction,) = http.post(path, json=body).json()["predictions"]
                told |= set(prediction)
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        schemas = document["components"]["schemas"]
        of_all = schemas[answer["$ref"].rpartition("/")[2]]["properties"]
        of_one = of_all["predictions"]["items"]["$ref"].rpartition("/")[2]
        declared = schemas[of_one]["properties"]
        assert set(declared) == told
        for name in ("steps", "state"):
            assert declared[name]["description"]

    def test_examples_run(self, http, document):
        """Each example, posted as it stands, is answered, and there is one for
        every model, and one for every state that can be carried."""
        names = []
        for path in ("/classify", "/label"):
            content = document["paths"][path]["post"]["requestBody"]["content"]
            for name, example in content["application/json"]["examples"].items():
                response = http.post(path, json=example["value"])
                assert response.status_code == 200, response.text
                model, _, resumable = name.partition(", ")
                assert response.json()["model"] == model
                (prediction,) = response.json()["predictions"]
                assert ("state" in prediction) == bool(resumable)
                names.append(name)
        resumable = ["walks, resumable", "tags, resumable"]
        assert sorted(names) == sorted([*TASKS, *resumable])

    def test_stream_examples_run(self, http, document):
        """The lines of each streamable model, posted as they stand, are answered one
        by one until the end that they ask for."""
        operation = document["paths"]["/stream"]["post"]
        content = operation["requestBody"]["content"]["application/x-ndjson"]
        assert sorted(content["examples"]) == ["tags", "walks"]
        assert [given["name"] for given in operation["parameters"]] == [
            "model",
            "top_k",
        ]
        for name, example in content["examples"].items():
            response = http.post(f"/stream?model={name}", content=example["value"])
            assert response.status_code == 200, response.text
            told = [json.loads(line) for line in response.text.splitlines()]
            *answers, last = told
            assert len(answers) == example["value"].count("frames") > 0
            assert all("error" not in answer for answer in answers)
            assert (last["end"], last["steps"]) == ("done", len(answers))

    @pytest.mark.parametrize("path", ["/docs", "/redoc"])
    def test_pages_need_no_network(self, http, path):
        """The pages of the documentation load nothing from another host, and all
        that they load is there."""
        page = http.get(path)
        assert page.status_code == 200
        loaded = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
        assert loaded
        for link in loaded:
            assert not re.match(r"(https?:)?//", link), link
            assert http.get(link).status_code == 200, link


class TestPaths:
    @pytest.mark.parametrize(
        "path", ["/classif", "/classify/x", "/CLASSIFY", "/v", "/v3/models", "/%00"]
    )
    def test_not_found(self, http, path):
        """A path that isn't there is refused with problem details."""
        response = http.post(path, json={})
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["type"] == "urn:unrolled:error:not-found"
        assert problem["status"] == 404
        assert problem["request_id"] == response.headers["x-request-id"]

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/classify", "POST"),
            ("PUT", "/label", "POST"),
            ("DELETE", "/models", "GET"),
            ("POST", "/livez", "GET"),
            ("OPTIONS", "/readyz", "GET"),
            ("TRACE", "/metrics", "GET"),
        ],
    )
    def test_method(self, http, method, path, allowed):
        """Another method is refused with problem details and the one that works."""
        response = http.request(method, path)
        assert response.status_code == 405
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["allow"] == allowed
        problem = response.json()
        assert problem["type"] == "urn:unrolled:error:method-not-allowed"
        assert allowed in problem["detail"]

    def test_form_content_type(self, http):
        """What `curl -d` sends is taken for the JSON that it is."""
        kind = {"content-type": "application/x-www-form-urlencoded"}
        body = b'{"sequences": [[[1, 2, 3]]]}'
        assert http.post("/classify", content=body, headers=kind).status_code == 200

    def test_chunked(self, http):
        """A body of unknown length is read to its end."""
        parts = (b'{"sequences"', b": [[[1, 2,", b" 3]]]}")
        assert http.post("/classify", content=iter(parts)).status_code == 200
