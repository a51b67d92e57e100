"""What the dialects of other servers refuse, and how; bodies and answers that are
compressed."""

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

CANARY = "c4n4ry"
FRAME = [1, 2, 3]
HEADER = "Inference-Header-Content-Length"
PREDICT, INFER = "/v1/models/walks:predict", "/v2/models/walks/infer"
CLASSIFY = "/v1/models/walks:classify"
CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
LIMITS = {"max_steps": 10, "queue_steps": 10}


class Held(OnnxEngine):
    """An engine that can be held, or told to fail, once it serves."""

    held = threading.Event()
    entered = threading.Semaphore(0)
    fault: Exception | None = None

    def step(self, frames, lengths, state):
        self.entered.release()
        assert self.held.wait(SECONDS)
        if self.fault is not None:
            raise self.fault
        return super().step(frames, lengths, state)


@pytest.fixture(scope="module")
def held(bundles):
    """A service that can be held, with a short queue and an open repository."""
    Held.held.set()
    own = Settings(port=0, bundles=bundles, workers=1, admin=True, **LIMITS)
    with running(own, load_engine=Held) as made:
        yield made


@pytest.fixture
def gate():
    """The engine's own state, as it was before."""
    while Held.entered.acquire(blocking=False):
        pass
    yield Held
    Held.fault = None
    Held.held.set()


@pytest.fixture(scope="module")
def loading(bundles):
    """A service that doesn't come to an end of its loading."""
    going = threading.Event()

    def load(found, settings):
        assert going.wait(SECONDS)
        return OnnxEngine(found, settings)

    own = Settings(port=0, bundles=bundles, workers=1)
    with running(own, load_engine=load, ready=False) as made:
        yield made
        going.set()
        wait(lambda: made.registry.ready, "the models load")


@pytest.fixture
def http(running_server):
    return running_server.http


def tensor(frames, **changes):
    shape = [1, len(frames), 3]
    data = [number for frame in frames for number in frame]
    one = {"name": "frames", "datatype": "FP32", "shape": shape, "data": data}
    return one | changes


def rows(*sequences, **members):
    return {"instances": list(sequences) or [[FRAME]]} | members


def infer(frames=(FRAME,), **members):
    return {"inputs": [tensor(list(frames))]} | members


