"""Callers with different API keys: how they share sequences, streams and rates. All
through a real server."""

import contextlib
import hashlib
import json
import time

import httpx
import pytest
import websockets.sync.client as web_sockets
from websockets.exceptions import InvalidStatus

from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import SECONDS, running

FRAME = [1, 2, 3]


@pytest.fixture(scope="module")
def keyed(bundles):
    """A server with two API keys, and a client for each key."""
    keys = ("ann", "bob")
    digests = {key: hashlib.sha256(key.encode()).hexdigest() for key in keys}
    settings = Settings(
        port=0,
        bundles=bundles,
        api_keys=",".join(f"{key}:{digest}" for key, digest in digests.items()),
        max_streams=4,
        rate_per_key=30,
    )
    with (
        running(settings, load_engine=OnnxEngine) as server,
        contextlib.ExitStack() as stack,
    ):
        options = {"base_url": server.url, "timeout": SECONDS}
        clients = [httpx.Client(headers={"X-API-Key": key}, **options) for key in keys]
        yield server, *map(stack.enter_context, clients)


def open_stream(server, client):
    url = f"{server.url.replace('http', 'ws')}/stream?model=tags"
    headers = {"X-API-Key": client.headers["X-API-Key"]}
    return web_sockets.connect(url, additional_headers=headers, proxy=None)


def infer(client, number, *, start=False, end=False):
    """Send a step of a sequence, and return the status."""
    frames = {"name": "frames", "datatype": "FP32", "shape": [1, 1, 3]}
    parameters = {"sequence_start": start, "sequence_end": end}
    body = {"inputs": [frames | {"data": FRAME}]}
    body["parameters"] = parameters | {"sequence_id": number}
    time.sleep(0.05)  # within the rate limit
    return client.post("/v2/models/tags/infer", json=body).status_code


def test_sequences(keyed):
    """Sequences with the same id are different ones for different keys, and one
    key cannot occupy all places."""
    _, ann, bob = keyed
    assert infer(ann, 1, start=True) == 200
    assert infer(bob, 1) == 400
    assert infer(bob, 1, start=True) == 200
    assert infer(bob, 1, end=True) == 200
    assert infer(ann, 1, end=True) == 200
    statuses = [infer(ann, n, start=True) for n in range(10, 14)]
    assert statuses == [200, 200, 503, 503]
    assert infer(bob, 10, start=True) == 200
    for client, number in ((ann, 10), (ann, 11), (bob, 10)):
        assert infer(client, number, end=True) == 200


def test_state_tokens(keyed):
    """A state token is valid only with the key for which it was signed."""
    _, ann, bob = keyed
    body = {"sequences": [[FRAME]], "model": "tags", "return_state": True}
    state = ann.post("/label", json=body).json()["predictions"][0]["state"]
    body["states"] = [state]
    assert ann.post("/label", json=body).status_code == 200
    response = bob.post("/label", json=body)
    assert response.status_code == 422
    assert response.json()["type"].endswith("invalid-state")


def test_streams(keyed):
    """One key cannot open all streams."""
    server, ann, bob = keyed
    time.sleep(0.5)
    with open_stream(server, ann), open_stream(server, ann):
        with pytest.raises(InvalidStatus) as caught:
            open_stream(server, ann)
        assert caught.value.response.status_code == 503
        with open_stream(server, bob):
            pass


def test_rate_of_messages(keyed):
    """Each message of a stream counts for the rate of its key."""
    server, _, bob = keyed
    time.sleep(1)
    with open_stream(server, bob) as client:
        answers = []
        for _ in range(60):
            client.send(json.dumps({"frames": [FRAME]}))
            answers.append(json.loads(client.recv(SECONDS)))
        refusals = [a["error"] for a in answers if "error" in a]
        assert len(refusals) >= 15
        assert {error["status"] for error in refusals} == {429}
        assert refusals[0]["retry_after"] >= 1
        client.send('{"end": true}')
