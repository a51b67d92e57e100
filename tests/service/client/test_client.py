"""The Python clients: results, exceptions, redirects and timeouts."""

import inspect
import itertools
import json
import socket
import socketserver
import threading
from contextlib import ExitStack, contextmanager

import anyio
import httpx
import numpy as np
import pytest

from service.client import AsyncClient, Client, InvalidAnswer, RequestError, results
from service.http.middleware import REQUEST_ID
from tests.support.bundles import random_frames
from tests.support.processes import free_port
from tests.support.servers import SECONDS

FRAMES = random_frames(np.random.default_rng(0), 4)


class Blocked:
    """`AsyncClient` behind the methods of `Client`, so that a test can use both."""

    def __init__(self, *arguments, **options):
        self._arguments = arguments, options

    def __getattr__(self, name):
        arguments, options = self._arguments

        def call(*values, **named):
            async def run():
                async with AsyncClient(*arguments, **options) as client:
                    return await getattr(client, name)(*values, **named)

            return anyio.run(run)

        return call

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


KINDS = [pytest.param(Client, id="blocking"), pytest.param(Blocked, id="async")]


CALLS = {
    "classify": lambda client: client.classify([FRAMES]),
    "label": lambda client: client.label([FRAMES]),
    "models": lambda client: client.models(),
    "ready": lambda client: client.ready(),
}


def transport(status, **response):
    """A transport with one response for all requests, such as a proxy may send."""
    return httpx.MockTransport(lambda _: httpx.Response(status, **response))


@pytest.mark.parametrize("kind", KINDS)
class TestResults:
    def test_classify(self, server, kind):
        """`classify` returns one prediction per sequence."""
        with kind(server) as client:
            answer = client.classify([FRAMES, FRAMES[:2]], model="walks")
        assert type(answer) is results.Classifications
        assert answer.classes == ["run", "sit", "stand", "wälk"]
        assert len(answer.predictions) == 2
        for prediction in answer.predictions:
            assert type(prediction) is results.Classification
            assert prediction.top is None
            assert prediction.probabilities.shape == (4,)
            assert prediction.probabilities.dtype == np.float32
            best = int(prediction.probabilities.argmax())
            assert prediction.label == answer.classes[best]
            assert prediction.probability == pytest.approx(
                prediction.probabilities[best]
            )

    def test_label(self, server, kind):
        """`label` returns one class per step."""
        with kind(server) as client:
            answer = client.label([FRAMES, FRAMES[:1]], model="tags")
        assert type(answer) is results.Labellings
        for prediction, length in zip(answer.predictions, (4, 1), strict=True):
            assert type(prediction) is results.Labelling
            assert len(prediction.labels) == length
            assert prediction.probabilities.shape == (length, 3)
            assert prediction.top is None

    def test_top_k(self, server, kind):
        """With `top_k` there are choices in place of probabilities, likeliest first."""
        with kind(server) as client:
            first = client.classify([FRAMES], model="walks", top_k=2).predictions[0]
            steps = client.label([FRAMES], model="tags", top_k=1).predictions[0]
        assert first.probabilities is None
        assert [type(choice) for choice in first.top] == [results.Choice] * 2
        assert first.top[0].label == first.label
        assert first.top[0].probability >= first.top[1].probability
        assert steps.probabilities is None
        assert [step[0].label for step in steps.top] == steps.labels

    def test_classify_in_parts(self, server, kind):
        """With `return_state` a prediction has a token, from which `states` continues
        with the answers of the whole sequence."""
        longer = random_frames(np.random.default_rng(1), 9)
        with kind(server) as client:
            whole = client.classify([FRAMES, longer], model="walks")
            (first,) = client.classify(
                [longer[:5]], model="walks", return_state=True
            ).predictions
            assert first.steps == 5
            states = (None, first.state)
            ended = client.classify([FRAMES, longer[5:]], model="walks", states=states)
            again = client.classify(
                [longer[5:]], model="walks", states=[first.state], return_state=True
            )
        for part, right in zip(ended.predictions, whole.predictions, strict=True):
            assert part.label == right.label
            np.testing.assert_allclose(
                part.probabilities, right.probabilities, atol=1e-5
            )
            assert (part.steps, part.state) == (None, None)
        (last,) = again.predictions
        assert last.steps == 9
        assert last.state != first.state
        assert len(last.state) == len(first.state)

    def test_label_in_parts(self, server, kind):
        """So does `label`, also with `top_k`."""
        with kind(server) as client:
            (whole,) = client.label([FRAMES], model="tags").predictions
            labels, rows, state = [], [], None
            for step in range(4):
                frames = FRAMES[step : step + 1]
                (part,) = client.label(
                    [frames], model="tags", states=[state], return_state=True
                ).predictions
                assert part.steps == step + 1
                labels += part.labels
                rows += [*part.probabilities]
                state = part.state
            (two,) = client.label(
                [FRAMES[:2]], model="tags", return_state=True, top_k=1
            ).predictions
            (rest,) = client.label(
                [FRAMES[2:]], model="tags", states=[two.state], top_k=1
            ).predictions
        assert labels == whole.labels
        np.testing.assert_allclose(rows, whole.probabilities, atol=1e-5)
        assert two.labels + rest.labels == whole.labels
        assert [step[0].label for step in two.top + rest.top] == whole.labels
        assert (two.steps, rest.state) == (2, None)

    def test_arrays(self, server, kind):
        """Sequences may be nested lists or arrays of any type and layout."""
        with kind(server) as client:
            (right,) = client.classify([FRAMES]).predictions
            assert (right.steps, right.state) == (None, None)
            for frames in (
                FRAMES.tolist(),
                tuple(map(tuple, FRAMES.tolist())),
                FRAMES.astype(np.float64),
                np.asfortranarray(FRAMES),
                np.repeat(FRAMES, 2, 0)[::2],
            ):
                (answer,) = client.classify([frames]).predictions
                np.testing.assert_array_equal(answer.probabilities, right.probabilities)

    def test_models_and_ready(self, server, kind):
        """`models` lists the models; `ready` is empty for a ready service."""
        with kind(server) as client:
            models = client.models()
            assert client.ready() == []
        assert {model["name"] for model in models} == {"walks", "tags", "both"}


