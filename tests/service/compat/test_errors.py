"""Errors of the other servers' protocols."""

import concurrent.futures
import json
import threading

import pytest

from service.settings import Settings
from tests.service.compat.protocols import (
    CLASSIFY,
    FRAME,
    HEADER,
    INFER,
    PREDICT,
    SECRET,
    assert_answers,
    frames_of,
    infer,
    instances,
    refused,
)
from tests.support.bundles import OnnxEngine
from tests.support.servers import SECONDS, GatedEngine, running, wait

LIMITS = {"max_steps": 10, "queue_steps": 10}


@pytest.fixture(scope="module")
def gated(bundles):
    """A service with a gated engine, a short queue and an open repository."""
    own = Settings(port=0, bundles=bundles, workers=1, admin=True, **LIMITS)
    with running(own, load_engine=GatedEngine) as service:
        yield service


@pytest.fixture
def engine():
    """The engine's class, which is reset afterwards."""
    GatedEngine.reset()
    yield GatedEngine
    GatedEngine.reset()


@pytest.fixture(scope="module")
def loading(bundles):
    """A service that does not finish loading."""
    gate = threading.Event()

    def load(bundle, settings):
        assert gate.wait(SECONDS)
        return OnnxEngine(bundle, settings)

    own = Settings(port=0, bundles=bundles, workers=1)
    with running(own, load_engine=load, ready=False) as service:
        yield service
        gate.set()
        wait(lambda: service.registry.ready, "the models load")