def assert_refused(response, status):
    """A refusal as those clients read it; its text."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert "content-encoding" not in response.headers
    told = response.json()
    assert list(told) == ["error"]
    assert isinstance(told["error"], str)
    assert 0 < len(told["error"]) < 4096
    assert CANARY not in str([response.text, response.headers])
    for leak in ("Traceback", "site-packages", "msgspec", "numpy", "Error("):
        assert leak not in response.text
    return told["error"]


def assert_answers(http):
    """Both dialects answer, on the connection that was refused something."""
    assert http.post(PREDICT, json=rows()).status_code == 200
    assert http.post(INFER, json=infer()).status_code == 200


def case(status, method, path, body=b"", id=None, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    at = f"{status}-{method}-{path[:40]}-{id}"
    return pytest.param(status, method, path, content, headers, id=at)


def unnamed(**changes):
    return {"inputs": [tensor([FRAME], **changes)]}


OUTPUT = {"name": CANARY, "parameters": {CANARY: CANARY}}
CASES = [
    # 400
    case(400, "POST", PREDICT, b"{"),
    case(400, "POST", PREDICT, CANARY.encode(), "word"),
    case(400, "POST", PREDICT, b'{"c4n4ry\xff": 1}', "utf-8"),
    case(400, "POST", PREDICT, rows([[1, 2, CANARY]]), "text"),
    case(400, "POST", PREDICT, rows(CANARY), "row"),
    case(400, "POST", PREDICT, rows({CANARY: 1}), "member"),
    case(400, "POST", PREDICT, rows({"frames": [FRAME], CANARY: 1}), "more"),
    case(400, "POST", PREDICT, rows({"b64": CANARY}), "b64"),
    case(400, "POST", PREDICT, {"inputs": {CANARY: [[FRAME]]}}, "input"),
    case(400, "POST", PREDICT, rows(signature_name=CANARY), "signature"),
    case(400, "POST", PREDICT, rows([[1]] * 3000), "long"),
    case(400, "POST", CLASSIFY, {"examples": [{CANARY: [1]}]}, "feature"),
    case(400, "POST", CLASSIFY, {"examples": [{"frames": [CANARY]}]}, "text"),
    case(400, "POST", "/v1/models/walks:regress", b"{}"),
    case(400, "POST", f"/v1/models/walks:{CANARY}", b"{}"),
    case(400, "GET", f"/v1/{CANARY}"),
    case(400, "GET", f"/v1/models/walks/versions/{CANARY}"),
    case(400, "POST", INFER, b"{"),
    case(400, "POST", INFER, unnamed(name=CANARY), "name"),
    case(400, "POST", INFER, unnamed(datatype=CANARY), "type"),
    case(400, "POST", INFER, unnamed(data=[CANARY]), "data"),
    case(400, "POST", INFER, unnamed(data=CANARY), "text"),
    case(400, "POST", INFER, unnamed(shape=[CANARY]), "shape"),
    case(400, "POST", INFER, unnamed(parameters={"binary_data_size": CANARY}), "size"),
    case(400, "POST", INFER, infer(outputs=[OUTPUT]), "output"),
    case(400, "POST", INFER, infer(id=[CANARY]), "id"),
    case(400, "POST", INFER, infer(parameters={"sequence_id": CANARY}), "sequence"),
    case(400, "POST", INFER, infer(parameters={"timeout": CANARY}), "timeout"),
    case(400, "POST", INFER, infer(), "header", **{HEADER: CANARY}),
    case(400, "POST", INFER, infer(), "long-header", **{HEADER: CANARY * 1000}),
    # 403
    case(403, "POST", "/v2/repository/index"),
    case(403, "POST", f"/v2/repository/models/{CANARY}/load"),
    case(403, "POST", "/v2/repository/models/walks/unload", {CANARY: 1}),
    # 404
    *(
        case(404, "POST" if ":" in end or "infer" in end else "GET", f"{at}{end}")
        for at, ends in (
            ("/v1/models/", ("", "/metadata", ":predict", ":classify", ":regress")),
            ("/v2/models/", ("", "/ready", "/config", "/stats", "/infer")),
        )
        for end in (f"{CANARY}{end}" for end in ends)
    ),
    case(404, "GET", f"/v1/models/walks/labels/{CANARY}"),
    case(404, "GET", f"/v1/models/walks@{CANARY}"),
    case(404, "POST", f"/v2/models/walks@{CANARY}/infer", infer()),
    case(404, "POST", "/v2/models/walks/versions/77/infer", infer()),
    case(404, "POST", f"/v2/models/{CANARY}%0d%0a{CANARY}/infer", infer()),
    case(404, "GET", f"/v2/{CANARY}"),
    case(404, "GET", "/V2/models"),
    case(404, "GET", "/v2/systemsharedmemory/status"),
    case(404, "POST", "/v2/models/walks/generate", {"text_input": CANARY}),
    # 405
    case(405, "GET", PREDICT),
    case(405, "PUT", PREDICT, CANARY.encode()),
    case(405, "POST", "/v1/models/walks", rows()),
    case(405, "GET", INFER),
    case(405, "PROPFIND", INFER),
    case(405, "POST", "/v2/models/walks", infer()),
    # 413
    case(413, "POST", PREDICT, b" " * (8 * 2**20 + 1), "bytes"),
    case(413, "POST", PREDICT, rows([FRAME] * 10_001), "steps"),
    case(413, "POST", INFER, b" " * (8 * 2**20 + 1), "bytes"),
    case(413, "POST", INFER, unnamed(shape=[1, 10_001, 3]), "steps"),
    # 415
    *(
        case(415, "POST", path, b"{}", coding[:12], Content_Encoding=coding)
        for path in (PREDICT, CLASSIFY, INFER)
        for coding in ("br", "zstd", "gzip, gzip", "identity, gzip", "x", CANARY)
    ),
]


class TestTable:
    @pytest.mark.parametrize(("status", "method", "path", "body", "headers"), CASES)
    def test_refused(self, http, status, method, path, body, headers):
        """Each refusal of each dialect is a text under `error` and nothing else,
        without a word of the caller's, and the connection goes on."""
        response = http.request(method, path, content=body, headers=headers)
        assert_refused(response, status)
        if status == 405:
            assert response.headers["allow"] in ("GET", "POST")
        if status == 415:
            assert response.headers["accept-encoding"] == "gzip, deflate"
        assert_answers(http)

    @pytest.mark.parametrize("path", ["index", "models/walks/load"])
    def test_web_page(self, held, path):
        """The repository is closed to web pages, also where it is open."""
        response = held.http.post(
            f"/v2/repository/{path}", headers={"Origin": f"http://{CANARY}"}
        )
        assert_refused(response, 403)

    @pytest.mark.parametrize(("path", "body"), [(PREDICT, rows()), (INFER, infer())])
    def test_failing(self, held, gate, path, body):
        """A failure of ours is a bare 500."""
        gate.fault = RuntimeError(CANARY)
        assert_refused(held.http.post(path, json=body), 500)
        gate.fault = None
        assert_answers(held.http)

    @pytest.mark.parametrize("path", [PREDICT, CLASSIFY, INFER])
    def test_overloaded(self, held, gate, path):
        """Where too much waits it is said when to come again."""
        frames = [FRAME] * 8
        body = {"instances": [frames], "examples": [{"frames": frames}]}
        body |= infer(frames) if path == INFER else {}
        gate.held.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(held.http.post, path, json=body)
            try:
                assert gate.entered.acquire(timeout=SECONDS)
                response = held.http.post(path, json=body)
                assert "wait for walks" in assert_refused(response, 503)
                assert int(response.headers["retry-after"]) >= 1
            finally:
                gate.held.set()
            assert first.result(SECONDS).status_code == 200

    def test_late(self, held, gate):
        """Who gives a time, and gets no answer in it, is told so."""
        gate.held.clear()
        body = infer(parameters={"timeout": 1000})
        assert_refused(held.http.post(INFER, json=body), 504)
        gate.held.set()
        assert_answers(held.http)

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", "/v1/models/walks", None),
            ("GET", f"/v1/models/{CANARY}/metadata", None),
            ("POST", PREDICT, rows()),
            ("POST", CLASSIFY, {"examples": [{"frames": FRAME}]}),
            ("GET", "/v2/health/ready", None),
            ("GET", "/v2/models/walks", None),
            ("GET", f"/v2/models/{CANARY}/ready", None),
            ("POST", INFER, infer()),
        ],
    )
    def test_loading(self, loading, method, path, body):
        """While the models load it is not known which there are: 503."""
        response = loading.http.request(method, path, json=body)
        assert "loading" in assert_refused(response, 503)
        assert response.headers["retry-after"] == "1"

    @pytest.mark.parametrize("path", ["/v1/models", "/v2/models", "/v2/health/live"])
    def test_there_while_loading(self, loading, path):
        """What needs no model is there."""
        assert loading.http.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/classify", 400),
        ("GET", "/classify", 405),
        ("GET", "/models/nobody", 404),
        ("GET", "/v", 404),
        ("GET", "/v3/models", 404),
        ("GET", "/v1x/models", 404),
        ("GET", "/v2.0/models", 404),
        ("GET", "/models/v1", 404),
    ],
)
def test_own_paths(http, method, path, status):
    """The service's own paths answer with problem details, as before."""
    response = http.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status