@pytest.mark.parametrize("kind", KINDS)
class TestRefused:
    def test_fields(self, server, kind):
        """RequestError has all members of the problem details."""
        with kind(server) as client, pytest.raises(RequestError) as caught:
            client.classify([FRAMES, FRAMES[:, :2]])
        error = caught.value
        assert error.status == 422
        assert error.type == "urn:unrolled:error:invalid-request"
        assert error.title
        assert error.detail
        assert error.retry_after is None
        assert REQUEST_ID.fullmatch(error.request_id)
        assert error.errors[0]["path"] == "sequences[1][0]"
        assert "422" in str(error)
        assert "sequences[1][0]: has 2 features" in str(error)

    def test_invalid_values(self, server, kind):
        """Invalid values are refused with their path; a ragged list is not sent."""
        frames = FRAMES.copy()
        frames[2, 1] = np.nan
        with kind(server) as client:
            with pytest.raises(RequestError) as caught:
                client.classify([frames])
            with pytest.raises(ValueError, match="inhomogeneous"):
                client.classify([[[1, 2, 3], [1, 2]]])
        assert caught.value.status == 422
        assert caught.value.errors[0]["path"] == "sequences[0][2][1]"

    def test_state(self, server, kind):
        """An invalid state token is refused with its path."""
        with kind(server) as client:
            (first,) = client.label(
                [FRAMES], model="tags", return_state=True
            ).predictions
            for states, slug, status in (
                ([None, "c4n4ry"], "invalid-state", 422),
                ([None, first.state], "state-conflict", 409),
                ([first.state], "invalid-request", 422),
            ):
                with pytest.raises(RequestError) as caught:
                    client.classify([FRAMES] * 2, model="walks", states=states)
                assert caught.value.status == status
                assert caught.value.type == f"urn:unrolled:error:{slug}"
                path = "states" if len(states) == 1 else "states[1]"
                assert [error["path"] for error in caught.value.errors] == [path]
                assert path in str(caught.value)
            with pytest.raises(RequestError) as caught:
                client.label([FRAMES], model="both", return_state=True)
        assert caught.value.status == 422
        assert "tags" in caught.value.detail

    def test_model(self, server, kind):
        """An unknown model, or a model of the other task, is refused."""
        with kind(server) as client:
            for model, status in (("nobody", 404), ("tags", 422), ("", 404)):
                with pytest.raises(RequestError) as caught:
                    client.classify([FRAMES], model=model)
                assert caught.value.status == status

    def test_proxy_error(self, kind):
        """The error of a proxy, whatever its body, is a RequestError with its status;
        a 503 means that the service is not ready."""
        for response in (
            {"html": "<h1>Bad Gateway</h1>"},
            {"content": b""},
            {"content": b"\xff\xfe\x00"},
            {"json": ["no", "problem"]},
            {"json": "no problem"},
            {"json": None},
            {"json": {"errors": ["odd"]}},
        ):
            for status in (502, 503):
                with kind(transport=transport(status, **response)) as client:
                    for name in ("classify", "label", "models"):
                        with pytest.raises(RequestError) as caught:
                            CALLS[name](client)
                        assert caught.value.status == status
                    if status == 503:
                        assert client.ready() == ["not ready"]

    def test_not_ready(self, kind):
        """`ready` lists the reasons of a service that isn't ready."""
        body = {"status": "not ready", "reasons": ["loading the bundles"]}
        with kind(transport=transport(503, json=body)) as client:
            assert client.ready() == ["loading the bundles"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["classify", "label"])
