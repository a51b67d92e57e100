"""A stream from Python, blocking or not: what it returns, what it raises, and when it
goes on by itself."""

import concurrent.futures
import inspect
import json
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress

import anyio
import anyio.from_thread
import anyio.to_thread
import numpy as np
import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.server import serve

from service.client import (
    AsyncClient,
    AsyncStream,
    Client,
    InvalidAnswer,
    RequestError,
    Stream,
    StreamLost,
    results,
)
from service.client import stream as client_stream
from service.pool import spawn
from service.settings import Settings
from service.worker.engine import ENGINES
from tests.support.bundles import copy_bundle, random_frames
from tests.support.processes import free_port
from tests.support.scheduler import expected, frames
from tests.support.servers import SECONDS, running, value, wait
from tests.support.streams import (
    KEY,
    Proxy,
    WebSocketStream,
    counting,
    hold_engines,
    release_engines,
    streams_open,
    wait_closed,
    wait_entered,
)

FRAMES = random_frames(np.random.default_rng(0), 8)
CLOSE = {"rtol": 0, "atol": 1e-5}


class Blocking:
    """Clients that block, and their streams."""

    name = "blocking"

    def __init__(self):
        self._stack = ExitStack()

    def client(self, url, **options):
        return self._stack.enter_context(Client(url, **options))

    def stream(self, client, model, **options):
        return self._stack.enter_context(client.stream(model, **options))

    def call(self, method, *given, **named):
        """What a method of a client's gives."""
        return method(*given, **named)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()


class Waiting(Blocking):
    """The same of those for asyncio, on a loop in a thread of its own."""

    name = "async"

    def __init__(self):
        super().__init__()
        started = anyio.from_thread.start_blocking_portal()
        self.portal = self._stack.enter_context(started)

    def client(self, url, **options):
        async def make():
            return AsyncClient(url, **options)

        made = self.portal.call(make)
        self._stack.callback(self.portal.call, made.close)
        return made

    def stream(self, client, model, **options):
        made = client.stream(model, **options)
        self._stack.callback(self.portal.call, made.close)
        return Awaited(made, self.portal)

    def call(self, method, *given, **named):
        async def run():
            return await method(*given, **named)

        return self.portal.call(run)


class Awaited:
    """An `AsyncStream` behind the methods of `Stream`."""

    def __init__(self, made, portal):
        self.made, self._portal = made, portal

    @property
    def steps(self):
        return self.made.steps

    @property
    def state(self):
        return self.made.state

    def send(self, *given, **named):
        return self._call(self.made.send, *given, **named)

    def end(self):
        return self._call(self.made.end)

    def close(self):
        return self._call(self.made.close)

    def _call(self, method, *given, **named):
        async def run():
            return await method(*given, **named)

        return self._portal.call(run)


@pytest.fixture(params=[Blocking, Waiting], ids=lambda kind: kind.name)
def kind(request):
    with request.param() as made:
        yield made


