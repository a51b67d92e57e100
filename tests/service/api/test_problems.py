"""Every invalid request gets an exact, short and safe error response."""

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

CANARY = "c4n4ry"  # input that no response may contain
TASKS = {"classify": "walks", "label": "tags"}
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
    """A request, and its error."""

    name: str
    body: bytes
    status: int
    slug: str
    paths: tuple[str, ...] = ()  # of exactly these fields
    headers: dict[str, str] = field(default_factory=dict)


def case(name, body, status, slug, *paths, headers=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Case(name, body, status, slug, paths, headers or {})


def malformed(name, body):
    return case(name, body, 400, "invalid-json")


def misfit(name, body, *paths):
    return case(name, body, 422, "invalid-request", *paths)


def unsupported(name, body=b'{"sequences": [[[1, 2, 3]]]}', **headers):
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return case(name, body, 415, "unsupported-media-type", headers=headers)


def encoded(name, body, coding):
    return case(name, body, 400, "bad-encoding", headers={"content-encoding": coding})


def stated(states, *sequences, **members):
    """A request of two sequences (else of these) with `states`."""
    return {"sequences": list(sequences) or [[FRAME]] * 2, "states": states} | members


def no_token(name, token):
    body = stated([None, token])
    return case(name, body, 422, "invalid-state", "states[1]")


def unknown(name, model):
    body = {"sequences": [[FRAME]], "model": model}
    return case(name, body, 404, "unknown-model")


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
    misfit("cell-secret", cell(b'"c4n4ry"'), "sequences[0][0][2]"),
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
    no_token("token-secret", CANARY),
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
    unsupported("type-secret", content_type="application/c4n4ry"),
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
    unsupported("coding-secret", content_encoding="c4n4ry"),
    malformed("gzip-not-said", gzip.compress(GOOD)),
]


TABLES = {
    "json": NO_JSON,
    "shape": MISFITS,
    "model": NAMES,
    "token": TOKENS,
    "media": MEDIA,
}


@pytest.fixture(scope="module")
def service(bundles):
    """The service with its default limits."""
    settings = Settings(port=0, bundles=bundles, default_label="tags")
    with running(settings, load_engine=OnnxEngine) as service:
        yield service


@pytest.fixture(scope="module")
def limited(bundles):
    """The service with small limits."""
    settings = Settings(port=0, bundles=bundles, default_label="tags", **LIMITS)
    with running(settings, load_engine=OnnxEngine) as service:
        yield service


def assert_refused(
    response: httpx.Response, status: int, slug: str, name: str = ""
) -> dict:
    """The response is this error, short and complete, without any input."""
    assert response.status_code == status, (name, response.text[:500])
    assert response.headers["content-type"] == errors.MEDIA_TYPE
    assert len(response.content) <= 8192
    for leak in (CANARY, "Traceback", "site-packages", "/usr", "msgspec", "Error("):
        assert leak not in response.text, name
    problem = response.json()
    members = {"type", "title", "status", "detail", "request_id"}
    assert members <= set(problem) <= members | {"errors", "error_count"}, name
    assert problem["type"] == f"urn:unrolled:error:{slug}", name
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
    """The service is alive, and answers valid requests."""
    assert service.http.get("/livez").status_code == 200
    for task, model in TASKS.items():
        response = service.http.post(f"/{task}", content=GOOD)
        assert response.status_code == 200
        assert response.json()["model"] == model