def test_request_body(kind, task):
    """A request has the options that were given, and no others: an older service may not
    know them."""

    def body(**options):
        bodies = []

        def answer(request):
            bodies.append(json.loads(request.content))
            return httpx.Response(503, json={})

        with (
            kind(transport=httpx.MockTransport(answer)) as client,
            pytest.raises(RequestError),
        ):
            getattr(client, task)([FRAMES, FRAMES[:1]], **options)
        (body,) = bodies
        first, second = (np.array(s, np.float32) for s in body.pop("sequences"))
        np.testing.assert_array_equal(first, FRAMES)
        np.testing.assert_array_equal(second, FRAMES[:1])
        return body

    assert body() == {}
    options = {"model": None, "top_k": None, "states": None, "return_state": False}
    assert body(**options) == {}
    states = {"states": ["a", None], "return_state": True}
    options = {"model": "walks", "top_k": 2} | states
    assert body(**options) == options
    assert body(states=(None, None)) == {"states": [None, None]}
    assert body(states=[]) == {"states": []}


class RawServer(socketserver.ThreadingTCPServer):
    """A server that answers every request with the same bytes."""

    daemon_threads = True

    def __init__(self, raw):
        super().__init__(("127.0.0.1", 0), Handler)
        self.raw, self.heads = raw, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    """Reads a request, keeps its head in lower case, and answers."""

    timeout = SECONDS

    def handle(self):
        head = b"".join(iter(self.rfile.readline, b"\r\n")).decode().lower()
        _, _, length = head.partition("content-length:")
        self.rfile.read(int(length.split()[0]) if length else 0)
        self.server.heads.append(head)
        self.wfile.write(self.server.raw)


@contextmanager
def serving(raw):
    """Run such a server until the block ends."""
    with RawServer(raw) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(SECONDS)