def delays(first):
    return [0, *(first * 2**attempt for attempt in range(8))]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Attempts to go on follow each other quickly."""
    monkeypatch.setattr(client_stream, "DELAYS", delays(0.002))


@pytest.fixture
def _patient(_impatient, monkeypatch):
    """They do not."""
    monkeypatch.setattr(client_stream, "DELAYS", delays(0.05))


@pytest.fixture(scope="module")
def _counted(tmp_path_factory):
    with counting(tmp_path_factory.mktemp("counted") / "bundles") as made:
        yield made


@pytest.fixture
def counted(_counted):
    """The service with an engine that counts, and no stream."""
    wait_closed(_counted, "made")
    yield _counted
    release_engines(_counted)


@pytest.fixture(scope="module")
def _hasty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hasty") / "bundles"
    with counting(folder, stream_idle_seconds=0.1) as made:
        yield made


@pytest.fixture
def hasty(_hasty):
    """The same, which waits for no stream for long."""
    wait_closed(_hasty, "made")
    return _hasty


def assert_counts(answer, length, first=7):
    """It is the answer after so many steps of that sequence."""
    assert answer.steps == length
    np.testing.assert_array_equal(answer.probabilities, expected(length, first)[-1])


def part(begin, end, first=7):
    return frames(end, first)[begin:]


class TestAnswers:
    def test_classify(self, running_server, kind):
        """`send` returns the class so far, typed, with the steps so far."""
        client = kind.client(running_server.url)
        stream = kind.stream(client, "walks")
        whole = kind.call(client.classify, [FRAMES[:3], FRAMES], model="walks")
        for begin, end, right in ((0, 3, 0), (3, 8, 1)):
            answer = stream.send(FRAMES[begin:end])
            assert type(answer) is results.Classification
            right = whole.predictions[right]
            np.testing.assert_allclose(
                answer.probabilities, right.probabilities, **CLOSE
            )
            assert answer.probabilities.dtype == np.float32
            assert answer.label == right.label
            assert answer.probability == pytest.approx(right.probability, abs=1e-5)
            assert answer.top is None
            assert answer.steps == stream.steps == end

    def test_label(self, running_server, kind):
        """Of a model that labels it returns the classes of these frames."""
        client = kind.client(running_server.url)
        stream = kind.stream(client, "tags")
        whole = kind.call(client.label, [FRAMES], model="tags").predictions[0]
        for begin, end in ((0, 1), (1, 6), (6, 8)):
            answer = stream.send(FRAMES[begin:end])
            assert type(answer) is results.Labelling
            right = whole.probabilities[begin:end]
            np.testing.assert_allclose(answer.probabilities, right, **CLOSE)
            assert answer.labels == whole.labels[begin:end]
            assert answer.steps == end

    def test_top_k(self, running_server, kind):
        """With `top_k` there are choices instead."""
        client = kind.client(running_server.url)
        one = kind.stream(client, "walks", top_k=2).send(FRAMES)
        steps = kind.stream(client, "tags", top_k=1).send(FRAMES)
        assert one.probabilities is None
        assert [type(choice) for choice in one.top] == [results.Choice] * 2
        assert one.top[0].label == one.label
        assert [step[0].label for step in steps.top] == steps.labels

    @pytest.mark.parametrize(
        "given",
        [
            pytest.param(FRAMES.tolist(), id="lists"),
            pytest.param(FRAMES.astype(np.float64), id="float64"),
            pytest.param(np.asfortranarray(FRAMES), id="fortran"),
            pytest.param(np.repeat(FRAMES, 2, 0)[::2], id="strided"),
        ],
    )
    def test_any_array(self, running_server, kind, given):
        """Whatever is like an array is taken for what it holds."""
        client = kind.client(running_server.url)
        expected = kind.call(client.classify, [FRAMES], model="walks").predictions[0]
        answer = kind.stream(client, "walks").send(given)
        np.testing.assert_allclose(
            answer.probabilities, expected.probabilities, **CLOSE
        )

    def test_states(self, running_server, kind):
        """Each answer brings a token, which a stream or a request goes on from; with
        `resume=False` only where it is asked for."""
        client = kind.client(running_server.url)
        stream = kind.stream(client, "walks", resume=False)
        assert stream.state is None
        assert stream.send(FRAMES[:1]).state is None
        answer = stream.send(FRAMES[1:2], return_state=True)
        assert stream.state == answer.state is not None
        assert stream.send(FRAMES[2:4]).state is None
        assert stream.send(FRAMES[4:]).state is None
        assert stream.steps == 8
        resuming = kind.stream(client, "walks", state=answer.state)
        assert resuming.state == answer.state
        later = resuming.send(FRAMES[2:])
        assert later.steps == resuming.steps == 8
        assert resuming.state == later.state is not None
        given = kind.call(
            client.classify,
            [FRAMES[2:]],
            model="walks",
            states=[answer.state],
            return_state=True,
        ).predictions[0]
        whole = kind.call(client.classify, [FRAMES], model="walks").predictions[0]
        for one in (later, given):
            assert one.steps == 8
            np.testing.assert_allclose(one.probabilities, whole.probabilities, **CLOSE)
        again = kind.stream(client, "walks", state=given.state)
        assert again.send(FRAMES).steps == 16

    def test_end(self, counted, kind):
        """`end` gives the token of where it ended, and ends the stream."""
        client = kind.client(counted.url)
        stream = kind.stream(client, "made", resume=False)
        stream.send(part(0, 3))
        token = stream.end()
        assert token == stream.state is not None
        assert stream.steps == 3
        wait_closed(counted, "made")
        later = kind.stream(client, "made", state=token)
        assert_counts(later.send(part(3, 5)), 5)

    def test_end_of_nothing(self, counted, kind):
        """Of a stream to which nothing was sent it gives what it was given."""
        client = kind.client(counted.url)
        assert kind.stream(client, "made").end() is None
        token = kind.stream(client, "made").send(part(0, 4)).state
        stream = kind.stream(client, "made", state=token)
        other = stream.end()
        assert stream.steps == 4
        assert_counts(kind.stream(client, "made", state=other).send(part(4, 5)), 5)

    def test_closes(self, counted, kind):
        """A stream is opened by its first message, and closed with its block."""
        client = kind.client(counted.url)
        stream = kind.stream(client, "made")
        assert streams_open(counted, "made") == 0
        stream.send(part(0, 1))
        assert streams_open(counted, "made") == 1
        stream.close()
        wait_closed(counted, "made")
        stream.close()


class TestRefused:
    def test_message(self, counted, kind):
        """A message at fault raises what the service says of it, with status and
        path, and the stream goes on from where it was."""
        client = kind.client(counted.url)
        for resume in (True, False):
            stream = kind.stream(client, "made", resume=resume)
            for steps in (0, 2):
                with pytest.raises(RequestError) as caught:
                    stream.send([[1, 2]])
                error = caught.value
                assert error.status == 422
                assert error.type == "urn:unrolled:error:invalid-request"
                assert error.title
                assert error.request_id
                assert error.errors[0]["path"] == "frames[0]"
                assert "frames[0]: has 2 features" in str(error)
                assert stream.steps == steps
                assert_counts(stream.send(part(steps, steps + 2)), steps + 2)
        assert streams_open(counted, "made") == 2

    def test_not_a_number(self, counted, kind):
        """A number that JSON doesn't have is refused, with its place."""
        stream = kind.stream(kind.client(counted.url), "made")
        with pytest.raises(RequestError) as caught:
            stream.send([[1], [np.nan]])
        assert caught.value.errors[0]["path"] == "frames[1][0]"
        assert_counts(stream.send(part(0, 1)), 1)

    def test_ragged(self, counted, kind):
        """What is no array is refused before it is sent, and harms nothing."""
        stream = kind.stream(kind.client(counted.url), "made")
        for steps in (0, 1):
            with pytest.raises(ValueError, match="inhomogeneous"):
                stream.send([[1, 2], [1]])
            assert_counts(stream.send(part(steps, steps + 1)), steps + 1)

    @pytest.mark.parametrize(
        ("model", "options", "status", "slug"),
        [
            ("nobody", {}, 404, "unknown-model"),
            ("both", {}, 422, "not-streamable"),
            ("walks", {"top_k": 0}, 422, "invalid-request"),
            ("", {}, 422, "invalid-request"),
            ("walks&x=1", {}, 404, "unknown-model"),
        ],
    )
    def test_at_its_beginning(self, running_server, kind, model, options, status, slug):
        """A stream that can't begin raises so with the first message, as a request
        would, and is not tried again."""
        name = "unrolled_refused_requests_total"
        before = value(running_server.metrics(), name, kind=slug)
        stream = kind.stream(kind.client(running_server.url), model, **options)
        with pytest.raises(RequestError) as caught:
            stream.send(FRAMES)
        assert caught.value.status == status
        assert caught.value.type == f"urn:unrolled:error:{slug}"
        assert caught.value.detail
        assert len(caught.value.request_id) == 16
        wait(
            lambda: value(running_server.metrics(), name, kind=slug) == before + 1,
            "it is counted",
        )

    @pytest.mark.parametrize("token", ["x", "tags"])
    def test_token(self, running_server, kind, token):
        """A token that is none, or another model's, is refused each time."""
        client = kind.client(running_server.url)
        if token == "tags":
            token = kind.stream(client, "tags").send(FRAMES).state
        stream = kind.stream(client, "walks", state=token)
        for _ in range(2):
            with pytest.raises(RequestError) as caught:
                stream.send(FRAMES)
            assert caught.value.status in (409, 422)
            assert caught.value.errors[0]["path"] == "state"

    def test_options(self, running_server, kind):
        """The client's headers are sent with the handshake: an Authorization for a
        proxy, say."""
        client = kind.client(running_server.url, headers={"X-Request-ID": "mine"})
        with pytest.raises(RequestError) as caught:
            kind.stream(client, "nobody").send(FRAMES)
        assert caught.value.request_id == "mine"


