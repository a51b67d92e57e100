"""The clients send a request again after 429, 502, 503 and lost connections."""

import itertools
import time

import numpy as np
import pytest

from service.client import ClientError, ConnectionLost, RequestError, retries
from tests.service.client.scripted import RESET, Reply, in_turn, scripted

BODY = {
    "model": "m",
    "version": "1",
    "classes": ["a"],
    "predictions": [{"label": "a", "probability": 1, "probabilities": [1]}],
}
MODEL = {"name": "m", "version": "1", "task": "label", "classes": ["a"]}
MODEL |= {"feature_count": 1, "streamable": True, "features": ["x"], "models": []}
GOOD = Reply(200, BODY | MODEL)
FRAMES = np.zeros((2, 1))
CALLS = {
    "classify": lambda client: client.classify([FRAMES]),
    "models": lambda client: client.models(),
    "model": lambda client: client.model("m"),
}


def test_sent_again(kind):
    """A request that is refused for now, or whose connection breaks, is sent again."""
    for failure in (Reply(429), Reply(502), Reply(503), RESET):
        for call in CALLS.values():
            with scripted(in_turn(failure, failure, GOOD)) as server:
                call(kind.client(server.url))
                first, *others = server.requests
            assert [(r.path, r.body) for r in others] == [(first.path, first.body)] * 2


def test_bounded(kind):
    """It is sent again `retries` times, each after twice the wait; then the last error is
    raised. `ready` is never sent again."""
    for failure, error in ((Reply(503), RequestError), (RESET, ConnectionLost)):
        for count in (0, 1, 4):
            with scripted(in_turn(failure)) as server:
                client = kind.client(server.url, retries=count)
                for call in CALLS.values():
                    server.requests.clear()
                    with pytest.raises(error):
                        call(client)
                    assert len(server.requests) == count + 1
    with scripted(in_turn(RESET)) as server:
        with pytest.raises(ConnectionLost):
            kind.client(server.url).ready()
        assert len(server.requests) == 1


def test_not_sent_again(kind):
    """No other error is: the answer would be the same."""
    for status in (400, 401, 404, 413, 422, 500, 504):
        with scripted(in_turn(Reply(status))) as server:
            with pytest.raises(RequestError):
                kind.client(server.url).model("m")
            assert len(server.requests) == 1


def test_waits(monkeypatch):
    """The waits double, and differ by chance."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 1)
    waits = np.empty((200, 4))
    for row in waits:
        backoff = retries.Backoff(4, 1_000)
        row[:] = [backoff.seconds_after(ConnectionLost("")) for _ in range(4)]
    for place, seconds in enumerate((1, 2, 4, 8)):
        assert 0.5 * seconds <= waits[:, place].min() < 0.7 * seconds
        assert 1.3 * seconds < waits[:, place].max() <= 1.5 * seconds


def test_retry_after(kind):
    """A wait is no shorter than the service says, in the header or in the body."""
    error = RequestError(503, {"retry_after": 7}, {}, "")
    assert 7 < retries.Backoff(4, 60).seconds_after(error) < 8
    with scripted(in_turn(Reply(429, headers={"Retry-After": "1"}), GOOD)) as server:
        kind.client(server.url).classify([FRAMES])
        begun, ended = (request.seconds for request in server.requests)
    assert 1 <= ended - begun < 3


def test_total_time(kind):
    """A retry that could not begin in `retry_seconds` is not awaited."""
    with scripted(in_turn(Reply(503, headers={"Retry-After": "60"}))) as server:
        begun = time.monotonic()
        with pytest.raises(RequestError) as caught:
            kind.client(server.url).classify([FRAMES])
        assert caught.value.retry_after == 60
        with pytest.raises(ClientError):
            kind.client(server.url, retry_seconds=0).classify([FRAMES])
        assert time.monotonic() - begun < 5
        assert len(server.requests) == 2


def test_many_faults(kind):
    """Every call is answered by a service of which every other answer fails."""
    faults = itertools.cycle([RESET, GOOD, Reply(503), GOOD])
    with scripted(lambda _: next(faults)) as server:
        client = kind.client(server.url)
        for _ in range(50):
            assert client.classify([FRAMES]).predictions[0].label == "a"
