"""Calls that are larger than the limits are sent as several requests."""

import itertools
import subprocess
import sys
import threading
import time

import anyio
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.client import (
    AsyncClient,
    Client,
    ConnectionLost,
    InvalidAnswer,
    RequestError,
    calls,
    requests,
    tables,
)
from service.client.models import Limits
from service.settings import Settings
from tests.service.client.scripted import RESET, Reply, scripted
from tests.support.bundles import OnnxEngine, random_frames
from tests.support.servers import SECONDS, running
from tests.support.versions import versioned_service

SMALL = {"max_sequences": 3, "max_steps": 9, "max_cells": 60, "max_body_bytes": 700}


@pytest.fixture(scope="module")
def small(bundles):
    """A service with small limits."""
    options = {"bundles": bundles, "default_label": "tags", "workers": 1}
    with running(
        Settings(port=0, **options, **SMALL), load_engine=OnnxEngine
    ) as service:
        yield service


def sequences_of(lengths):
    rng = np.random.default_rng(len(lengths))
    return [random_frames(rng, length) for length in lengths]


def assert_same(answer, right):
    assert (answer.model, answer.version) == (right.model, right.version)
    assert answer.classes == right.classes
    for part, whole in zip(answer.predictions, right.predictions, strict=True):
        np.testing.assert_allclose(part.probabilities, whole.probabilities, atol=1e-6)


class TestAnswers:
    @pytest.mark.parametrize("task", ["classify", "label"])
    def test_limits(self, small, server, kind, task):
        """The answers are those of one request, in order, whichever limit is reached."""
        for lengths in ([1] * 11, [9, 1] * 5, [9] * 4, [3], [*range(1, 10)] * 3):
            sequences = sequences_of(lengths)
            answer = getattr(kind.client(small.url), task)(sequences)
            assert_same(answer, getattr(kind.client(server), task)(sequences))

    def test_many(self, server, kind):
        """300 sequences are answered under the limits that services have by default."""
        sequences = sequences_of([1, 2, 3] * 100)
        client = kind.client(server)
        answer = client.classify(sequences)
        assert len(answer.predictions) == 300
        right = [client.classify(sequences[n : n + 50]) for n in range(0, 300, 50)]
        rows = [p.probabilities for part in right for p in part.predictions]
        np.testing.assert_allclose(
            [p.probabilities for p in answer.predictions], rows, atol=1e-6
        )

    def test_options(self, small, kind):
        """`top_k`, and tokens to continue from, go with their sequences."""
        client = kind.client(small.url)
        sequences = sequences_of([4] * 8)
        whole = client.label(sequences)
        first = client.label([s[:2] for s in sequences], return_state=True)
        tokens = [p.state for p in first.predictions]
        rest = client.label([s[2:] for s in sequences], states=tokens, top_k=1)
        for start, end, right in zip(
            first.predictions, rest.predictions, whole.predictions, strict=True
        ):
            assert start.labels + end.labels == right.labels
            assert len(end.top) == 2

    def test_progress(self, small, kind):
        """`progress` is called after each part, in order."""
        counts = []
        kind.client(small.url).classify(
            sequences_of([1] * 8), progress=lambda *count: counts.append(count)
        )
        assert counts == [(3, 8), (6, 8), (8, 8)]
        counts.clear()
        kind.client(small.url).classify(
            sequences_of([1]), progress=lambda *count: counts.append(count)
        )
        assert counts == [(1, 1)]

    def test_one_request(self, server, kind, http):
        """A call within the limits is one request, and asks for no limits."""
        with scripted(pass_on(server)) as between:
            kind.client(between.url).classify(sequences_of([5] * 20))
            assert [request.path for request in between.requests] == ["/classify"]


class TestRefused:
    def test_paths(self, small, kind):
        """Paths of errors are those of the call's sequences."""
        client = kind.client(small.url)
        for index in (0, 2, 3, 7):
            sequences = sequences_of([2] * 8)
            sequences[index] = sequences[index][:, :2]
            with pytest.raises(RequestError) as caught:
                client.classify(sequences)
            assert caught.value.status == 422
            paths = [error["path"] for error in caught.value.errors]
            assert paths == [f"sequences[{index}][0]", f"sequences[{index}][1]"]
            assert f"sequences[{index}][0]: has 2 features" in str(caught.value)
        with pytest.raises(RequestError) as caught:
            client.classify(sequences_of([2] * 8), states=[None] * 6 + ["no", None])
        assert [error["path"] for error in caught.value.errors] == ["states[6]"]

    def test_long_sequence(self, small, kind):
        """A sequence that is too long is named, before a large call is sent at all."""
        for lengths, index in (([10], 0), ([1, 10], 1), ([1] * 300 + [10], 300)):
            with pytest.raises(RequestError) as caught:
                kind.client(small.url).classify(sequences_of(lengths))
            assert caught.value.status == 413
            assert caught.value.address == small.url
            assert caught.value.type == "urn:unrolled:error:too-large"
            message = f"at most 9 steps; sequences[{index}]: has 10 steps"
            assert message in str(caught.value)

    def test_states(self, kind):
        """A large call needs a token or None for each sequence."""
        with pytest.raises(ValueError, match="states: 3 for 300 sequences"):
            kind.client().classify(sequences_of([1] * 300), states=[None] * 3)

    def test_not_a_sequence(self, kind):
        """A sequence that is no array is named."""
        with pytest.raises(ValueError, match=r"^sequences\[1\]: "):
            kind.client().classify([[[1]], [[1], [2, 3]]])