class TestGoesOn:
    def test_no_place(self, tmp_path, kind, monkeypatch):
        """A stream for which there is no place waits for one, for a while."""
        name, labels = "unrolled_refused_requests_total", {"kind": "too-many-streams"}
        with counting(tmp_path / "one", max_streams=1) as service:
            stream = kind.stream(kind.client(service.url), "made")

            def refused():
                return value(service.metrics(), name, **labels)

            with WebSocketStream(service.url, "model=made") as other:
                with pytest.raises(RequestError) as caught:
                    stream.send(part(0, 1))
                assert caught.value.status == 503
                assert caught.value.retry_after == 10
                assert caught.value.type.endswith("too-many-streams")
                before = refused()
                assert before == len(client_stream.DELAYS)
                monkeypatch.setattr(client_stream, "DELAYS", delays(0.05))
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    sent = pool.submit(stream.send, part(0, 2))
                    wait(lambda: refused() > before, "it is refused")
                    other.close()
                    assert_counts(sent.result(SECONDS), 2)

    def test_nobody_there(self, kind):
        """Where nobody listens, an OSError says so after a while."""
        stream = kind.stream(kind.client(f"http://127.0.0.1:{free_port()}"), "made")
        for ask in (lambda: stream.send(part(0, 1)), stream.end):
            with pytest.raises(OSError, match=r"(?i)refused|connect call failed"):
                ask()

    def test_idle(self, hasty, kind):
        """After the service has ended it as idle it goes on with the next message."""
        stream = kind.stream(kind.client(hasty.url), "made")
        for steps in (0, 1, 2):
            assert_counts(stream.send(part(steps, steps + 1)), steps + 1)
            wait_closed(hasty, "made")
        assert stream.end() is not None
        assert stream.steps == 3

    def test_idle_before_it_took_anything(self, hasty, kind):
        """So it does where the service has taken nothing but refused something."""
        client = kind.client(hasty.url)
        token = kind.stream(client, "made").send(part(0, 3)).state
        stream = kind.stream(client, "made", state=token)
        with pytest.raises(RequestError):
            stream.send([[1, 2]])
        wait_closed(hasty, "made")
        assert_counts(stream.send(part(3, 5)), 5)

    def test_ended_while_it_sends(self, hasty, kind):
        """So it does where the service ends it while its first message, which brings
        the token, is on the way."""
        with Proxy(hasty.url) as proxy:
            token = kind.stream(kind.client(hasty.url), "made").send(part(0, 3)).state
            wait_closed(hasty, "made")
            stream = kind.stream(kind.client(proxy.url), "made", state=token)
            proxy.keep_back()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                sent = pool.submit(stream.send, part(3, 5))
                wait(lambda: streams_open(hasty, "made") == 1, "it is open")
                wait_closed(hasty, "made")
                proxy.pass_on()
                assert_counts(sent.result(SECONDS), 5)

    def test_idle_without_tokens(self, hasty, kind):
        """A stream without tokens goes on after it was idle: the service's last line
        has one."""
        stream = kind.stream(kind.client(hasty.url), "made", resume=False)
        assert_counts(stream.send(part(0, 1)), 1)
        wait_closed(hasty, "made")
        # Its own side has seen the close, too.
        connection = getattr(getattr(stream, "made", stream), "_connection", None)
        if connection is not None:
            wait(lambda: connection.state.name == "CLOSED", "it is closed")
        assert_counts(stream.send(part(1, 2)), 2)

    @pytest.mark.usefixtures("_patient")
    def test_restart(self, tmp_path, kind):
        """A service that is stopped and started again with the same key goes on with
        each stream, also where a message is sent meanwhile."""
        port = free_port()
        streams = []
        with counting(tmp_path / "made", port=port) as service:
            client = kind.client(service.url)
            for first in range(1, 4):
                streams.append(kind.stream(client, "made"))
                assert_counts(streams[-1].send(part(0, first, first)), first, first)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            early = pool.submit(streams[0].send, part(1, 3, 1))
            with counting(tmp_path / "made", port=port):
                assert_counts(early.result(SECONDS), 3, 1)
                for first in (2, 3):
                    stream = streams[first - 1]
                    answer = stream.send(part(first, first + 2, first))
                    assert_counts(answer, first + 2, first)
                    assert stream.end() is not None

    def test_restart_with_another_key(self, tmp_path, kind):
        """With another key it is refused, and nothing begins anew by itself."""
        port = free_port()
        with counting(tmp_path / "made", port=port) as service:
            stream = kind.stream(kind.client(service.url), "made")
            stream.send(part(0, 2))
        with counting(tmp_path / "made", port=port, state_key="another key " * 2):
            for _ in range(2):
                with pytest.raises(RequestError) as caught:
                    stream.send(part(2, 3))
                assert caught.value.status == 422
                assert caught.value.type.endswith("invalid-state")

    def test_restart_with_another_bundle(self, bundles, tmp_path, kind):
        """So it is where another version of the model serves by then."""
        port = free_port()
        copy_bundle(bundles / "walks" / "1", tmp_path / "a" / "walks" / "1")
        copy_bundle(
            bundles / "walks" / "1", tmp_path / "b" / "walks" / "2", version="2"
        )
        own = {"port": port, "state_key": KEY, "workers": 1}
        start = spawn.thread(ENGINES)
        with running(Settings(bundles=tmp_path / "a", **own), start=start) as service:
            stream = kind.stream(kind.client(service.url), "walks")
            stream.send(FRAMES)
        with running(Settings(bundles=tmp_path / "b", **own), start=start):
            with pytest.raises(RequestError) as caught:
                stream.send(FRAMES)
            assert caught.value.status == 409

    def test_cut(self, counted, kind):
        """A connection that breaks is replaced, and the stream goes on."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made")
            for steps in (0, 2, 4, 6):
                assert_counts(stream.send(part(steps, steps + 2)), steps + 2)
                proxy.cut()
            assert stream.end() is not None
            assert stream.steps == 8
        wait_closed(counted, "made")

    @pytest.mark.parametrize("steps", [0, 3])
    def test_cut_before_the_answer(self, counted, kind, steps):
        """A message whose answer was lost is sent again, and counts once; also the
        very first."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made")
            if steps:
                assert_counts(stream.send(part(0, steps)), steps)
            hold_engines(counted)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                sent = pool.submit(stream.send, part(steps, steps + 2))
                wait_entered(counted)
                accepted = proxy.accepted
                proxy.cut()
                wait(lambda: proxy.accepted > accepted, "it is there again")
                release_engines(counted)
                assert_counts(sent.result(SECONDS), steps + 2)
            assert_counts(stream.send(part(steps + 2, steps + 3)), steps + 3)

    def test_lost(self, counted, kind):
        """Without tokens a stream whose connection breaks is lost, at once and for
        good."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made", resume=False)
            assert_counts(stream.send(part(0, 2)), 2)
            accepted = proxy.accepted
            proxy.cut()
            for ask in (lambda: stream.send(part(2, 3)), stream.end) * 2:
                with pytest.raises(StreamLost):
                    ask()
            assert proxy.accepted == accepted

    def test_not_lost(self, counted, kind):
        """It is not where nothing was taken yet, or the last answer had a token."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made", resume=False)
            with pytest.raises(RequestError):
                stream.send([[1, 2]])
            proxy.cut()
            assert_counts(stream.send(part(0, 2)), 2)
            assert_counts(stream.send(part(2, 3), return_state=True), 3)
            proxy.cut()
            assert_counts(stream.send(part(3, 5)), 5)

    def test_too_long(self, tmp_path, kind):
        """A message that is too long for the service raises an error that is
        documented, and is not sent again."""
        with (
            counting(tmp_path / "made", stream_message_bytes=1000) as service,
            Proxy(service.url) as proxy,
        ):
            stream = kind.stream(kind.client(proxy.url), "made")
            stream.send(part(0, 1))
            with pytest.raises((RequestError, OSError)):
                stream.send(np.zeros((1000, 1)))
            assert proxy.accepted <= 2
            assert_counts(stream.send(part(1, 2)), 2)


