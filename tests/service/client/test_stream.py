"""The clients' streams: answers, exceptions, and reconnecting."""

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
    """Blocking clients and streams."""

    name = "blocking"

    def __init__(self):
        self._stack = ExitStack()

    def client(self, url, **options):
        return self._stack.enter_context(Client(url, **options))

    def stream(self, client, model, **options):
        return self._stack.enter_context(client.stream(model, **options))

    def call(self, method, *arguments, **options):
        """The result of a client's method."""
        return method(*arguments, **options)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()


class Async(Blocking):
    """Clients and streams for asyncio, on an event loop in a thread."""

    name = "async"

    def __init__(self):
        super().__init__()
        started = anyio.from_thread.start_blocking_portal()
        self.portal = self._stack.enter_context(started)

    def client(self, url, **options):
        async def make():
            return AsyncClient(url, **options)

        client = self.portal.call(make)
        self._stack.callback(self.portal.call, client.close)
        return client

    def stream(self, client, model, **options):
        stream = client.stream(model, **options)
        self._stack.callback(self.portal.call, stream.close)
        return BlockedStream(stream, self.portal)

    def call(self, method, *arguments, **options):
        async def run():
            return await method(*arguments, **options)

        return self.portal.call(run)


class BlockedStream:
    """An `AsyncStream` behind the methods of `Stream`."""

    def __init__(self, stream, portal):
        self.stream, self._portal = stream, portal

    @property
    def steps(self):
        return self.stream.steps

    @property
    def state(self):
        return self.stream.state

    def send(self, *arguments, **options):
        return self._call(self.stream.send, *arguments, **options)

    def end(self):
        return self._call(self.stream.end)

    def close(self):
        return self._call(self.stream.close)

    def _call(self, method, *arguments, **options):
        async def run():
            return await method(*arguments, **options)

        return self._portal.call(run)


@pytest.fixture(params=[Blocking, Async], ids=lambda kind: kind.name)
def kind(request):
    with request.param() as clients:
        yield clients


def delays(first):
    return [0, *(first * 2**attempt for attempt in range(8))]


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch):
    """Reconnects follow each other quickly."""
    monkeypatch.setattr(client_stream, "DELAYS", delays(0.002))


@pytest.fixture
def _longer_delays(_short_delays, monkeypatch):
    """They take long enough for a restart of the service."""
    monkeypatch.setattr(client_stream, "DELAYS", delays(0.05))


@pytest.fixture(scope="module")
def _counted(tmp_path_factory):
    with counting(tmp_path_factory.mktemp("counted") / "bundles") as service:
        yield service


@pytest.fixture
def counted(_counted):
    """The service with a counting engine, and without streams."""
    wait_closed(_counted, "made")
    yield _counted
    release_engines(_counted)


@pytest.fixture(scope="module")
def _short_idle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short-idle") / "bundles"
    with counting(folder, stream_idle_seconds=0.1) as service:
        yield service


@pytest.fixture
def short_idle(_short_idle):
    """The same with a short idle timeout."""
    wait_closed(_short_idle, "made")
    return _short_idle


def assert_counts(answer, length, first=7):
    """It is the answer after `length` steps of the sequence that starts with `first`."""
    assert answer.steps == length
    np.testing.assert_array_equal(answer.probabilities, expected(length, first)[-1])


def part(begin, end, first=7):
    return frames(end, first)[begin:]