class TestFaults:
    @pytest.mark.slow
    def test_version_changes(self, tmp_path, kind):
        """One version answers all parts, also if another takes its place meanwhile."""
        sequences = [[[7]]] * 20
        with versioned_service(tmp_path, 1, max_sequences=2) as service:
            counts = []

            def swap(done, total):
                counts.append(done)
                if len(counts) == 3:
                    service.put(2)
                    service.wait_status("made@1", 404)

            answer = kind.client(service.url).classify(
                sequences, model="made", progress=swap
            )
            assert counts[:3] == [2, 4, 6]
            assert counts[-10:] == [*range(2, 21, 2)]
            assert len(counts) > 10
            assert answer.version == "2"
            weights = {tuple(p.probabilities) for p in answer.predictions}
            assert weights == {(3, 9, 9)}
            with pytest.raises(RequestError) as caught:
                kind.client(service.url).classify(sequences, model="made@1")
            assert caught.value.status == 404

    def test_versions_differ(self, kind):
        """So it is behind a proxy to services of several versions; a call whose versions
        never agree is refused."""
        versions = itertools.count(1)
        with scripted(answer_all(lambda: 1)) as server:
            client = kind.client(server.url)
            assert client.classify([[[1]]] * 600).version == "1"
            sent = [r.body["model"] for r in server.requests[2:]]
            assert sent == ["m@1", "m@1"]
        with scripted(answer_all(lambda: next(versions))) as server:
            with pytest.raises(RequestError) as caught:
                kind.client(server.url).classify([[[1]]] * 600)
            assert (caught.value.status, caught.value.address) == (409, server.url)
            assert "repeat the call" in str(caught.value)

    def test_faults(self, server, kind):
        """Lost connections and refusals for now change no answer."""
        forward, number = pass_on(server), itertools.count()

        def answer(request):
            fault = next(number) % 5
            return {1: RESET, 3: Reply(503)}.get(fault) or forward(request)

        sequences = sequences_of([1, 2, 3, 4] * 300)
        with scripted(answer) as between:
            result = kind.client(between.url).classify(sequences)
        assert_same(result, kind.client(server).classify(sequences))

    def test_hidden_limit(self, server, kind):
        """Parts that are too large for a proxy, whose limit is not known, are halved."""
        forward = pass_on(server)

        def answer(request):
            if request.body is None:
                return Reply(404)
            return (
                Reply(413) if len(request.body["sequences"]) > 7 else forward(request)
            )

        sequences = sequences_of([1, 2] * 50)
        with scripted(answer) as between:
            client = kind.client(between.url)
            assert_same(client.label(sequences), kind.client(server).label(sequences))
            with scripted(lambda _: Reply(413)) as refusing:
                with pytest.raises(RequestError) as caught:
                    kind.client(refusing.url).label(sequences)
                assert caught.value.status == 413

    def test_parallel(self, kind):
        """A few parts are on their way at a time."""
        together = threading.Barrier(calls.PARALLEL)
        reply, first = answer_all(lambda: 1), threading.Event()

        def answer(request):
            if request.body is not None and first.is_set():
                together.wait(10)
            first.set() if request.body is not None else None
            return reply(request)

        with scripted(answer) as server:
            count = 256 * (1 + 2 * calls.PARALLEL)
            assert len(kind.client(server.url).classify([[[1]]] * count).predictions)

    def test_stops(self, kind):
        """After an error no more parts are sent, and none is sent again."""
        reply, number = answer_all(lambda: 1), itertools.count()

        def answer(request):
            if request.body is None:
                return reply(request)
            place = next(number)
            return reply(request) if place == 0 else Reply(500 if place == 1 else 503)

        with scripted(answer) as server:
            client = kind.client(server.url, retries=10**6)
            with pytest.raises(RequestError) as caught:
                client.classify([[[1]]] * 256 * 100)
            assert caught.value.status == 500
            time.sleep(0.1)
            sent = len(server.requests)
            time.sleep(0.2)
            assert len(server.requests) == sent < 100

    def test_lost(self, kind):
        """If the service is lost in between, so is the call."""
        reply, number = answer_all(lambda: 1), itertools.count()

        def answer(request):
            return reply(request) if next(number) < 4 else RESET

        with scripted(answer) as server, pytest.raises(ConnectionLost):
            kind.client(server.url).classify([[[1]]] * 256 * 6)

    def test_other_count(self, kind):
        """An answer with more or fewer predictions than sequences is InvalidAnswer."""
        reply = answer_all(lambda: 1)

        def answer(request):
            body = reply(request).body
            return Reply(200, body | {"predictions": body["predictions"][1:]})

        with scripted(answer) as server, pytest.raises(InvalidAnswer):
            kind.client(server.url).classify([[[1]]] * 2)