@contextmanager
def answering(handler, **options):
    """The address of a real server that opens WebSockets, and the heads that it got."""
    heads = []

    def keep(connection, request):
        heads.append(request.headers)
        return process(connection, request) if process else None

    process = options.pop("process", None)
    options |= {"process_request": keep, "compression": None, "close_timeout": 1}
    with serve(handler, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}", heads
        finally:
            server.shutdown()
            thread.join(SECONDS)


def parrot(*said):
    """Answers the first message with those of them, and no other."""

    def handler(connection):
        for place, _ in enumerate(connection):
            for message in () if place else said:
                connection.send(message)

    return handler


def refusing(status, body=b"", **headers):
    """Answers each handshake so."""

    def process(connection, request):
        lines = {name.replace("_", "-"): text for name, text in headers.items()}
        lines["Content-Length"] = str(len(body))
        return Response(status, "Said", Headers(lines), body)

    return process


def object_with(**members):
    return json.dumps(members)


def error_with(**members):
    return object_with(error=members, steps=0)


GOOD = {"steps": 1, "label": "a", "probability": 1.0, "probabilities": [1.0]}
DIGITS = "9" * 5000
NO_ANSWERS = [
    pytest.param("", id="empty"),
    pytest.param("<h1>Welcome</h1>", id="html"),
    pytest.param(b"\xff\xfe", id="binary"),
    pytest.param("[" * 100_000, id="deep"),
    pytest.param(DIGITS, id="long-number"),
    pytest.param("[]", id="list"),
    pytest.param("5", id="number"),
    pytest.param("{}", id="no-members"),
    pytest.param(object_with(label="a", probability=1, probabilities=[1]), id="steps"),
    pytest.param(object_with(**GOOD | {"steps": "1"}), id="steps-text"),
    pytest.param(object_with(**GOOD | {"label": 5}), id="label-number"),
    pytest.param(object_with(**GOOD | {"probabilities": "no"}), id="probabilities"),
    pytest.param(object_with(**GOOD | {"state": 5}), id="state-number"),
    pytest.param(object_with(steps=1, labels=["a"], probabilities=[1]), id="axes"),
    pytest.param(object_with(end="done"), id="end-without-steps"),
    pytest.param(object_with(end="done", steps=1, state=5), id="end-with-a-number"),
    pytest.param(object_with(error="no"), id="error-text"),
    pytest.param(error_with(), id="error-empty"),
    pytest.param(error_with(status="422", title="x"), id="error-status-text"),
    pytest.param(error_with(status=10**9, title="x"), id="error-status-large"),
]