class TestAnswers:
    def test_classify(self, running_server, kind):
        """`send` returns the class so far, with the number of steps."""
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
        """For a labelling model it returns the classes of these frames."""
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
        """With `top_k` there are choices in place of probabilities."""
        client = kind.client(running_server.url)
        first = kind.stream(client, "walks", top_k=2).send(FRAMES)
        steps = kind.stream(client, "tags", top_k=1).send(FRAMES)
        assert first.probabilities is None
        assert [type(choice) for choice in first.top] == [results.Choice] * 2
        assert first.top[0].label == first.label
        assert [step[0].label for step in steps.top] == steps.labels

    def test_arrays(self, running_server, kind):
        """Frames may be nested lists or arrays of any type and layout."""
        client = kind.client(running_server.url)
        (right,) = kind.call(client.classify, [FRAMES], model="walks").predictions
        for array in (
            FRAMES.tolist(),
            FRAMES.astype(np.float64),
            np.asfortranarray(FRAMES),
            np.repeat(FRAMES, 2, 0)[::2],
        ):
            answer = kind.stream(client, "walks").send(array)
            np.testing.assert_allclose(
                answer.probabilities, right.probabilities, **CLOSE
            )

    def test_states(self, running_server, kind):
        """Each answer has a token, from which a stream or a request continues; with
        `resume=False` only an answer for which it was requested."""
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
        answer = kind.call(
            client.classify,
            [FRAMES[2:]],
            model="walks",
            states=[answer.state],
            return_state=True,
        ).predictions[0]
        whole = kind.call(client.classify, [FRAMES], model="walks").predictions[0]
        for part_answer in (later, answer):
            assert part_answer.steps == 8
            np.testing.assert_allclose(
                part_answer.probabilities, whole.probabilities, **CLOSE
            )
        again = kind.stream(client, "walks", state=answer.state)
        assert again.send(FRAMES).steps == 16

    def test_end(self, counted, kind):
        """`end` returns the token of the last step, and ends the stream."""
        client = kind.client(counted.url)
        stream = kind.stream(client, "made", resume=False)
        stream.send(part(0, 3))
        token = stream.end()
        assert token == stream.state is not None
        assert stream.steps == 3
        wait_closed(counted, "made")
        later = kind.stream(client, "made", state=token)
        assert_counts(later.send(part(3, 5)), 5)

    def test_end_without_frames(self, counted, kind):
        """If nothing was sent, `end` returns the token that the stream began with."""
        client = kind.client(counted.url)
        assert kind.stream(client, "made").end() is None
        token = kind.stream(client, "made").send(part(0, 4)).state
        stream = kind.stream(client, "made", state=token)
        other = stream.end()
        assert stream.steps == 4
        assert_counts(kind.stream(client, "made", state=other).send(part(4, 5)), 5)

    def test_closes(self, counted, kind):
        """A stream is opened by its first message, and closed by `close`."""
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
        """A refused message raises RequestError with status and path, and the stream goes
        on."""
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

    def test_invalid_values(self, counted, kind):
        """NaN is refused with its path; a ragged list is not sent."""
        stream = kind.stream(kind.client(counted.url), "made")
        with pytest.raises(RequestError) as caught:
            stream.send([[1], [np.nan]])
        assert caught.value.errors[0]["path"] == "frames[1][0]"
        for steps in (0, 1):
            with pytest.raises(ValueError, match="inhomogeneous"):
                stream.send([[1, 2], [1]])
            assert_counts(stream.send(part(steps, steps + 1)), steps + 1)

    def test_handshake(self, running_server, kind):
        """A stream that the service refuses raises RequestError with the first message,
        and is not retried. The client's headers are sent with the handshake."""
        name = "unrolled_refused_requests_total"
        headers = {"X-Request-ID": "mine"}
        client = kind.client(running_server.url, headers=headers)
        for model, options, status, slug in (
            ("nobody", {}, 404, "unknown-model"),
            ("both", {}, 422, "not-streamable"),
            ("walks", {"top_k": 0}, 422, "invalid-request"),
            ("", {}, 422, "invalid-request"),
            ("walks&x=1", {}, 404, "unknown-model"),
        ):
            before = value(running_server.metrics(), name, kind=slug)
            with pytest.raises(RequestError) as caught:
                kind.stream(client, model, **options).send(FRAMES)
            assert caught.value.status == status
            assert caught.value.type == f"urn:unrolled:error:{slug}"
            assert caught.value.detail
            assert caught.value.request_id == "mine"
            after = value(running_server.metrics(), name, kind=slug)
            assert after == before + 1

    def test_token(self, running_server, kind):
        """An invalid token, or another model's, is refused each time."""
        client = kind.client(running_server.url)
        other = kind.stream(client, "tags").send(FRAMES).state
        for token, status in (("x", 422), (other, 409)):
            stream = kind.stream(client, "walks", state=token)
            for _ in range(2):
                with pytest.raises(RequestError) as caught:
                    stream.send(FRAMES)
                assert caught.value.status == status
                assert caught.value.errors[0]["path"] == "state"