def case(status, method, path, body=b"", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return status, method, path, content, headers


OUTPUT = {"name": SECRET, "parameters": {SECRET: SECRET}}
CASES = [
    # 400
    case(400, "POST", PREDICT, b"{"),
    case(400, "POST", PREDICT, SECRET.encode()),
    case(400, "POST", PREDICT, b'{"s3cr3t\xff": 1}'),
    case(400, "POST", PREDICT, instances([[1, 2, SECRET]])),
    case(400, "POST", PREDICT, instances(SECRET)),
    case(400, "POST", PREDICT, instances({SECRET: 1})),
    case(400, "POST", PREDICT, instances({"frames": [FRAME], SECRET: 1})),
    case(400, "POST", PREDICT, instances({"b64": SECRET})),
    case(400, "POST", PREDICT, {"inputs": {SECRET: [[FRAME]]}}),
    case(400, "POST", PREDICT, instances(signature_name=SECRET)),
    case(400, "POST", PREDICT, instances([[1]] * 3000)),
    case(400, "POST", CLASSIFY, {"examples": [{SECRET: [1]}]}),
    case(400, "POST", CLASSIFY, {"examples": [{"frames": [SECRET]}]}),
    case(400, "POST", "/v1/models/walks:regress", b"{}"),
    case(400, "POST", f"/v1/models/walks:{SECRET}", b"{}"),
    case(400, "GET", f"/v1/{SECRET}"),
    case(400, "GET", f"/v1/models/walks/versions/{SECRET}"),
    case(400, "POST", INFER, b"{"),
    case(400, "POST", INFER, frames_of(name=SECRET)),
    case(400, "POST", INFER, frames_of(datatype=SECRET)),
    case(400, "POST", INFER, frames_of(data=[SECRET])),
    case(400, "POST", INFER, frames_of(data=SECRET)),
    case(400, "POST", INFER, frames_of(shape=[SECRET])),
    case(400, "POST", INFER, frames_of(parameters={"binary_data_size": SECRET})),
    case(400, "POST", INFER, infer(outputs=[OUTPUT])),
    case(400, "POST", INFER, infer(id=[SECRET])),
    case(400, "POST", INFER, infer(parameters={"sequence_id": SECRET})),
    case(400, "POST", INFER, infer(parameters={"timeout": SECRET})),
    case(400, "POST", INFER, infer(), **{HEADER: SECRET}),
    case(400, "POST", INFER, infer(), **{HEADER: SECRET * 1000}),
    # 403
    case(403, "POST", "/v2/repository/index"),
    case(403, "POST", f"/v2/repository/models/{SECRET}/load"),
    case(403, "POST", "/v2/repository/models/walks/unload", {SECRET: 1}),
    # 404
    *(
        case(404, "POST" if ":" in end or "infer" in end else "GET", f"{at}{end}")
        for at, ends in (
            ("/v1/models/", ("", "/metadata", ":predict", ":classify", ":regress")),
            ("/v2/models/", ("", "/ready", "/config", "/stats", "/infer")),
        )
        for end in (f"{SECRET}{end}" for end in ends)
    ),
    case(404, "GET", f"/v1/models/walks/labels/{SECRET}"),
    case(404, "GET", f"/v1/models/walks@{SECRET}"),
    case(404, "POST", f"/v2/models/walks@{SECRET}/infer", infer()),
    case(404, "POST", "/v2/models/walks/versions/77/infer", infer()),
    case(404, "POST", f"/v2/models/{SECRET}%0d%0a{SECRET}/infer", infer()),
    case(404, "GET", f"/v2/{SECRET}"),
    case(404, "GET", "/V2/models"),
    case(404, "GET", "/v2/systemsharedmemory/status"),
    case(404, "POST", "/v2/models/walks/generate", {"text_input": SECRET}),
    # 405
    case(405, "GET", PREDICT),
    case(405, "PUT", PREDICT, SECRET.encode()),
    case(405, "POST", "/v1/models/walks", instances()),
    case(405, "GET", INFER),
    case(405, "PROPFIND", INFER),
    case(405, "POST", "/v2/models/walks", infer()),
    # 413
    case(413, "POST", PREDICT, b" " * (8 * 2**20 + 1)),
    case(413, "POST", PREDICT, instances([FRAME] * 10_001)),
    case(413, "POST", INFER, b" " * (8 * 2**20 + 1)),
    case(413, "POST", INFER, frames_of(shape=[1, 10_001, 3])),
    # 415
    *(
        case(415, "POST", path, b"{}", Content_Encoding=coding)
        for path in (PREDICT, CLASSIFY, INFER)
        for coding in ("br", "zstd", "gzip, gzip", "identity, gzip", "x", SECRET)
    ),
]


class TestTable:
    def test_refused(self, http):
        """Every error is a text under `error` and nothing else, repeats nothing of the
        client's, and leaves the connection usable."""
        for status, method, path, body, headers in CASES:
            response = http.request(method, path, content=body, headers=headers)
            refused(response, status)
            if status == 405:
                assert response.headers["allow"] in ("GET", "POST")
            if status == 415:
                assert response.headers["accept-encoding"] == "gzip, deflate"
            assert_answers(http)

    def test_web_page(self, gated):
        """The repository is closed to web pages, even if it is open."""
        for path in ("index", "models/walks/load"):
            response = gated.http.post(
                f"/v2/repository/{path}", headers={"Origin": f"http://{SECRET}"}
            )
            refused(response, 403)

    def test_internal_error(self, gated, engine):
        """An error of the engine is a bare 500."""
        for path, body in ((PREDICT, instances()), (INFER, infer())):
            engine.error = RuntimeError(SECRET)
            refused(gated.http.post(path, json=body), 500)
            engine.error = None
            assert_answers(gated.http)

    def test_overloaded(self, gated, engine):
        """Under overload the response says when to retry."""
        frames = [FRAME] * 8
        for path in (PREDICT, CLASSIFY, INFER):
            body = {"instances": [frames], "examples": [{"frames": frames}]}
            body |= infer(frames) if path == INFER else {}
            engine.gate.clear()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                first = pool.submit(gated.http.post, path, json=body)
                try:
                    assert engine.entered.acquire(timeout=SECONDS)
                    response = gated.http.post(path, json=body)
                    assert "wait for walks" in refused(response, 503)
                    assert int(response.headers["retry-after"]) >= 1
                finally:
                    engine.gate.set()
                assert first.result(SECONDS).status_code == 200
            engine.reset()

    def test_deadline(self, gated, engine):
        """A request with a timeout is 504 if there is no answer in time."""
        engine.gate.clear()
        body = infer(parameters={"timeout": 300_000})
        refused(gated.http.post(INFER, json=body), 504)
        engine.gate.set()
        assert_answers(gated.http)

    def test_loading(self, loading):
        """While the models load, everything that needs one is 503."""
        for method, path, body in (
            ("GET", "/v1/models/walks", None),
            ("GET", f"/v1/models/{SECRET}/metadata", None),
            ("POST", PREDICT, instances()),
            ("POST", CLASSIFY, {"examples": [{"frames": FRAME}]}),
            ("GET", "/v2/health/ready", None),
            ("GET", "/v2/models/walks", None),
            ("GET", f"/v2/models/{SECRET}/ready", None),
            ("POST", INFER, infer()),
        ):
            response = loading.http.request(method, path, json=body)
            assert "loading" in refused(response, 503)
            assert response.headers["retry-after"] == "1"
        for path in ("/v1/models", "/v2/models", "/v2/health/live"):
            assert loading.http.get(path).status_code == 200


def test_own_paths(http):
    """The service's own paths answer with problem details."""
    for method, path, status in (
        ("POST", "/classify", 400),
        ("GET", "/classify", 405),
        ("GET", "/models/nobody", 404),
        ("GET", "/v", 404),
        ("GET", "/v3/models", 404),
        ("GET", "/v1x/models", 404),
        ("GET", "/v2.0/models", 404),
        ("GET", "/models/v1", 404),
    ):
        response = http.request(method, path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status