def response(status, body=b"", **headers):
    """The bytes of a response."""
    headers |= {"Content-Length": len(body), "Connection": "close"}
    lines = (f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
    return f"HTTP/1.1 {status} Said\r\n{''.join(lines)}\r\n".encode() + body


def answer_with(prediction):
    """The body of an answer with one prediction."""
    members = {"model": "m", "version": "1", "classes": ["a"]}
    return json.dumps({**members, "predictions": [prediction]}).encode()


def raised(kind, server, raw, call):
    """The RequestError of a call that gets these bytes as a response."""
    server.raw = raw
    with (
        kind(server.url, timeout=SECONDS) as client,
        pytest.raises(RequestError) as caught,
    ):
        call(client)
    assert isinstance(caught.value.title, str)
    assert str(caught.value).startswith(f"{caught.value.status} ")
    return caught.value


GOOD = {"label": "a", "probability": 1.0, "probabilities": [1.0]}
GOOD |= {"labels": ["a"]}
DIGITS = "9" * 5000
INVALID_ANSWERS = [
    *(b"", b"<h1>Welcome</h1>", b"\xff\xfe", b"[" * 100_000, DIGITS.encode()),
    *(b"[]", b"null", b"{}", b'{"predictions": [], "models": [{}]}'),
    b'{"predictions": 5, "models": 5, "status": 5}',
    *map(answer_with, [5, {}, GOOD | {"label": 5, "labels": 5}, GOOD | {"top": [5]}]),
    *(
        answer_with(GOOD | {"probabilities": probabilities})
        for probabilities in ("no", [None], [[1], [1, 2]], [[[1]]], None)
    ),
]
INVALID_PROBLEMS = [
    *({"errors": [{}]}, {"errors": [{"path": "x"}, {"message": "y"}, 5]}),
    *({"errors": [{"path": 5, "message": ["y"]}]}, {"errors": 5}),
    {"errors": {"path": "x", "message": "y"}},
    {"title": 5, "detail": [], "type": {}, "request_id": 3, "retry_after": [1]},
    *({"retry_after": value} for value in (DIGITS, 1e300, True, -1)),
]


@pytest.fixture(scope="module")
def raw_server():
    with serving(b"") as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
class TestOtherServers:
    """Responses of servers other than the service."""

    def test_invalid_answer(self, kind, raw_server):
        """A 200 that is not as documented raises InvalidAnswer with a detail."""
        for body, call in itertools.product(INVALID_ANSWERS, CALLS.values()):
            error = raised(kind, raw_server, response(200, body), call)
            assert isinstance(error, InvalidAnswer)
            assert error.status == 200
            assert error.detail

    def test_without_a_body(self, kind, raw_server):
        """Any other status without a body raises RequestError."""
        for status, call in itertools.product((204, 300, 304, 308), CALLS.values()):
            assert raised(kind, raw_server, response(status), call).status == status

    def test_invalid_problem(self, kind, raw_server):
        """Members of problem details that are not as documented are ignored."""
        for problem in INVALID_PROBLEMS:
            raw = response(422, json.dumps(problem).encode())
            error = raised(kind, raw_server, raw, CALLS["classify"])
            assert (error.status, error.title, error.detail) == (422, "Said", "")
            assert (error.type, error.request_id) == ("about:blank", "")
            assert (error.errors, error.retry_after) == ([], None)
        for body in (b"[" * 100_000, b'{"retry_after": %s}' % DIGITS.encode()):
            error = raised(kind, raw_server, response(500, body), CALLS["models"])
            assert (error.status, error.retry_after) == (500, None)

    def test_retry_after(self, kind, raw_server):
        """`retry_after` is that of the header if it is a number of seconds, else that of
        the body."""
        for header, body, seconds in (
            ("7", b'{"retry_after": 3}', 7),
            ("Wed, 21 Oct 2026 07:28:00 GMT", b'{"retry_after": 3}', 3),
            ("", b"{}", None),
            (DIGITS, b"{}", None),
        ):
            raw = response(503, body, Retry_After=header)
            error = raised(kind, raw_server, raw, CALLS["label"])
            assert error.retry_after == seconds

    def test_message(self, kind, raw_server):
        """The message of an error is one printable line of limited length."""
        problem = {"title": "a\nb\x1b[2J", "detail": "x" * 10**6}
        raw = response(400, json.dumps(problem).encode())
        error = raised(kind, raw_server, raw, CALLS["classify"])
        assert str(error).isprintable()
        assert len(str(error)) < 2000
        assert error.title == problem["title"]
        assert error.detail == problem["detail"]


SECRETS = {
    "headers": {"X-API-Key": "s3cret", "X-Other": "s3cret"},
    "cookies": {"key": "s3cret"},
}


@pytest.mark.parametrize("kind", KINDS)
class TestRedirects:
    def test_not_followed(self, kind, raw_server):
        """A redirect is not followed; the error has its location."""
        with serving(response(200, b"{}")) as other:
            for status, call in itertools.product((302, 307), CALLS.values()):
                raw = response(status, Location=f"{other.url}/there")
                error = raised(kind, raw_server, raw, call)
                assert error.status == status
                assert f"{other.url}/there" in str(error)
            assert other.heads == []

    def test_invalid_location(self, kind, raw_server):
        """Nor is a redirect with an invalid location."""
        for location in ("mailto:x", "http://[::1", "http://xn--/", "//", "\xff", ""):
            raw = response(302, Location=location)
            assert raised(kind, raw_server, raw, CALLS["models"]).status == 302

    @pytest.mark.parametrize("status", [302, 307])
    def test_to_another_origin(self, kind, status):
        """With `follow_redirects` the caller's headers and cookies are not sent to
        another origin: any of them may hold a key."""
        options = {"timeout": SECONDS, "follow_redirects": True, **SECRETS}
        with ExitStack() as stack:
            other = stack.enter_context(serving(response(200, b"{}")))
            redirect = response(status, Location=f"{other.url}/there")
            first = stack.enter_context(serving(redirect))
            client = stack.enter_context(kind(first.url, **options))
            for call in CALLS.values():
                with pytest.raises(InvalidAnswer):
                    call(client)
        assert len(first.heads) == len(other.heads) == len(CALLS)
        assert all(head.count("s3cret") == 3 for head in first.heads)
        assert not any("s3cret" in head for head in other.heads)
        assert all(f"host: {other.url[7:]}" in head for head in other.heads)

    def test_to_the_same_origin(self, kind):
        """They are sent if the redirect stays at the same origin."""

        def answer(request):
            keys.append(request.headers.get("X-API-Key"))
            if request.url.path == "/models":
                return httpx.Response(307, headers={"Location": "/there"})
            return httpx.Response(200, json={"models": []})

        keys = []
        options = {"headers": {"X-API-Key": "s3cret"}, "follow_redirects": True}
        with kind(transport=httpx.MockTransport(answer), **options) as client:
            assert client.models() == []
        assert keys == ["s3cret"] * 2


@pytest.mark.parametrize("kind", KINDS)
class TestNoAnswer:
    def test_timeout(self, kind):
        """A service that doesn't answer in time raises httpx's exception."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with (
                kind(url, timeout=0.2) as client,
                pytest.raises(httpx.TimeoutException),
            ):
                client.classify([FRAMES])

    def test_no_service(self, kind):
        """So does a service that can't be reached, for every method."""
        with kind(f"http://127.0.0.1:{free_port()}") as client:
            for call in CALLS.values():
                with pytest.raises(httpx.ConnectError):
                    call(client)


def test_options(server):
    """Further options are passed to httpx: for example an Authorization header."""
    options = {"headers": {"X-Request-ID": "mine"}}
    with Client(server, **options) as client, pytest.raises(RequestError) as caught:
        client.classify([])
    assert caught.value.request_id == "mine"


def test_shared_between_threads(server):
    """Threads may share a client."""
    answers = {}
    sequences = [random_frames(np.random.default_rng(n), 1 + n) for n in range(16)]
    with Client(server) as client:

        def label(place):
            answers[place] = client.label([sequences[place]])

        threads = [threading.Thread(target=label, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    for place in range(16):
        assert len(answers[place].predictions[0].labels) == 1 + place


def test_both_alike():
    """The two classes have the same methods with the same parameters."""
    names = ("classify", "label", "stream", "models", "ready", "close", "__init__")
    for name in names:
        parts = [
            list(inspect.signature(getattr(kind, name)).parameters.values())
            for kind in (Client, AsyncClient)
        ]
        assert parts[0] == parts[1]
