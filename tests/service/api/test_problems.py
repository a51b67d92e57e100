"""Everything that is wrong with a request is told, exactly, shortly and safely."""

import gzip
import json
import tracemalloc
import zlib
from dataclasses import dataclass, field

import httpx
import pytest

from service import errors
from service.codecs import native
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import running, send, value

CANARY = "c4n4ry"
TASKS = {"classify": "walks", "label": "tags"}
OTHER = {"classify": "tags", "label": "walks"}
LIMITS = {
    "max_body_bytes": 4096,
    "max_sequences": 4,
    "max_steps": 20,
    "max_cells": 90,
    "queue_steps": 1000,
}
FRAME = [1, 2, 3]


@dataclass(frozen=True)
class Case:
    """A request, and how it has to be refused."""

    body: bytes
    status: int
    slug: str
    paths: tuple[str, ...] | None = ()  # exactly these errors; None: any
    headers: dict[str, str] = field(default_factory=dict)


def case(id, body, status, slug, *paths, headers=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return pytest.param(Case(body, status, slug, paths, headers or {}), id=id)


def malformed(id, body):
    return case(id, body, 400, "invalid-json")


def misfit(id, body, *paths):
    return case(id, body, 422, "invalid-request", *paths)


def unsupported(id, body=b'{"sequences": [[[1, 2, 3]]]}', **headers):
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return case(id, body, 415, "unsupported-media-type", headers=headers)


def encoded(id, body, coding):
    return case(id, body, 400, "bad-encoding", headers={"content-encoding": coding})


def stated(states, *sequences, **members):
    """A request of two sequences (else of these) with `states`."""
    return {"sequences": list(sequences) or [[FRAME]] * 2, "states": states} | members


def no_token(id, token):
    body = stated([None, token])
    return case(id, body, 422, "invalid-state", "states[1]")


def unknown(id, name):
    body = {"sequences": [[FRAME]], "model": name}
    return case(id, body, 404, "unknown-model")


def cell(text):
    return b'{"sequences": [[[1, 2, ' + text + b"]]]}"


def nested(depth):
    return b"[" * depth + b"]" * depth


GOOD = b'{"sequences": [[[1, 2, 3]]]}'

NO_JSON = [
    malformed("empty", b""),
    malformed("blank", b" \n\t "),
    malformed("word", b"sequences"),
    malformed("truncated", GOOD[:-3]),
    malformed("truncated-string", b'{"sequences": [], "model": "c4n4ry'),
    malformed("trailing-word", GOOD + b"x"),
    malformed("trailing-object", GOOD + GOOD),
    malformed("trailing-nul", GOOD + b"\0"),
    malformed("trailing-comma", b'{"sequences": [[[1, 2, 3]]],}'),
    malformed("comma-in-frame", b'{"sequences": [[[1, 2, 3,]]]}'),
    malformed("single-quotes", b"{'sequences': [[[1, 2, 3]]]}"),
    malformed("comment", b'{/* c4n4ry */ "sequences": [[[1, 2, 3]]]}'),
    malformed("unquoted-key", b"{sequences: [[[1, 2, 3]]]}"),
    malformed("bom", b"\xef\xbb\xbf" + GOOD),
    malformed("utf-16", GOOD.decode().encode("utf-16")),
    malformed("utf-16-be", GOOD.decode().encode("utf-16-be")),
    malformed("utf-32", GOOD.decode().encode("utf-32")),
    malformed("invalid-utf-8", b'{"sequences": [[[1, 2, 3]]], "model": "c4n4ry\xff"}'),
    malformed("invalid-utf-8-key", b'{"sequences": [[[1, 2, 3]]], "c4n4ry\xff": 1}'),
    malformed("overlong-utf-8", b'{"sequences": [[[1, 2, 3]]], "model": "\xc0\xaf"}'),
    malformed("binary", bytes(range(256))),
    malformed("surrogate", b'{"sequences": [[[1, 2, 3]]], "model": "\\ud800"}'),
    malformed("surrogate-key", b'{"sequences": [[[1, 2, 3]]], "\\udfff": 1}'),
    malformed("line-break-in-string", b'{"sequences": [], "model": "c4n4ry\n"}'),
    malformed("bad-escape", b'{"sequences": [[[1, 2, 3]]], "model": "\\x41"}'),
    malformed("nan", cell(b"NaN")),
    malformed("infinity", cell(b"Infinity")),
    malformed("minus-infinity", cell(b"-Infinity")),
    malformed("leading-zero", cell(b"01")),
    malformed("no-fraction", cell(b"1.")),
    malformed("no-whole", cell(b".5")),
    malformed("plus", cell(b"+1")),
    malformed("minus", cell(b"-")),
    malformed("hexadecimal", cell(b"0x10")),
    malformed("no-exponent", cell(b"1e")),
    malformed("nesting-open", b'{"sequences": ' + b"[" * 3),
]
MISFITS = [
    misfit("null", b"null", "body"),
    misfit("list", b"[]", "body"),
    misfit("number", b"5", "body"),
    misfit("string", b'"c4n4ry"', "body"),
    misfit("frames-only", [[FRAME]], "body"),
    misfit("object", {}, "body"),
    misfit("unknown-member", {"sequences": [[FRAME]], "c4n4ry": 1}, "body"),
    misfit("unknown-member-only", {CANARY: [[FRAME]]}, "body"),
    misfit("other-case", {"Sequences": [[FRAME]]}, "body"),
    misfit("long-member", {CANARY * 5000: 1}, "body"),
    misfit("sequences-null", {"sequences": None}, "sequences"),
    misfit("sequences-object", {"sequences": {CANARY: 1}}, "sequences"),
    misfit("sequences-string", {"sequences": "c4n4ry"}, "sequences"),
    misfit("no-sequence", {"sequences": []}, "sequences"),
    misfit("no-step", {"sequences": [[]]}, "sequences[0]"),
    misfit("no-step-later", {"sequences": [[FRAME], []]}, "sequences[1]"),
    misfit("empty-frame", {"sequences": [[[]]]}, "sequences[0][0]"),
    misfit("sequence-null", {"sequences": [None]}, "sequences[0]"),
    misfit("frame-null", {"sequences": [[FRAME, None]]}, "sequences[0][1]"),
    misfit("frame-number", {"sequences": [FRAME]}, "sequences[0][0]"),
    misfit("cell-null", cell(b"null"), "sequences[0][0][2]"),
    misfit("cell-string", cell(b'"3"'), "sequences[0][0][2]"),
    misfit("cell-canary", cell(b'"c4n4ry"'), "sequences[0][0][2]"),
    misfit("cell-boolean", cell(b"true"), "sequences[0][0][2]"),
    misfit("cell-list", cell(b"[]"), "sequences[0][0][2]"),
    misfit("cell-object", cell(b'{"c4n4ry": 1}'), "sequences[0][0][2]"),
    misfit("cell-1e999", cell(b"1e999"), "sequences[0][0][2]"),
    misfit("cell-1e39", cell(b"1e39"), "sequences[0][0][2]"),
    misfit("cell-minus-1e39", cell(b"-1e39"), "sequences[0][0][2]"),
    misfit("cell-5000-digits", cell(b"9" * 5000), "sequences[0][0][2]"),
    misfit("cell-40-digits", cell(b"9" * 40), "sequences[0][0][2]"),
    misfit(
        "two-cells",
        b'{"sequences": [[[1, 2, 3]], [[1, 1e39, 3], [1, 2, -1e300]]]}',
        "sequences[1][0][1]",
        "sequences[1][1][2]",
    ),
    misfit("few-features", {"sequences": [[[1, 2]]]}, "sequences[0][0]"),
    misfit("many-features", {"sequences": [[[1, 2, 3, 4]]]}, "sequences[0][0]"),
    misfit("ragged", {"sequences": [[FRAME, [1, 2], FRAME]]}, "sequences[0][1]"),
    misfit(
        "ragged-both-ways",
        {"sequences": [[FRAME], [[1], FRAME, [1, 2, 3, 4]]]},
        "sequences[1][0]",
        "sequences[1][2]",
    ),
    misfit("top-k-0", {"sequences": [[FRAME]], "top_k": 0}, "top_k"),
    misfit("top-k-minus-1", {"sequences": [[FRAME]], "top_k": -1}, "top_k"),
    misfit("top-k-minus-huge", {"sequences": [[FRAME]], "top_k": -(2**70)}, "top_k"),
    misfit("top-k-1.5", {"sequences": [[FRAME]], "top_k": 1.5}, "top_k"),
    misfit("top-k-1e400", b'{"sequences": [[[1, 2, 3]]], "top_k": 1e400}', "top_k"),
    misfit("top-k-string", {"sequences": [[FRAME]], "top_k": "3"}, "top_k"),
    misfit("top-k-true", {"sequences": [[FRAME]], "top_k": True}, "top_k"),
    misfit("top-k-list", {"sequences": [[FRAME]], "top_k": [1]}, "top_k"),
    misfit(
        "top-k-5000-digits",
        b'{"sequences": [[[1, 2, 3]]], "top_k": ' + b"9" * 5000 + b"}",
        "top_k",
    ),
    misfit(
        "top-k-and-cells",
        {"sequences": [[[1, 2]]], "top_k": 0},
        "top_k",
        "sequences[0][0]",
    ),
    misfit("model-number", {"sequences": [[FRAME]], "model": 3}, "model"),
    misfit("model-list", {"sequences": [[FRAME]], "model": ["walks"]}, "model"),
    misfit("model-object", {"sequences": [[FRAME]], "model": {CANARY: 1}}, "model"),
    misfit("model-boolean", {"sequences": [[FRAME]], "model": False}, "model"),
    misfit("states-number", stated(1), "states"),
    misfit("states-string", stated(CANARY), "states"),
    misfit("states-boolean", stated(True), "states"),
    misfit("states-object", stated({CANARY: 1}), "states"),
    misfit("state-number", stated([None, 1]), "states[1]"),
    misfit("state-boolean", stated([False, None]), "states[0]"),
    misfit("state-object", stated([None, {CANARY: 1}]), "states[1]"),
    misfit("state-list", stated([[CANARY], None]), "states[0]"),
    misfit("states-none", stated([]), "states"),
    misfit("states-too-few", stated([CANARY]), "states"),
    misfit("states-too-many", stated([CANARY] * 3), "states"),
    misfit("states-many-more", stated([None] * 1000), "states"),
    misfit("states-and-cells", stated([None] * 2, [[1]]), "states", "sequences[0][0]"),
    misfit("return-state-1", stated([None] * 2, return_state=1), "return_state"),
    misfit("return-state-word", stated(None, return_state=CANARY), "return_state"),
    misfit("return-state-list", stated(None, return_state=[True]), "return_state"),
    misfit("nesting-120", nested(120), "body"),
    misfit("nesting-1100", nested(1100), "body"),
    misfit("nesting-250000", nested(250_000), "body"),
    misfit(
        "nesting-in-sequences",
        b'{"sequences": ' + nested(250_000) + b"}",
        "sequences[0][0][0]",
    ),
    misfit("nesting-in-model", b'{"model": ' + nested(250_000) + b"}", "model"),
    misfit("nesting-in-states", b'{"states": ' + nested(250_000) + b"}", "states[0]"),
    misfit("nesting-in-unknown", b'{"x": ' + nested(250_000) + b"}", "body"),
    misfit("nesting-of-objects", b'{"model": ' + b'{"a":' * 5000 + b"1", "model"),
]
NAMES = [
    unknown("model-unknown", CANARY),
    unknown("model-empty", ""),
    unknown("model-blank", " "),
    unknown("model-path", "../../etc/passwd"),
    unknown("model-absolute-path", "/etc/passwd"),
    unknown("model-dots", ".."),
    unknown("model-dot-slash", "./walks"),
    unknown("model-version", "walks/1"),
    unknown("model-case", "WALKS"),
    unknown("model-nul", "walks\0"),
    unknown("model-line-break", "walks\nc4n4ry"),
    unknown("model-escape", "\x1b[31mc4n4ry"),
    unknown("model-line-separator", "walks\u2028"),
    unknown("model-10-KB", CANARY * 1707),
    unknown("model-html", "<script>c4n4ry</script>"),
]
TOKENS = [
    no_token("token-canary", CANARY),
    no_token("token-empty", ""),
    no_token("token-path", "../../etc/passwd"),
    no_token("token-nul", "\0"),
    no_token("token-line-break", f"{CANARY}\r\n{CANARY}"),
    no_token("token-escape", f"\x1b[31m{CANARY}"),
    no_token("token-crab", "\U0001f980"),
    no_token("token-zeros", "A" * 200),
    no_token("token-padded", "A" * 200 + "===="),
    no_token("token-60-KB", CANARY * 10_000),
    no_token("token-600-KB", CANARY * 100_000),
]
MEDIA = [
    unsupported("type-text", content_type="text/plain"),
    unsupported("type-octets", b"\xff\xfe", content_type="application/octet-stream"),
    unsupported("type-multipart", content_type="multipart/form-data; boundary=c4n4ry"),
    unsupported("type-msgpack", content_type="application/msgpack"),
    unsupported("type-canary", content_type="application/c4n4ry"),
    unsupported("type-odd", content_type="application/json/c4n4ry"),
    encoded("gzip-said-only", GOOD, "gzip"),
    encoded("deflate-said-only", GOOD, "deflate"),
    encoded("gzip-cut", gzip.compress(GOOD)[:-1], "gzip"),
    encoded("gzip-goes-on", gzip.compress(GOOD) + GOOD, "gzip"),
    encoded("deflate-of-gzip", gzip.compress(GOOD), "deflate"),
    unsupported(
        "gzip-twice", gzip.compress(gzip.compress(GOOD)), content_encoding="gzip, gzip"
    ),
    unsupported("identity-and-gzip", content_encoding="identity, gzip"),
    unsupported("brotli", content_encoding="br"),
    unsupported("coding-canary", content_encoding="c4n4ry"),
    malformed("gzip-not-said", gzip.compress(GOOD)),
]


@pytest.fixture(scope="module")
def service(bundles):
    """The service with its usual limits."""
    with running(
        Settings(port=0, bundles=bundles, default_label="tags"), load_engine=OnnxEngine
    ) as made:
        yield made


@pytest.fixture(scope="module")
def limited(bundles):
    """The service with small limits."""
    settings = Settings(port=0, bundles=bundles, default_label="tags", **LIMITS)
    with running(settings, load_engine=OnnxEngine) as made:
        yield made


def assert_refused(response: httpx.Response, status: int, slug: str) -> dict:
    """It is a refusal of that kind, short, whole and without the input."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == errors.MEDIA_TYPE
    assert len(response.content) <= 8192
    assert CANARY not in response.text
    for leak in ("Traceback", "site-packages", "/usr", "msgspec", "numpy", "Error("):
        assert leak not in response.text
    problem = response.json()
    members = {"type", "title", "status", "detail", "request_id"}
    assert members <= set(problem) <= members | {"errors", "error_count"}
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    if "errors" in problem:
        assert 1 <= len(problem["errors"]) <= errors.MAX_ERRORS
        assert problem["error_count"] >= len(problem["errors"])
        for error in problem["errors"]:
            assert set(error) == {"path", "message"}
            assert len(error["message"]) <= 200
    return problem


def assert_answers(service) -> None:
    """The service is alive, and still right in what it accepts."""
    assert service.http.get("/livez").status_code == 200
    for task, model in TASKS.items():
        response = service.http.post(f"/{task}", content=GOOD)
        assert response.status_code == 200
        assert response.json()["model"] == model


def post(service, path, body, headers=None):
    kind = {"content-type": "application/json"}
    return service.http.post(path, content=body, headers=kind | (headers or {}))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", [*NO_JSON, *MISFITS, *NAMES, *TOKENS, *MEDIA])
class TestBodies:
    def test_refused(self, service, task, case):
        """A bad request gets the one status, type and paths that are promised, and
        harms nothing."""
        response = post(service, f"/{task}", case.body, case.headers)
        problem = assert_refused(response, case.status, case.slug)
        paths = tuple(error["path"] for error in problem.get("errors", []))
        assert paths == case.paths
        assert problem.get("error_count", 0) == len(paths)
        if case.status == 415:
            wanted = {"accept", "accept-encoding"} & set(response.headers)
            assert len(wanted) == 1
        assert_answers(service)


@pytest.mark.parametrize("task", TASKS)
class TestCompressed:
    @pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate"])
    def test_answers(self, service, task, coding):
        """A compressed request has the answer of the plain one."""
        squeeze = zlib.compress if coding == "deflate" else gzip.compress
        plain = post(service, f"/{task}", GOOD).json()
        headers = {"content-encoding": coding}
        assert post(service, f"/{task}", squeeze(GOOD), headers).json() == plain

    def test_bomb(self, service, task):
        """What is over the limit when it is inflated is refused as the plain one is."""
        bomb = gzip.compress(b" " * 10 * 2**20)
        response = post(service, f"/{task}", bomb, {"content-encoding": "gzip"})
        problem = assert_refused(response, 413, "too-large")
        assert "when decompressed" in problem["detail"]
        assert_answers(service)


@pytest.mark.parametrize("task", TASKS)
class TestTasks:
    def test_wrong_task(self, service, task):
        """A model of the other task is refused, and where it belongs is said."""
        body = {"sequences": [[FRAME]], "model": OTHER[task]}
        response = post(service, f"/{task}", json.dumps(body))
        problem = assert_refused(response, 422, "invalid-request")
        assert [error["path"] for error in problem["errors"]] == ["model"]
        assert f"POST /{'label' if task == 'classify' else 'classify'}" in str(problem)

    def test_last_of_two(self, service, task):
        """Of a member that is given twice the last one counts."""
        body = b'{"sequences": [[[1]]], "sequences": [[[1, 2, 3]]]}'
        assert post(service, f"/{task}", body).status_code == 200
        body = b'{"sequences": [[[1, 2, 3]]], "sequences": [[[1]]]}'
        response = post(service, f"/{task}", body)
        problem = assert_refused(response, 422, "invalid-request")
        assert problem["errors"][0]["path"] == "sequences[0][0]"

    @pytest.mark.parametrize(
        "largest", ["3.4028234e38", "3.4028235e38", "-3.4028235e38", "1e-50", "-0.0"]
    )
    def test_ends_of_float32(self, service, task, largest):
        """A number that float32 has is taken, up to the last."""
        assert post(service, f"/{task}", cell(largest.encode())).status_code == 200

    def test_many_errors(self, service, task):
        """Of many errors the first 20 are told, and how many there were."""
        body = {"sequences": [[[1, 2]] * 100, [FRAME], [[1]] * 30]}
        response = post(service, f"/{task}", json.dumps(body))
        problem = assert_refused(response, 422, "invalid-request")
        expected = [f"sequences[0][{step}]" for step in range(20)]
        assert [error["path"] for error in problem["errors"]] == expected
        assert problem["error_count"] == 130
        assert_answers(service)

    def test_many_bad_cells(self, service, task):
        """As many bad numbers are counted, and refused as shortly."""
        frame = b"[1e39, 2, -1e39]"
        body = b'{"sequences": [[' + b", ".join([frame] * 500) + b"]]}"
        response = post(service, f"/{task}", body)
        problem = assert_refused(response, 422, "invalid-request")
        assert problem["error_count"] == 1000
        assert problem["errors"][1]["path"] == "sequences[0][0][2]"

    def test_many_tokens(self, service, task):
        """So are many that are no tokens."""
        body = stated([CANARY] * 200, *[[FRAME]] * 200)
        response = post(service, f"/{task}", json.dumps(body))
        problem = assert_refused(response, 422, "invalid-state")
        expected = [f"states[{place}]" for place in range(20)]
        assert [error["path"] for error in problem["errors"]] == expected
        assert problem["error_count"] == 200

    def test_two_encodings(self, service, task):
        """A second header doesn't smuggle a compressed body in."""
        body = gzip.compress(GOOD)
        lines = (
            f"POST /{task} HTTP/1.1",
            "Host: here",
            "Content-Type: application/json",
            "Content-Encoding: identity",
            "Content-Encoding: gzip",
            f"Content-Length: {len(body)}",
        )
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        status, headers, _ = send(service.url, head + body)
        assert status in (400, 415)
        assert headers["content-type"] == errors.MEDIA_TYPE


@pytest.mark.parametrize(
    "members", [{"return_state": True}, {"states": [None, CANARY]}]
)
def test_needs_it_whole(service, members):
    """A network that reads in both directions takes no state and gives none, and those
    of its task that do are named; without one it answers as ever."""
    body = stated([None, None]) | {"model": "both", "return_state": False}
    assert post(service, "/label", json.dumps(body)).status_code == 200
    response = post(service, "/label", json.dumps(body | members))
    problem = assert_refused(response, 422, "not-streamable")
    assert "errors" not in problem
    assert "both is bidirectional" in problem["detail"]
    assert problem["detail"].endswith("can be streamed: tags")


class TestAmplification:
    def test_cost_of_refusing(self):
        """Where every number of a large body is wrong, only the errors that are told
        are made: refusing takes less memory than the body that was read."""
        sequence = b"[" + b", ".join([b"[1e39,1e39,1e39]"] * 10_000) + b"]"
        body = b'{"sequences": [' + b", ".join([sequence] * 10) + b"]}"
        read = native.decode(body)
        tracemalloc.start()
        try:
            with pytest.raises(errors.InvalidRequest) as caught:
                native.to_arrays(read, 3, Settings().limits)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(caught.value.errors) == errors.MAX_ERRORS
        assert json.loads(caught.value.body("id"))["error_count"] == 300_000
        assert peak < len(body)


@pytest.mark.parametrize("task", TASKS)
class TestLimits:
    def over(self, limited, task, body, limit, path=None):
        response = post(limited, f"/{task}", json.dumps(body))
        problem = assert_refused(response, 413, "too-large")
        assert str(limit) in problem["detail"]
        paths = [error["path"] for error in problem.get("errors", [])]
        assert paths == ([path] if path else [])
        assert_answers(limited)

    def test_lists_without_numbers(self, limited, task):
        """A body of empty steps is refused before it costs a parser's time."""
        body = {"sequences": [[[]] * 500]}
        self.over(limited, task, body, LIMITS["max_cells"])

    def test_sequences(self, limited, task):
        """As many sequences as allowed are answered, one more is refused."""
        body = {"sequences": [[FRAME]] * 4}
        assert post(limited, f"/{task}", json.dumps(body)).status_code == 200
        self.over(limited, task, {"sequences": [[FRAME]] * 5}, 4)

    def test_steps(self, limited, task):
        """As many steps as allowed are answered, one more is refused by its place."""
        body = {"sequences": [[FRAME], [FRAME] * 20]}
        assert post(limited, f"/{task}", json.dumps(body)).status_code == 200
        body = {"sequences": [[FRAME], [FRAME] * 21]}
        self.over(limited, task, body, 20, "sequences[1]")

    def test_cells(self, limited, task):
        """As many numbers as allowed are answered, more are refused."""
        body = {"sequences": [[FRAME] * 15] * 2}
        assert post(limited, f"/{task}", json.dumps(body)).status_code == 200
        self.over(limited, task, {"sequences": [[FRAME] * 15, [FRAME] * 16]}, 90)

    def test_limits_come_first(self, limited, task):
        """What is over a limit is refused for that, whatever else is wrong with it."""
        self.over(limited, task, {"sequences": [[[1]]] * 5, "top_k": 0}, 4)

    def test_body(self, limited, task):
        """A body as long as allowed is read, one byte more is refused."""
        space = b" " * (4096 - len(GOOD))
        assert post(limited, f"/{task}", GOOD + space).status_code == 200
        response = post(limited, f"/{task}", GOOD + space + b" ")
        problem = assert_refused(response, 413, "too-large")
        assert "4096" in problem["detail"]
        assert_answers(limited)

    def test_chunked_body(self, limited, task):
        """So is a body that doesn't say its length."""
        space = b" " * (4096 - len(GOOD))
        assert post(limited, f"/{task}", iter((GOOD, space))).status_code == 200
        parts = (b" " * 1000 for _ in range(10))
        response = post(limited, f"/{task}", parts)
        assert_refused(response, 413, "too-large")
        assert_answers(limited)

    @pytest.mark.parametrize("length", [4097, 10**9, 10**18])
    def test_refused_before_it_comes(self, limited, task, length):
        """A body that says that it is too long is refused before it is sent."""
        head = (
            f"POST /{task} HTTP/1.1\r\nHost: here\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
        status, headers, body = send(limited.url, head.encode())
        assert (status, headers["content-type"]) == (413, errors.MEDIA_TYPE)
        assert json.loads(body)["type"] == "urn:unrolled:error:too-large"
        assert_answers(limited)

    @pytest.mark.parametrize("length", ["-1", "c4n4ry", "9" * 30, "9" * 5000, "1, 2"])
    def test_odd_length(self, limited, task, length):
        """A length that is none is refused, and never a failure of the service."""
        head = (
            f"POST /{task} HTTP/1.1\r\nHost: here\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
        status, _, body = send(limited.url, head.encode())
        assert status in (400, 413)
        assert CANARY.encode() not in body
        assert_answers(limited)


class TestAfterwards:
    def test_counted(self, service):
        """Each kind of refusal has been counted, and none was a failure of ours."""
        text = service.metrics()
        for kind in (
            "invalid-json",
            "invalid-request",
            "invalid-state",
            "not-streamable",
            "unknown-model",
            "unsupported-media-type",
        ):
            assert value(text, "unrolled_refused_requests_total", kind=kind) > 0
        kind = "internal-error"
        assert value(text, "unrolled_refused_requests_total", kind=kind) == 0
        assert 'status="5' not in text
        assert CANARY not in text
        for name in ("walks", "tags", "both"):
            assert value(text, "unrolled_waiting_steps", model=name) == 0