class TestReconnects:
    @pytest.mark.slow
    def test_too_many_streams(self, tmp_path, kind, monkeypatch):
        """If there are too many streams, opening one is retried for a while."""
        name, labels = "unrolled_refused_requests_total", {"kind": "too-many-streams"}
        with counting(tmp_path / "bundles", max_streams=1) as service:
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

    def test_no_service(self, kind):
        """A service that can't be reached raises OSError."""
        stream = kind.stream(kind.client(f"http://127.0.0.1:{free_port()}"), "made")
        for call in (lambda: stream.send(part(0, 1)), stream.end):
            with pytest.raises(OSError, match=r"(?i)refused|connect call failed"):
                call()

    def test_idle(self, short_idle, kind):
        """After the service closed an idle stream, the next message reopens it."""
        stream = kind.stream(kind.client(short_idle.url), "made")
        for steps in (0, 1, 2):
            assert_counts(stream.send(part(steps, steps + 1)), steps + 1)
            wait_closed(short_idle, "made")
        assert stream.end() is not None
        assert stream.steps == 3

    def test_idle_before_any_step(self, short_idle, kind):
        """So it does if the service has only refused a message."""
        client = kind.client(short_idle.url)
        token = kind.stream(client, "made").send(part(0, 3)).state
        stream = kind.stream(client, "made", state=token)
        with pytest.raises(RequestError):
            stream.send([[1, 2]])
        wait_closed(short_idle, "made")
        assert_counts(stream.send(part(3, 5)), 5)

    def test_idle_while_sending(self, short_idle, kind):
        """So it does if the service closes it while the first message, which has the
        token, is on the way."""
        with Proxy(short_idle.url) as proxy:
            token = (
                kind.stream(kind.client(short_idle.url), "made").send(part(0, 3)).state
            )
            wait_closed(short_idle, "made")
            stream = kind.stream(kind.client(proxy.url), "made", state=token)
            proxy.keep_back()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                sent = pool.submit(stream.send, part(3, 5))
                wait(lambda: streams_open(short_idle, "made") == 1, "it is open")
                wait_closed(short_idle, "made")
                proxy.pass_on()
                assert_counts(sent.result(SECONDS), 5)

    def test_idle_without_tokens(self, short_idle, kind):
        """So it does without tokens: the service's last message has one."""
        stream = kind.stream(kind.client(short_idle.url), "made", resume=False)
        assert_counts(stream.send(part(0, 1)), 1)
        wait_closed(short_idle, "made")
        # The client has seen the close, too.
        connection = getattr(getattr(stream, "stream", stream), "_connection", None)
        if connection is not None:
            wait(lambda: connection.state.name == "CLOSED", "it is closed")
        assert_counts(stream.send(part(1, 2)), 2)

    @pytest.mark.slow
    @pytest.mark.usefixtures("_longer_delays")
    def test_restart(self, tmp_path, kind):
        """A restarted service with the same key continues each stream, also if a message
        is sent meanwhile."""
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

    @pytest.mark.slow
    def test_restart_with_another_key(self, tmp_path, kind):
        """With another key the token is refused, and the sequence does not start again."""
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

    @pytest.mark.slow
    def test_restart_with_another_bundle(self, bundles, tmp_path, kind):
        """So it is with another version of the model."""
        port = free_port()
        copy_bundle(bundles / "walks" / "1", tmp_path / "a" / "walks" / "1")
        copy_bundle(
            bundles / "walks" / "1", tmp_path / "b" / "walks" / "2", version="2"
        )
        options = {"port": port, "state_key": KEY, "workers": 1}
        start = spawn.thread(ENGINES)
        with running(
            Settings(bundles=tmp_path / "a", **options), start=start
        ) as service:
            stream = kind.stream(kind.client(service.url), "walks")
            stream.send(FRAMES)
        with running(Settings(bundles=tmp_path / "b", **options), start=start):
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

    def test_cut_before_the_answer(self, counted, kind):
        """A message whose answer was lost is sent again, and counts once."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made")
            for steps in (0, 2):
                hold_engines(counted)
                with concurrent.futures.ThreadPoolExecutor(1) as pool:
                    sent = pool.submit(stream.send, part(steps, steps + 2))
                    wait_entered(counted)
                    accepted = proxy.accepted
                    proxy.cut()
                    wait(lambda n=accepted: proxy.accepted > n, "it has reconnected")
                    release_engines(counted)
                    assert_counts(sent.result(SECONDS), steps + 2)

    def test_lost(self, counted, kind):
        """Without tokens a stream is lost if its connection breaks."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made", resume=False)
            assert_counts(stream.send(part(0, 2)), 2)
            accepted = proxy.accepted
            proxy.cut()
            for call in (lambda: stream.send(part(2, 3)), stream.end) * 2:
                with pytest.raises(StreamLost):
                    call()
            assert proxy.accepted == accepted

    def test_not_lost(self, counted, kind):
        """It is not lost before the first step, or if the last answer had a token."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url), "made", resume=False)
            with pytest.raises(RequestError):
                stream.send([[1, 2]])
            proxy.cut()
            assert_counts(stream.send(part(0, 2)), 2)
            assert_counts(stream.send(part(2, 3), return_state=True), 3)
            proxy.cut()
            assert_counts(stream.send(part(3, 5)), 5)

    @pytest.mark.slow
    def test_too_long(self, tmp_path, kind):
        """A message that is too long raises an error, and is not sent again."""
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
def web_socket_server(handler, **options):
    """The address of a server for WebSockets, and the headers that it got."""
    heads = []

    def record(connection, request):
        heads.append(request.headers)
        return process(connection, request) if process else None

    process = options.pop("process", None)
    options |= {"process_request": record, "compression": None, "close_timeout": 1}
    with serve(handler, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}", heads
        finally:
            server.shutdown()
            thread.join(SECONDS)


def replies(*messages):
    """A handler that answers the first message with these, and no other message."""

    def handler(connection):
        for place, _ in enumerate(connection):
            for message in () if place else messages:
                connection.send(message)

    return handler


def refusing(status, body=b"", **headers):
    """A response to each handshake."""

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
INVALID_ANSWERS = [
    *("", "<h1>Welcome</h1>", b"\xff\xfe", "[" * 100_000, DIGITS, "[]", "5", "{}"),
    object_with(label="a", probability=1, probabilities=[1]),
    object_with(**GOOD | {"steps": "1"}),
    object_with(**GOOD | {"label": 5}),
    object_with(**GOOD | {"probabilities": "no"}),
    object_with(**GOOD | {"state": 5}),
    object_with(steps=1, labels=["a"], probabilities=[1]),
    object_with(end="done"),
    object_with(end="done", steps=1, state=5),
    object_with(error="no"),
    error_with(),
    error_with(status="422", title="x"),
    error_with(status=10**9, title="x"),
]


class TestOtherServers:
    """Messages and handshakes of servers other than the service."""

    def test_invalid_answer(self, kind):
        """A message that is not as documented raises InvalidAnswer with a detail."""
        for message in INVALID_ANSWERS:
            with web_socket_server(replies(message)) as (url, _):
                stream = kind.stream(kind.client(url), "made")
                with pytest.raises(InvalidAnswer) as caught:
                    stream.send([[1]])
            assert caught.value.status == 101
            assert caught.value.detail
            assert (stream.steps, stream.state) == (0, None)

    def test_after_invalid_answer(self, kind):
        """The next message after it is not taken for another answer: the stream
        reconnects."""
        with web_socket_server(replies("no", object_with(**GOOD))) as (url, heads):
            stream = kind.stream(kind.client(url), "made")
            for connections in (1, 2):
                with pytest.raises(InvalidAnswer):
                    stream.send([[1]])
                assert len(heads) == connections

    def test_problem(self, kind):
        """Members of problem details that are not as documented are ignored."""
        problem = {"status": 422, "title": 5, "detail": [], "errors": [{}, 5]}
        with web_socket_server(replies(error_with(**problem, retry_after=DIGITS))) as (
            url,
            _,
        ):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(RequestError) as caught:
                stream.send([[1]])
        error = caught.value
        assert not isinstance(error, InvalidAnswer)
        assert (error.status, error.detail) == (422, "")
        assert error.title
        assert (error.errors, error.retry_after) == ([], None)

    def test_handshake(self, kind):
        """A refused handshake raises RequestError, whatever its body."""
        for status, body in (
            (304, b""),
            (404, b"no"),
            (404, b"[" * 100_000),
            (503, b'{"errors": [{}], "title": 5}'),
        ):
            process = refusing(status, body, Retry_After=DIGITS)
            with web_socket_server(replies(), process=process) as (url, _):
                stream = kind.stream(kind.client(url), "made")
                with pytest.raises(RequestError) as caught:
                    stream.send([[1]])
            assert (caught.value.status, caught.value.title) == (status, "Said")
            assert (caught.value.errors, caught.value.retry_after) == ([], None)

    def test_no_stream(self, kind):
        """A handshake with a successful response raises InvalidAnswer."""
        for status in (200, 204):
            process = refusing(status)
            with web_socket_server(replies(), process=process) as (url, _):
                stream = kind.stream(kind.client(url), "made")
                with pytest.raises(InvalidAnswer) as caught:
                    stream.send([[1]])
            assert caught.value.status == status

    def test_no_handshake(self, kind):
        """A server that speaks HTTP but no WebSocket raises InvalidAnswer, any other
        OSError."""
        for raw, error in (
            (b"HTTP/1.1 101 Said\r\nUpgrade: none\r\n\r\n", InvalidAnswer),
            (b"HTTP/1.1 101 Said\r\nUpgrade: websocket\r\n\r\n", InvalidAnswer),
            (b"SSH-2.0-OpenSSH_9.2\r\n", OSError),
            (b"", OSError),
        ):
            with socket.create_server(("127.0.0.1", 0)) as listening:
                thread = threading.Thread(target=answer_once, args=(listening, raw))
                thread.start()
                url = f"http://127.0.0.1:{listening.getsockname()[1]}"
                stream = kind.stream(kind.client(url, timeout=5), "made")
                with pytest.raises(error):
                    stream.send([[1]])
                thread.join(SECONDS)

    def test_invalid_frame(self, kind):
        """Text that is not UTF-8, or an invalid frame, raises InvalidAnswer."""
        for frame in (b"\x81\x01\xff", b"\x8f\x00"):

            def handler(connection, frame=frame):
                connection.recv()
                connection.socket.sendall(frame)
                with suppress(ConnectionClosed):
                    connection.recv(SECONDS)

            with web_socket_server(handler) as (url, heads):
                stream = kind.stream(kind.client(url), "made")
                with pytest.raises(InvalidAnswer) as caught:
                    stream.send([[1]])
                assert caught.value.status == 101
                assert len(heads) == 1

    def test_cut(self, kind):
        """A connection that breaks with each attempt raises OSError."""

        def handler(connection):
            connection.recv()
            connection.socket.shutdown(socket.SHUT_RDWR)

        with web_socket_server(handler) as (url, heads):
            stream = kind.stream(kind.client(url), "made")
            with pytest.raises(OSError, match="close frame"):
                stream.send([[1]])
            assert len(heads) == len(client_stream.DELAYS)


class TestRedirects:
    def test_to_another_origin(self, kind):
        """A redirect is not followed: no other server gets the caller's headers, and the
        error has the location."""
        with web_socket_server(replies()) as (other, other_heads):
            location = other.replace("http", "ws", 1) + "/stream"
            for status in (301, 302, 303, 307, 308):
                process = refusing(status, Location=location)
                with web_socket_server(replies(), process=process) as (url, heads):
                    client = kind.client(url, headers={"X-API-Key": "s3cret"})
                    with pytest.raises(RequestError) as caught:
                        kind.stream(client, "made").send([[1]])
                assert [head["X-API-Key"] for head in heads] == ["s3cret"]
                assert caught.value.status == status
                assert location in str(caught.value)
            assert other_heads == []

    def test_other_locations(self, kind):
        """Nor is a redirect to the same server, or with an invalid location."""
        for location in ("/there", "http://[::1", "mailto:x"):
            process = refusing(307, Location=location)
            with web_socket_server(replies(), process=process) as (url, heads):
                with pytest.raises(RequestError) as caught:
                    kind.stream(kind.client(url), "made").send([[1]])
                assert len(heads) == 1
            assert caught.value.status == 307
            assert location in caught.value.detail


def answer_once(listening, raw):
    """Accept a connection, read a request, and answer with these bytes."""
    with listening.accept()[0] as connection, connection.makefile("rb") as file:
        for line in file:
            if line == b"\r\n":
                break
        connection.sendall(raw)


class TestTimeout:
    def test_no_answer(self, counted, kind):
        """A message that isn't answered in time raises TimeoutError. The stream goes on
        from before it, and a late answer is not taken for the next one."""
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
        """Without tokens the stream is lost."""
        client = kind.client(counted.url, timeout=0.5)
        stream = kind.stream(client, "made", resume=False)
        stream.send(part(0, 2))
        hold_engines(counted)
        with pytest.raises(TimeoutError):
            stream.send(part(2, 3))
        release_engines(counted)
        with pytest.raises(StreamLost):
            stream.send(part(2, 3))

    @pytest.mark.slow
    def test_no_closing_handshake(self, counted, kind):
        """So does a service that doesn't even answer the closing handshake."""
        with Proxy(counted.url) as proxy:
            stream = kind.stream(kind.client(proxy.url, timeout=0.5), "made")
            stream.send(part(0, 1))
            proxy.keep_back()
            with pytest.raises(TimeoutError):
                stream.send(part(1, 2))
            proxy.pass_on()
            assert_counts(stream.send(part(1, 2)), 2)

    def test_cancelled(self, counted):
        """The late answer to a cancelled `send` is not taken for the next one."""

        async def run():
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

        assert_counts(anyio.run(run), 6)


def test_both_alike():
    """Both kinds of clients and streams have the same methods and parameters."""
    for blocking, other in ((Stream, AsyncStream), (Client, AsyncClient)):
        names = {name for name in vars(blocking) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in names:
            first, second = (
                list(inspect.signature(getattr(kind, name)).parameters.values())
                for kind in (blocking, other)
            )
            assert first == second, name
