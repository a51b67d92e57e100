"""Versions of other kinds of input that come and go while clients send text without a
pause: no answer is that of text cut for another version."""

import itertools
from functools import partial

import pytest

from tests.service.registry.test_swaps_under_load import Clients, post
from tests.support.streams import WebSocketStream
from tests.support.versions import TEXT, put, version_of_text, versioned_service

SMALL = b'{"texts": ["%b"]}' % TEXT.encode()
# Large enough for a process that decodes, in whose time a version may come.
LARGE = SMALL[:-1] + b" " * 70_000 + b"}"
# The name can't be found without parsing.
ESCAPED = LARGE[:-1] + b', "model": "m\\u0061de"}'
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
MAX_VERSIONS = 2_000


def classify(body, http, at):
    response = http.post("/classify", content=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    version = version_of_text(answer["predictions"][0]["probabilities"])
    assert answer["version"] == str(version)
    return version


def infer(http, at):
    body = post(http, "/v2/models/made/infer", {"inputs": [TENSOR]})
    version = version_of_text(body["outputs"][0]["data"])
    assert body["model_version"] == str(version)
    return version


def predict(http, at):
    body = post(http, "/v1/models/made:predict", {"instances": [TEXT]})
    return version_of_text(body["predictions"][0])


def sequence(http, at):
    """A kept sequence goes on with its version, or is refused because it read another
    kind."""
    version = None
    for steps, flag in enumerate(("start", "continue", "end"), 1):
        parameters = {"sequence_id": 1 + len(at), f"sequence_{flag}": True}
        body = {"inputs": [TENSOR], "parameters": parameters}
        response = http.post("/v2/models/made/infer", json=body)
        if version and response.status_code == 400:
            assert "began with a version of other inputs" in response.text
            break
        assert response.status_code == 200, response.text
        text = response.json()["outputs"][0]["data"]
        assert version_of_text(text, steps) == (version or version_of_text(text, steps))
        version = version_of_text(text, steps)
    return version


def stream(http, at):
    """A stream keeps its version, whatever is published meanwhile."""
    url = str(http.base_url).rstrip("/")
    with WebSocketStream(url, "model=made") as client:
        message = {"text": TEXT}
        client.send(message)
        first = client.receive()
        if "error" in first:
            assert "the model takes tokens" in str(first)
            message = {"tokens": TEXT.split()}
            client.send(message)
            first = client.receive()
        version = version_of_text(first["probabilities"])
        client.send(message)
        assert version_of_text(client.receive()["probabilities"], 2) == version
        client.end()
    return version


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(1_500, marks=pytest.mark.slow),
        pytest.param(10_000, marks=pytest.mark.nightly),
    ],
)
def test_kinds(tmp_path, answers):
    """Each answer, of every door, is that of the version that computed it."""
    functions = [partial(classify, body) for body in (SMALL, LARGE, LARGE, ESCAPED)]
    functions += [infer, predict, sequence, stream]
    root = tmp_path / "bundles"
    put(root, 1, kind="characters")
    with (
        versioned_service(tmp_path, reload_seconds=0, admin=True) as service,
        Clients(service.url, *functions) as clients,
    ):
        for version in itertools.count(2):
            service.put(version, kind=("tokens", "characters")[version % 2])
            service.remove(version - 1)
            assert service.admin("load") == 200
            clients.wait_answered()
            count = sum(map(len, clients.seen))
            if count >= answers:
                break
            assert version < MAX_VERSIONS
    for versions in clients.seen:
        assert {1, 0} == {seen % 2 for seen in versions}
