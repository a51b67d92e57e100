"""Errors of the other servers' protocols, and compressed bodies and responses."""

import concurrent.futures
import gzip
import json
import threading
import zlib

import numpy as np
import pytest

from service.settings import Settings
from tests.support.bundles import OnnxEngine, random_frames
from tests.support.servers import SECONDS, running, send, wait

SECRET = "s3cr3t"
FRAME = [1, 2, 3]
HEADER = "Inference-Header-Content-Length"
PREDICT, INFER = "/v1/models/walks:predict", "/v2/models/walks/infer"
CLASSIFY = "/v1/models/walks:classify"
ENCODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
LIMITS = {"max_steps": 10, "queue_steps": 10}


class GatedEngine(OnnxEngine):
    """An engine that waits for an event, and may fail, once it serves."""

    gate = threading.Event()
    entered = threading.Semaphore(0)
    error: Exception | None = None

    def step(self, frames, lengths, state):
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if self.error is not None:
            raise self.error
        return super().step(frames, lengths, state)


@pytest.fixture(scope="module")
def gated(bundles):
    """A service with a gated engine, a short queue and an open repository."""
    GatedEngine.gate.set()
    own = Settings(port=0, bundles=bundles, workers=1, admin=True, **LIMITS)
    with running(own, load_engine=GatedEngine) as service:
        yield service


@pytest.fixture
def engine():
    """The engine's class, which is reset afterwards."""
    while GatedEngine.entered.acquire(blocking=False):
        pass
    yield GatedEngine
    GatedEngine.error = None
    GatedEngine.gate.set()


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


@pytest.fixture
def http(running_server):
    return running_server.http


def tensor(frames, **changes):
    shape = [1, len(frames), 3]
    data = [number for frame in frames for number in frame]
    fields = {"name": "frames", "datatype": "FP32", "shape": shape, "data": data}
    return fields | changes


def rows(*sequences, **fields):
    return {"instances": list(sequences) or [[FRAME]]} | fields


def infer(frames=(FRAME,), **fields):
    return {"inputs": [tensor(list(frames))]} | fields


