"""Every invalid request gets an exact, short and safe error response."""

import gzip
import json
import tracemalloc
import zlib

import httpx
import pytest

from service import errors
from service.codecs import native
from service.settings import Settings
from tests.service.api.invalid_requests import (
    CANARY,
    FRAME,
    GOOD,
    TABLES,
    cell,
    stated,
)
from tests.support.bundles import OnnxEngine
from tests.support.servers import running, send, value

TASKS = {"classify": "walks", "label": "tags"}
LIMITS = {
    "max_body_bytes": 4096,
    "max_sequences": 4,
    "max_steps": 20,
    "max_cells": 90,
    "queue_steps": 1000,
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


def test_cost_of_refusing():
    """Refusing a large body takes less memory than the body, even if every number in it
    is wrong: only the errors that are listed are created."""
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