def post(service, body, headers=None, task="classify"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | (headers or {})
    return service.http.post(f"/{task}", content=content, headers=headers)


def paths_of(problem):
    return [error["path"] for error in problem.get("errors", [])]


@pytest.mark.parametrize("table", TABLES)
def test_refused(service, table):
    """An invalid request gets exactly its status, type and paths, and harms nothing."""
    cases = TABLES[table]
    for task, chosen in (("classify", cases), ("label", cases[::10])):
        for case in chosen:
            response = post(service, case.body, case.headers, task)
            problem = assert_refused(response, case.status, case.slug, case.name)
            assert tuple(paths_of(problem)) == case.paths, case.name
            assert problem.get("error_count", 0) == len(case.paths), case.name
            if case.status == 415:
                accepts = {"accept", "accept-encoding"} & set(response.headers)
                assert len(accepts) == 1, case.name
        assert_answers(service)


def test_compressed(service):
    """A compressed request gets the response of the plain one, within the limit."""
    plain = post(service, GOOD).json()
    for coding in ("gzip", "GZIP", "deflate"):
        compress = zlib.compress if coding == "deflate" else gzip.compress
        headers = {"content-encoding": coding}
        assert post(service, compress(GOOD), headers).json() == plain
    bomb = gzip.compress(b" " * 10 * 2**20)
    response = post(service, bomb, {"content-encoding": "gzip"})
    problem = assert_refused(response, 413, "too-large")
    assert "when decompressed" in problem["detail"]
    assert_answers(service)


@pytest.mark.parametrize(
    ("task", "other"), [("classify", "label"), ("label", "classify")]
)
def test_wrong_task(service, task, other):
    """For a model of the other task, the error names the right path."""
    body = {"sequences": [[FRAME]], "model": TASKS[other]}
    problem = assert_refused(post(service, body, task=task), 422, "invalid-request")
    assert paths_of(problem) == ["model"]
    assert f"POST /{other}" in problem["detail"]


def test_repeated_member(service):
    """If a JSON key repeats, the last value wins."""
    body = b'{"sequences": [[[1]]], "sequences": [[[1, 2, 3]]]}'
    assert post(service, body).status_code == 200
    body = b'{"sequences": [[[1, 2, 3]]], "sequences": [[[1]]]}'
    problem = assert_refused(post(service, body), 422, "invalid-request")
    assert paths_of(problem) == ["sequences[0][0]"]


def test_escaped_model(service):
    """The model is right however JSON spells it, though it is first looked for without
    parsing."""
    for members, model in (
        (b'"m\\u006fdel": "both"', "both"),
        (b'"model": "b\\u006fth"', "both"),
        (b'"model": "both", "m\\u006fdel": "tags"', "tags"),
    ):
        body = GOOD.replace(b"{", b"{" + members + b", ", 1)
        response = post(service, body, task="label")
        assert response.json()["model"] == model
        body = body.replace(b'both"', b'nobody"').replace(b'b\\u006fth"', b'x"')
        if model == "both":
            response = post(service, body, task="label")
            assert_refused(response, 404, "unknown-model")


def test_ends_of_float32(service):
    """Every float32 number is valid, up to the largest."""
    for text in (b"3.4028235e38", b"-3.4028235e38", b"1e-50", b"-0.0"):
        assert post(service, cell(text)).status_code == 200, text


def test_many_errors(service):
    """Of many errors the first 20 are listed, and all are counted."""
    body = {"sequences": [[[1, 2]] * 100, [FRAME], [[1]] * 30]}
    problem = assert_refused(post(service, body), 422, "invalid-request")
    assert paths_of(problem) == [f"sequences[0][{step}]" for step in range(20)]
    assert problem["error_count"] == 130
    frame = b"[1e39, 2, -1e39]"
    cells = b'{"sequences": [[' + b", ".join([frame] * 500) + b"]]}"
    problem = assert_refused(post(service, cells), 422, "invalid-request")
    assert problem["error_count"] == 1000
    assert paths_of(problem)[1] == "sequences[0][0][2]"
    body = stated([CANARY] * 200, *[[FRAME]] * 200)
    problem = assert_refused(post(service, body), 422, "invalid-state")
    assert paths_of(problem) == [f"states[{index}]" for index in range(20)]
    assert problem["error_count"] == 200
    assert_answers(service)


def test_two_encodings(service):
    """A second header doesn't smuggle a compressed body in."""
    body = gzip.compress(GOOD)
    lines = (
        "POST /classify HTTP/1.1",
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


def test_cost_of_refusing():
    """Where every number of a large body is wrong, only the errors that are listed are
    made: refusing takes less memory than the body."""
    sequence = b"[" + b", ".join([b"[1e39,1e39,1e39]"] * 10_000) + b"]"
    text = b'{"sequences": [' + b", ".join([sequence] * 10) + b"]}"
    body = native.decode(text)
    tracemalloc.start()
    try:
        with pytest.raises(errors.InvalidRequest) as caught:
            native.to_arrays(body, 3, Settings().limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(caught.value.errors) == errors.MAX_ERRORS
    assert json.loads(caught.value.body("id"))["error_count"] == 300_000
    assert peak < len(text)


OVER_LIMITS = {
    "sequences": (4, {"sequences": [[FRAME]] * 4}, {"sequences": [[FRAME]] * 5}, []),
    "steps": (
        20,
        {"sequences": [[FRAME], [FRAME] * 20]},
        {"sequences": [[FRAME], [FRAME] * 21]},
        ["sequences[1]"],
    ),
    "cells": (
        90,
        {"sequences": [[FRAME] * 15] * 2},
        {"sequences": [[FRAME] * 15, [FRAME] * 16]},
        [],
    ),
    # Refused before parsing, which empty lists make slow.
    "lists": (90, {"sequences": [[FRAME]]}, {"sequences": [[[]] * 500]}, []),
    # Limits are checked first.
    "first": (4, {"sequences": [[FRAME]]}, {"sequences": [[[1]]] * 5, "top_k": 0}, []),
}


@pytest.mark.parametrize("name", OVER_LIMITS)
def test_limits(limited, name):
    """A request at a limit is answered; over it, the error names the limit."""
    limit, within, over, paths = OVER_LIMITS[name]
    for task in TASKS:
        assert post(limited, within, task=task).status_code == 200
        problem = assert_refused(post(limited, over, task=task), 413, "too-large")
        assert str(limit) in problem["detail"]
        assert paths_of(problem) == paths
    assert_answers(limited)


def test_body_limit(limited):
    """A body of the limit is read, with or without a length; one byte more is refused."""
    space = b" " * (4096 - len(GOOD))
    assert post(limited, GOOD + space).status_code == 200
    problem = assert_refused(post(limited, GOOD + space + b" "), 413, "too-large")
    assert "4096" in problem["detail"]
    chunks = limited.http.post("/classify", content=iter((GOOD, space)))
    assert chunks.status_code == 200
    chunks = limited.http.post("/classify", content=(b" " * 1000 for _ in range(10)))
    assert_refused(chunks, 413, "too-large")
    assert_answers(limited)


def test_content_length(limited):
    """A body that is too long by its header is refused before it is sent; a header that
    is no length is refused too."""
    odd = ("-1", CANARY, "9" * 30, "9" * 5000, "1, 2")
    for length in (4097, 10**9, 10**18, *odd):
        head = (
            f"POST /classify HTTP/1.1\r\nHost: here\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
        status, headers, body = send(limited.url, head.encode())
        assert CANARY.encode() not in body
        if length in odd:
            assert status in (400, 413), length
            continue
        assert (status, headers["content-type"]) == (413, errors.MEDIA_TYPE)
        assert json.loads(body)["type"] == "urn:unrolled:error:too-large"
    assert_answers(limited)


def test_refusals_are_counted(service):
    """Errors are counted by kind. None is the service's own, and no step still waits."""
    for body in (b"{", {}, stated([None, "x"]), {"sequences": [[FRAME]], "model": "x"}):
        post(service, body)
    text = service.metrics()
    kinds = ("invalid-json", "invalid-request", "invalid-state", "unknown-model")
    for kind in kinds:
        assert value(text, "unrolled_refused_requests_total", kind=kind) > 0
    kind = "internal-error"
    assert value(text, "unrolled_refused_requests_total", kind=kind) == 0
    assert 'status="5' not in text
    assert CANARY not in text
    for name in ("walks", "tags", "both"):
        assert value(text, "unrolled_waiting_steps", model=name) == 0