def assert_refused(response, status):
    """Check an error response, which repeats nothing of the client's; returns its text."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert "content-encoding" not in response.headers
    body = response.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert 0 < len(body["error"]) < 4096
    assert SECRET not in str([response.text, response.headers])
    for leak in ("Traceback", "site-packages", "msgspec", "numpy", "Error("):
        assert leak not in response.text
    return body["error"]


def assert_answers(http):
    """Check that both protocols answer, on the same connection."""
    assert http.post(PREDICT, json=rows()).status_code == 200
    assert http.post(INFER, json=infer()).status_code == 200


def case(status, method, path, body=b"", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return status, method, path, content, headers


def unnamed(**changes):
    return {"inputs": [tensor([FRAME], **changes)]}


OUTPUT = {"name": SECRET, "parameters": {SECRET: SECRET}}
CASES = [
    # 400
    case(400, "POST", PREDICT, b"{"),
    case(400, "POST", PREDICT, SECRET.encode()),
    case(400, "POST", PREDICT, b'{"s3cr3t\xff": 1}'),
    case(400, "POST", PREDICT, rows([[1, 2, SECRET]])),
    case(400, "POST", PREDICT, rows(SECRET)),
    case(400, "POST", PREDICT, rows({SECRET: 1})),
    case(400, "POST", PREDICT, rows({"frames": [FRAME], SECRET: 1})),
    case(400, "POST", PREDICT, rows({"b64": SECRET})),
    case(400, "POST", PREDICT, {"inputs": {SECRET: [[FRAME]]}}),
    case(400, "POST", PREDICT, rows(signature_name=SECRET)),
    case(400, "POST", PREDICT, rows([[1]] * 3000)),
    case(400, "POST", CLASSIFY, {"examples": [{SECRET: [1]}]}),
    case(400, "POST", CLASSIFY, {"examples": [{"frames": [SECRET]}]}),
    case(400, "POST", "/v1/models/walks:regress", b"{}"),
    case(400, "POST", f"/v1/models/walks:{SECRET}", b"{}"),
    case(400, "GET", f"/v1/{SECRET}"),
    case(400, "GET", f"/v1/models/walks/versions/{SECRET}"),
    case(400, "POST", INFER, b"{"),
    case(400, "POST", INFER, unnamed(name=SECRET)),
    case(400, "POST", INFER, unnamed(datatype=SECRET)),
    case(400, "POST", INFER, unnamed(data=[SECRET])),
    case(400, "POST", INFER, unnamed(data=SECRET)),
    case(400, "POST", INFER, unnamed(shape=[SECRET])),
    case(400, "POST", INFER, unnamed(parameters={"binary_data_size": SECRET})),
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
    case(405, "POST", "/v1/models/walks", rows()),
    case(405, "GET", INFER),
    case(405, "PROPFIND", INFER),
    case(405, "POST", "/v2/models/walks", infer()),
    # 413
    case(413, "POST", PREDICT, b" " * (8 * 2**20 + 1)),
    case(413, "POST", PREDICT, rows([FRAME] * 10_001)),
    case(413, "POST", INFER, b" " * (8 * 2**20 + 1)),
    case(413, "POST", INFER, unnamed(shape=[1, 10_001, 3])),
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
            assert_refused(response, status)
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
            assert_refused(response, 403)

    def test_internal_error(self, gated, engine):
        """An error of the engine is a bare 500."""
        for path, body in ((PREDICT, rows()), (INFER, infer())):
            engine.error = RuntimeError(SECRET)
            assert_refused(gated.http.post(path, json=body), 500)
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
                    assert "wait for walks" in assert_refused(response, 503)
                    assert int(response.headers["retry-after"]) >= 1
                finally:
                    engine.gate.set()
                assert first.result(SECONDS).status_code == 200
            while engine.entered.acquire(blocking=False):
                pass

    def test_deadline(self, gated, engine):
        """A request with a timeout is 504 if there is no answer in time."""
        engine.gate.clear()
        body = infer(parameters={"timeout": 300_000})
        assert_refused(gated.http.post(INFER, json=body), 504)
        engine.gate.set()
        assert_answers(gated.http)

    def test_loading(self, loading):
        """While the models load, everything that needs one is 503."""
        for method, path, body in (
            ("GET", "/v1/models/walks", None),
            ("GET", f"/v1/models/{SECRET}/metadata", None),
            ("POST", PREDICT, rows()),
            ("POST", CLASSIFY, {"examples": [{"frames": FRAME}]}),
            ("GET", "/v2/health/ready", None),
            ("GET", "/v2/models/walks", None),
            ("GET", f"/v2/models/{SECRET}/ready", None),
            ("POST", INFER, infer()),
        ):
            response = loading.http.request(method, path, json=body)
            assert "loading" in assert_refused(response, 503)
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


REQUESTS = [
    (PREDICT, json.dumps(rows()).encode()),
    (CLASSIFY, b'{"examples": [{"frames": [1, 2, 3]}]}'),
    (INFER, json.dumps(infer(id="x")).encode()),
]


@pytest.mark.parametrize("encoding", ENCODINGS)
class TestBodies:
    def post(self, http, path, body, encoding):
        return http.post(path, content=body, headers={"Content-Encoding": encoding})

    def test_good(self, http, encoding):
        """A compressed body gets the response of the plain one."""
        for path, body in REQUESTS:
            expected = http.post(path, content=body).json()
            for padding in (0, 100_000):
                packed = ENCODINGS[encoding](body + b" " * padding)
                for name in (encoding, encoding.upper()):
                    response = self.post(http, path, packed, name)
                    assert response.status_code == 200, response.text
                    assert response.json() == expected

    def test_damaged(self, http, encoding):
        """A body that is not one whole stream of the encoding is 400."""
        other = next(ENCODINGS[name] for name in ENCODINGS if name != encoding)
        for path, body in REQUESTS:
            packed = ENCODINGS[encoding](body)
            broken = bytearray(packed)
            broken[-2] ^= 1  # of the checksum, or of the length
            for bad in (
                b"",
                body,
                packed[:1],
                packed[: len(packed) // 2],
                packed[:-1],
                packed + b"x",
                packed + other(body),
                other(body),
                bytes(broken),
                zlib.compress(body, wbits=-15),
            ):
                assert_refused(self.post(http, path, bad, encoding), 400)
        assert_answers(http)

    def test_several_streams(self, http, encoding):
        """gzip allows several members; deflate is one stream."""
        for path, body in REQUESTS:
            packed = ENCODINGS[encoding](body[:20]) + ENCODINGS[encoding](body[20:])
            response = self.post(http, path, packed, encoding)
            assert response.status_code == (200 if encoding == "gzip" else 400)

    def test_decompression_limit(self, http, encoding):
        """A body that decompresses beyond the limit is 413, in one member or many."""
        for (path, _), members in zip(REQUESTS, (1, 10, 1), strict=True):
            packed = ENCODINGS[encoding](bytes(100 * 2**20 // members))
            response = self.post(http, path, packed * members, encoding)
            assert "decompressed" in assert_refused(response, 413)
            assert_answers(http)


def test_two_headers(server):
    """Of two Content-Encoding headers the first counts."""
    body = gzip.compress(json.dumps(infer()).encode())
    for first, status in (("gzip", 200), ("identity", 400), ("br", 415)):
        head = (
            f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Encoding: {first}\r\n"
            f"Content-Encoding: identity\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        assert send(server, head.encode() + body)[0] == status


def requests_of(steps, *, binary=False):
    """A path and a body for each protocol, whose answers have so many steps."""
    frames = random_frames(np.random.default_rng(1), steps).tolist()
    parameters = {"binary_data_output": binary}
    yield "/v1/models/tags:predict", rows(frames)
    yield "/v2/models/tags/infer", infer(frames, parameters=parameters, id="x")


def uncompressed(http, path, body):
    response = http.post(path, json=body, headers={"Accept-Encoding": "identity"})
    assert response.status_code == 200
    assert "content-encoding" not in response.headers
    return response


ACCEPTED = [
    (None, None),
    ("", None),
    ("identity", None),
    ("*", None),
    ("br", None),
    ("br, zstd", None),
    ("x-gzip", None),
    ("gzip;q=0", None),
    ("gzip;q=0.000, br", None),
    ("gzip; q=0, *", None),
    ("gzip;q=0, deflate;q=0", None),
    ("gzip", "gzip"),
    ("GZIP", "gzip"),
    ("gzip, deflate, br", "gzip"),
    ("br;q=1, gzip;q=0.5", "gzip"),
    ("gzip;q=0.001", "gzip"),
    ("gzip ; q=1.000", "gzip"),
    ("deflate", "deflate"),
    ("deflate, br", "deflate"),
    ("gzip;q=0, deflate", "deflate"),
    ("identity;q=0, deflate", "deflate"),
]


class TestResponses:
    def test_encoding(self, http):
        """A response is compressed with an encoding that the client accepts, else not."""
        for binary in (False, True):
            for path, body in requests_of(300, binary=binary):
                plain = uncompressed(http, path, body)
                for accepted, encoding in ACCEPTED:
                    headers = {"Accept-Encoding": accepted or ""}
                    request = http.stream("POST", path, json=body, headers=headers)
                    with request as response:
                        raw = b"".join(response.iter_raw())
                    assert response.headers.get("content-encoding") == encoding
                    assert int(response.headers["content-length"]) == len(raw)
                    if encoding is not None:
                        assert response.headers["vary"].lower() == "accept-encoding"
                        assert len(raw) < len(plain.content)
                        wbits = 31 if encoding == "gzip" else 15
                        raw = zlib.decompress(raw, wbits=wbits)
                    assert raw == plain.content
                    # The length of the JSON is that of the plain response.
                    assert response.headers.get(HEADER) == plain.headers.get(HEADER)

    def test_size(self, http):
        """Only responses of a KiB or more are compressed."""
        for steps in (1, 10, 25, 30, 60, 9000):
            for path, body in requests_of(steps):
                plain = uncompressed(http, path, body)
                headers = {"Accept-Encoding": "gzip"}
                response = http.post(path, json=body, headers=headers)
                compressed = "content-encoding" in response.headers
                assert compressed == (len(plain.content) >= 1024)
                assert response.json() == plain.json()

    def test_only_predictions(self, http):
        """Metadata, errors and the service's own API are never compressed."""
        headers = {"Accept-Encoding": "gzip, deflate"}
        for path in (
            *(
                "/v1/models/walks",
                "/v1/models/walks/metadata",
                "/v2",
                "/v2/models/walks",
            ),
            *("/v2/models/walks/config", "/v2/models/walks/stats", "/v2/models/stats"),
        ):
            response = http.get(path, headers=headers)
            assert response.status_code == 200
            assert "content-encoding" not in response.headers
            assert len(response.content) >= 1024 or not path.endswith("metadata")
        infinite = [FRAME] * 1000 + [[1e39] * 3] * 10
        body = rows(*[[FRAME]] * 100, infinite)
        response = http.post(PREDICT, json=body, headers=headers)
        assert len(assert_refused(response, 400)) >= 1024
        body = {"model": "tags", "sequences": [[FRAME] * 100]}
        response = http.post("/label", json=body, headers=headers)
        assert response.status_code == 200
        assert "content-encoding" not in response.headers