PATHS = [
    pytest.param(PREDICT, json.dumps(rows()).encode(), id="predict"),
    pytest.param(CLASSIFY, b'{"examples": [{"frames": [1, 2, 3]}]}', id="classify"),
    pytest.param(INFER, json.dumps(infer(id="x")).encode(), id="infer"),
]


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("coding", CODINGS)
class TestBodies:
    def post(self, http, path, body, coding):
        return http.post(path, content=body, headers={"Content-Encoding": coding})

    @pytest.mark.parametrize("padding", [0, 100_000])
    def test_good(self, http, path, body, coding, padding):
        """A compressed body gets the answer of the plain one."""
        packed = CODINGS[coding](body + b" " * padding)
        for name in (coding, coding.upper()):
            response = self.post(http, path, packed, name)
            assert response.status_code == 200, response.text
            assert response.json() == http.post(path, content=body).json()

    def test_damaged(self, http, path, body, coding):
        """What is no such stream, or not all of one, or more than one, is 400."""
        packed = CODINGS[coding](body)
        other = next(CODINGS[name] for name in CODINGS if name != coding)
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
            assert_refused(self.post(http, path, bad, coding), 400)
        assert_answers(http)

    def test_members(self, http, path, body, coding):
        """gzip may have several members; deflate is one stream."""
        packed = CODINGS[coding](body[:20]) + CODINGS[coding](body[20:])
        response = self.post(http, path, packed, coding)
        assert response.status_code == (200 if coding == "gzip" else 400)

    @pytest.mark.parametrize("members", [1, 10])
    def test_bomb(self, http, path, body, coding, members):
        """A body that inflates beyond the limit is 413, in one member or many."""
        packed = CODINGS[coding](bytes(100 * 2**20 // members))
        response = self.post(http, path, packed * members, coding)
        assert "decompressed" in assert_refused(response, 413)
        assert_answers(http)


def test_two_codings(server):
    """A second header doesn't make a body another one."""
    body = gzip.compress(json.dumps(infer()).encode())
    for first, status in (("gzip", 200), ("identity", 400), ("br", 415)):
        head = (
            f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Encoding: {first}\r\n"
            f"Content-Encoding: identity\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        assert send(server, head.encode() + body)[0] == status


def asked(steps, *, binary=False):
    """A path and a body each whose answers are as long as `steps`."""
    frames = random_frames(np.random.default_rng(1), steps).tolist()
    parameters = {"binary_data_output": binary}
    yield "/v1/models/tags:predict", rows(frames)
    yield "/v2/models/tags/infer", infer(frames, parameters=parameters, id="x")


def plain(http, path, body):
    """The answer as it is."""
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


class TestAnswers:
    @pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
    @pytest.mark.parametrize(("accepted", "coding"), ACCEPTED)
    def test_coding(self, http, accepted, coding, binary):
        """An answer comes in gzip or deflate for who takes them, else as it is."""
        for path, body in asked(300, binary=binary):
            wanted = plain(http, path, body)
            headers = {"Accept-Encoding": accepted or ""}
            with http.stream("POST", path, json=body, headers=headers) as response:
                raw = b"".join(response.iter_raw())
            assert response.headers.get("content-encoding") == coding
            assert int(response.headers["content-length"]) == len(raw)
            if coding is not None:
                assert response.headers["vary"].lower() == "accept-encoding"
                assert len(raw) < len(wanted.content)
                raw = zlib.decompress(raw, wbits=31 if coding == "gzip" else 15)
            assert raw == wanted.content
            # The length of the JSON is that of the plain answer.
            assert response.headers.get(HEADER) == wanted.headers.get(HEADER)

    @pytest.mark.parametrize("steps", [1, 10, 25, 30, 60, 9000])
    def test_size(self, http, steps):
        """Only answers of a KiB or more are compressed."""
        for path, body in asked(steps):
            size = len(plain(http, path, body).content)
            response = http.post(path, json=body, headers={"Accept-Encoding": "gzip"})
            assert ("content-encoding" in response.headers) == (size >= 1024)
            assert response.json() == plain(http, path, body).json()

    @pytest.mark.parametrize(
        "path",
        ["/v1/models/walks", "/v1/models/walks/metadata", "/v2", "/v2/models/walks"]
        + ["/v2/models/walks/config", "/v2/models/walks/stats", "/v2/models/stats"],
    )
    def test_metadata(self, http, path):
        """What is no prediction never is, however long."""
        response = http.get(path, headers={"Accept-Encoding": "gzip, deflate"})
        assert response.status_code == 200
        assert "content-encoding" not in response.headers
        assert len(response.content) >= 1024 or not path.endswith("metadata")

    def test_refusal(self, http):
        """Nor is a refusal."""
        wrong = [FRAME] * 1000 + [[1e39] * 3] * 10
        body = rows(*[[FRAME]] * 100, wrong)
        response = http.post(PREDICT, json=body, headers={"Accept-Encoding": "gzip"})
        assert len(assert_refused(response, 400)) >= 1024

    def test_own_api(self, http):
        """Nor are the answers of the service's own API."""
        body = {"model": "tags", "sequences": [[FRAME] * 100]}
        response = http.post("/label", json=body, headers={"Accept-Encoding": "gzip"})
        assert response.status_code == 200
        assert "content-encoding" not in response.headers