def pass_on(server):
    """A function that asks a real service."""

    def answer(request):
        url = f"{server}{request.path}"
        response = httpx.request(request.method, url, json=request.body)
        return Reply(response.status_code, response.json())

    return answer


def answer_all(version):
    """A function that answers requests for the model `m` of this version."""
    prediction = {"label": "a", "probability": 1, "probabilities": [1]}

    def answer(request):
        if request.body is None:
            return Reply(200, {"models": []})
        count = len(request.body["sequences"])
        body = {"model": "m", "version": str(version()), "classes": ["a"]}
        return Reply(200, body | {"predictions": [prediction] * count})

    return answer


@given(
    lengths=st.lists(st.integers(1, 12), max_size=30),
    limits=st.builds(
        Limits,
        sequences=st.integers(1, 10),
        steps=st.just(12),
        numbers=st.integers(1, 60),
        body_bytes=st.integers(1, 1200),
    ),
    tokens=st.booleans(),
)
@settings(deadline=None)
def test_cut(lengths, limits, tokens):
    """Parts have all sequences in order; one has several only within the limits, and the
    next sequence does not fit in it."""
    states = ["t" * length for length in lengths] if tokens else None
    sequences = sequences_of(lengths)
    names = tables.Names(None, None, None, ())
    request = requests.prepare(
        requests.Arguments(sequences, names, "walks", None, states, True, None), None
    )
    parts = list(request.cut(limits))
    assert [p.begin for p in parts] == [0, *(p.end for p in parts[:-1])]
    assert parts[-1].end == len(sequences)

    def fits(begin, end):
        texts = [text for part in parts for text in part.texts][begin:end]
        body = request.encode(requests.Part(begin, texts), "walks@1")
        return (
            len(texts) <= limits.sequences
            and sum(s.size for s in sequences[begin:end]) <= limits.numbers
            and len(body) <= limits.body_bytes
        )

    for part in parts:
        assert len(part.texts) <= 1 or fits(part.begin, part.end)
    # Up to the bytes that are kept for the model's name.
    roomy = Limits(limits.sequences, 12, limits.numbers, 2**20)
    for part, other in itertools.pairwise(request.cut(roomy)):
        assert other.begin == part.end
        size = sum(s.size for s in sequences[part.begin : part.end + 1])
        full = len(part.texts) == limits.sequences or size > limits.numbers
        assert full


def test_threads_end(server):
    """No thread is left after a large call."""
    with Client(server) as client:
        client.classify(sequences_of([1] * 1100))
        deadline = time.monotonic() + 10
        while any(t.name == "part of a call" for t in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


INTERRUPTED = """
import signal, sys
from service.client import Client
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.alarm(1)
Client(sys.argv[1], timeout=120).classify([[[1]]] * 2000)
"""


@pytest.mark.slow
def test_interrupted():
    """Ctrl-C ends a program at once while a service hangs that has answered a part."""
    reply, number, end = answer_all(lambda: 1), itertools.count(), threading.Event()

    def answer(request):
        if request.body is not None and next(number):
            end.wait(SECONDS)
        return reply(request)

    with scripted(answer) as server:
        command = [sys.executable, "-c", INTERRUPTED, server.url]
        result = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, timeout=SECONDS / 2
        )
        end.set()
    assert "KeyboardInterrupt" in result.stderr
    assert next(number) > 1


@pytest.mark.anyio
async def test_cancelled(server):
    """A cancelled call leaves no task, and the client works on."""
    async with AsyncClient(server) as client:
        with anyio.move_on_after(0.02):
            await client.classify(sequences_of([5] * 3000))
        assert len((await client.classify(sequences_of([1]))).predictions) == 1