class TestNotTheService:
    @pytest.mark.parametrize("said", NO_ANSWERS)
    def test_no_answer(self, kind, said):
        """A message that is none of the service's raises InvalidAnswer, which says
        what is wrong with it, and nothing was taken."""
        with answering(parrot(said)) as (url, _):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(InvalidAnswer) as caught:
                stream.send([[1]])
            assert caught.value.status == 101
            assert caught.value.detail
            assert (stream.steps, stream.state) == (0, None)

    def test_what_comes_next(self, kind):
        """What comes after it passes for no other message's answer: the stream goes
        on over another connection."""
        with answering(parrot("no", object_with(**GOOD))) as (url, heads):
            stream = kind.stream(kind.client(url), "made")
            for connections in (1, 2):
                with pytest.raises(InvalidAnswer):
                    stream.send([[1]])
                assert len(heads) == connections

    def test_problem(self, kind):
        """Problem details whose members are not as documented count as if they were
        not there."""
        problem = {"status": 422, "title": 5, "detail": [], "errors": [{}, 5]}
        with answering(parrot(error_with(**problem, retry_after=DIGITS))) as (url, _):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(RequestError) as caught:
                stream.send([[1]])
        error = caught.value
        assert not isinstance(error, InvalidAnswer)
        assert (error.status, error.detail) == (422, "")
        assert error.title
        assert (error.errors, error.retry_after) == ([], None)

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (304, b""),
            (404, b"no"),
            (404, b"[" * 100_000),
            (503, b'{"errors": [{}], "title": 5}'),
        ],
        ids=["redirect", "text", "deep", "problem"],
    )
    def test_handshake(self, kind, status, body):
        """So it is with a refusal of the handshake, whatever its body."""
        process = refusing(status, body, Retry_After=DIGITS)
        with answering(parrot(), process=process) as (url, _):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(RequestError) as caught:
                stream.send([[1]])
        assert (caught.value.status, caught.value.title) == (status, "Said")
        assert (caught.value.errors, caught.value.retry_after) == ([], None)

    @pytest.mark.parametrize("status", [200, 204])
    def test_no_stream(self, kind, status):
        """A handshake that is answered like a request raises InvalidAnswer."""
        with answering(parrot(), process=refusing(status)) as (url, _):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(InvalidAnswer) as caught:
                stream.send([[1]])
        assert caught.value.status == status

    @pytest.mark.parametrize(
        ("raw", "error"),
        [
            (b"HTTP/1.1 101 Said\r\nUpgrade: none\r\n\r\n", InvalidAnswer),
            (b"HTTP/1.1 101 Said\r\nUpgrade: websocket\r\n\r\n", InvalidAnswer),
            (b"SSH-2.0-OpenSSH_9.2\r\n", OSError),
            (b"", OSError),
        ],
        ids=["upgrade", "accept", "ssh", "nothing"],
    )
    def test_no_handshake(self, kind, raw, error):
        """A server that speaks something else raises InvalidAnswer, or an OSError
        where it is no HTTP."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=answer_once, args=(listening, raw))
            thread.start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            stream = kind.stream(kind.client(url, timeout=5), "made")
            with pytest.raises(error):
                stream.send([[1]])
            thread.join(SECONDS)

    @pytest.mark.parametrize("frame", [b"\x81\x01\xff", b"\x8f\x00"])
    def test_no_message(self, kind, frame):
        """Text that is no UTF-8, or a frame that is none of WebSocket's, raises
        InvalidAnswer."""

        def handler(connection):
            connection.recv()
            connection.socket.sendall(frame)
            with suppress(ConnectionClosed):
                connection.recv(SECONDS)

        with answering(handler) as (url, heads):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(InvalidAnswer) as caught:
                stream.send([[1]])
            assert caught.value.status == 101
            assert len(heads) == 1

    def test_cut(self, kind):
        """A connection that breaks each time raises an OSError."""

        def handler(connection):
            connection.recv()
            connection.socket.shutdown(socket.SHUT_RDWR)

        with answering(handler) as (url, heads):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(OSError, match="close frame"):
                stream.send([[1]])
            assert len(heads) == len(client_stream.DELAYS)


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_to_another_origin(self, kind, status):
        """A redirect is not followed: no other server gets the caller's headers, and
        the error says where it leads."""
        with answering(parrot()) as (elsewhere, got):
            there = elsewhere.replace("http", "ws", 1) + "/stream"
            process = refusing(status, Location=there)
            with answering(parrot(), process=process) as (url, heads):
                client = kind.client(url, headers={"X-API-Key": "s3cret"})
                stream = kind.stream(client, "made")
                with pytest.raises(RequestError) as caught:
                    stream.send([[1]])
            assert [head["X-API-Key"] for head in heads] == ["s3cret"]
            assert got == []
        assert caught.value.status == status
        assert there in str(caught.value)

    @pytest.mark.parametrize("location", ["/there", "http://[::1", "mailto:x"])
    def test_elsewhere(self, kind, location):
        """Nor is one on the same server followed, or one that leads nowhere."""
        process = refusing(307, Location=location)
        with answering(parrot(), process=process) as (url, heads):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(RequestError) as caught:
                stream.send([[1]])
            assert len(heads) == 1
        assert caught.value.status == 307
        assert location in caught.value.detail


def answer_once(listening, raw):
    """Take one connection, read its request, and answer with those bytes."""
    with listening.accept()[0] as connection, connection.makefile("rb") as file:
        for line in file:
            if line == b"\r\n":
                break
        connection.sendall(raw)


class TestTimeout:
    def test_no_answer(self, counted, kind):
        """A message that isn't answered in time raises TimeoutError, and has not been
        taken: the stream goes on from before it, and its answer passes for no
        other's."""
        stream = kind.stream(kind.client(counted.url, timeout=0.5), "made")
        for steps in (0, 2):
            hold_engines(counted)
            with pytest.raises(TimeoutError):
                stream.send(part(steps, steps + 5))
            release_engines(counted)
            assert stream.steps == steps
            assert_counts(stream.send(part(steps, steps + 2)), steps + 2)
        wait(lambda: streams_open(counted, "made") == 1, "others are closed")

    def test_lost(self, counted, kind):
        """Without tokens it is lost then."""
        client = kind.client(counted.url, timeout=0.5)
        stream = kind.stream(client, "made", resume=False)
        stream.send(part(0, 2))
        hold_engines(counted)
        with pytest.raises(TimeoutError):
            stream.send(part(2, 3))
        release_engines(counted)
        with pytest.raises(StreamLost):
            stream.send(part(2, 3))

    def test_nothing_at_all(self, counted, kind):
        """So it is where the service says nothing at all, not even goodbye."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url, timeout=0.5), "made")
            stream.send(part(0, 1))
            proxy.keep_back()
            with pytest.raises(TimeoutError):
                stream.send(part(1, 2))
            proxy.pass_on()
            assert_counts(stream.send(part(1, 2)), 2)

    def test_cancelled(self, counted):
        """A `send` that its caller cancels leaves no answer that would pass for the
        next message's."""

        async def talk():
            client = AsyncClient(counted.url)
            async with client, client.stream("made") as stream:
                await stream.send(part(0, 1))
                hold_engines(counted)
                async with anyio.create_task_group() as group:
                    group.start_soon(stream.send, part(1, 2))
                    await anyio.to_thread.run_sync(wait_entered, counted)
                    group.cancel_scope.cancel()
                release_engines(counted)
                return await stream.send(part(1, 6))

        assert_counts(anyio.run(talk), 6)


def test_both_alike():
    """The two classes have the same methods with the same parameters, and the clients
    open them alike."""
    for ours, theirs in ((Stream, AsyncStream), (Client, AsyncClient)):
        names = {name for name in vars(ours) if not name.startswith("_")}
        assert names == {name for name in vars(theirs) if not name.startswith("_")}
        for name in names:
            some, others = (
                getattr(one, name)
                if not isinstance(vars(one)[name], property)
                else vars(one)[name].fget
                for one in (ours, theirs)
            )
            parts = [
                list(inspect.signature(one).parameters.values())
                for one in (some, others)
            ]
            assert parts[0] == parts[1], name
