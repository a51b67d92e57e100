"""The Python client: what it returns, what it raises, and when it gives up."""

import inspect
import json
import socket
import socketserver
import threading
from contextlib import ExitStack, contextmanager

import anyio
import httpx
import numpy as np
import pytest

from service.client import AsyncClient, Client, InvalidAnswer, RequestError
from service.client import results as answers
from service.http.middleware import REQUEST_ID
from tests.support.bundles import random_frames
from tests.support.servers import SECONDS

FRAMES = random_frames(np.random.default_rng(0), 4)


class Waiting:
    """`AsyncClient` behind the methods of `Client`, so that one test asks both."""

    def __init__(self, *arguments, **options):
        self._made = arguments, options

    def __getattr__(self, name):
        arguments, options = self._made

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


KINDS = [pytest.param(Client, id="blocking"), pytest.param(Waiting, id="async")]


def answering(status, **response):
    """A transport whose every answer is that; for answers that the service doesn't
    give, but what stands before it may."""
    return httpx.MockTransport(lambda _: httpx.Response(status, **response))


@pytest.mark.parametrize("kind", KINDS)
class TestResults:
    def test_classify(self, server, kind):
        """`classify` returns one typed prediction a sequence."""
        with kind(server) as client:
            answer = client.classify([FRAMES, FRAMES[:2]], model="walks")
        assert type(answer) is answers.Classifications
        assert answer.classes == ["run", "sit", "stand", "wälk"]
        assert len(answer.predictions) == 2
        for prediction in answer.predictions:
            assert type(prediction) is answers.Classification
            assert prediction.top is None
            assert prediction.probabilities.shape == (4,)
            assert prediction.probabilities.dtype == np.float32
            best = int(prediction.probabilities.argmax())
            assert prediction.label == answer.classes[best]
            assert prediction.probability == pytest.approx(
                prediction.probabilities[best]
            )

    def test_label(self, server, kind):
        """`label` returns one class a step."""
        with kind(server) as client:
            answer = client.label([FRAMES, FRAMES[:1]], model="tags")
        assert type(answer) is answers.Labellings
        for prediction, length in zip(answer.predictions, (4, 1), strict=True):
            assert type(prediction) is answers.Labelling
            assert len(prediction.labels) == length
            assert prediction.probabilities.shape == (length, 3)
            assert prediction.top is None

    def test_top_k(self, server, kind):
        """With `top_k` there are choices instead, likeliest first."""
        with kind(server) as client:
            one = client.classify([FRAMES], model="walks", top_k=2).predictions[0]
            steps = client.label([FRAMES], model="tags", top_k=1).predictions[0]
        assert one.probabilities is None
        assert [type(choice) for choice in one.top] == [answers.Choice] * 2
        assert one.top[0].label == one.label
        assert one.top[0].probability >= one.top[1].probability
        assert steps.probabilities is None
        assert [step[0].label for step in steps.top] == steps.labels

    @pytest.mark.parametrize("container", [list, tuple])
    def test_in_parts(self, server, kind, container):
        """With `return_state` each prediction has its token and its steps, with which
        `states` goes on: the answers are those of the whole sequences."""
        longer = random_frames(np.random.default_rng(1), 9)
        with kind(server) as client:
            whole = client.classify([FRAMES, longer], model="walks")
            begun = client.classify([longer[:5]], model="walks", return_state=True)
            (first,) = begun.predictions
            assert first.steps == 5
            states = container([None, first.state])
            ended = client.classify([FRAMES, longer[5:]], model="walks", states=states)
            again = client.classify(
                [longer[5:]], model="walks", states=[first.state], return_state=True
            )
        for given, expected in zip(ended.predictions, whole.predictions, strict=True):
            assert given.label == expected.label
            np.testing.assert_allclose(
                given.probabilities, expected.probabilities, atol=1e-5
            )
            assert (given.steps, given.state) == (None, None)
        (last,) = again.predictions
        assert last.steps == 9
        assert last.state != first.state
        assert len(last.state) == len(first.state)

    def test_label_in_parts(self, server, kind):
        """So it is with the classes of steps, also with `top_k`."""
        with kind(server) as client:
            (whole,) = client.label([FRAMES], model="tags").predictions
            labels, rows, state = [], [], None
            for step in range(4):
                frames = FRAMES[step : step + 1]
                (one,) = client.label(
                    [frames], model="tags", states=[state], return_state=True
                ).predictions
                assert one.steps == step + 1
                labels += one.labels
                rows += [*one.probabilities]
                state = one.state
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

    def test_without_state(self, server, kind):
        """Who does not ask for a state gets none."""
        with kind(server) as client:
            (one,) = client.classify([FRAMES], model="walks").predictions
            (other,) = client.label([FRAMES], model="both").predictions
        assert (one.steps, one.state, other.steps, other.state) == (None,) * 4

    @pytest.mark.parametrize(
        "frames",
        [
            pytest.param(FRAMES.tolist(), id="lists"),
            pytest.param(FRAMES.astype(np.float64), id="float64"),
            pytest.param(np.asfortranarray(FRAMES), id="fortran"),
            pytest.param(np.repeat(FRAMES, 2, 0)[::2], id="strided"),
            pytest.param(tuple(map(tuple, FRAMES.tolist())), id="tuples"),
        ],
    )
    def test_any_array(self, server, kind, frames):
        """Whatever is like an array is taken for what it holds."""
        with kind(server) as client:
            expected = client.classify([FRAMES]).predictions[0].probabilities
            given = client.classify([frames]).predictions[0].probabilities
        np.testing.assert_array_equal(given, expected)

    def test_models_and_ready(self, server, kind):
        """`models` lists what is served, and a ready service gives no reasons."""
        with kind(server) as client:
            models = client.models()
            assert client.ready() == []
        assert {model["name"] for model in models} == {"walks", "tags", "both"}


@pytest.mark.parametrize("kind", KINDS)
class TestRefused:
    def test_fields(self, server, kind):
        """A refusal is raised with all that the service says of it."""
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

    def test_not_a_number(self, server, kind):
        """A number that JSON doesn't have is refused, with its place."""
        frames = FRAMES.copy()
        frames[2, 1] = np.nan
        with kind(server) as client, pytest.raises(RequestError) as caught:
            client.classify([frames])
        assert caught.value.status == 422
        assert caught.value.errors[0]["path"] == "sequences[0][2][1]"

    def test_state(self, server, kind):
        """So is a state that can't be gone on from, with its place and the reason."""
        with kind(server) as client:
            (one,) = client.label([FRAMES], model="tags", return_state=True).predictions
            for states, slug, status in (
                ([None, "c4n4ry"], "invalid-state", 422),
                ([None, one.state], "state-conflict", 409),
                ([one.state], "invalid-request", 422),
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

    @pytest.mark.parametrize(
        ("model", "status"), [("nobody", 404), ("tags", 422), ("", 404)]
    )
    def test_model(self, server, kind, model, status):
        """So is a model that isn't there, or isn't for this."""
        with kind(server) as client, pytest.raises(RequestError) as caught:
            client.classify([FRAMES], model=model)
        assert caught.value.status == status

    @pytest.mark.parametrize(
        ("header", "seconds"), [("7", 7), ("", None), ("Wed, 21 Oct 2026", None)]
    )
    def test_retry_after(self, kind, header, seconds):
        """`retry_after` is the seconds that the service asks to wait."""
        transport = answering(
            503, headers={"Retry-After": header}, json={"title": "Too much"}
        )
        with kind(transport=transport) as client, pytest.raises(RequestError) as caught:
            client.classify([FRAMES])
        assert caught.value.retry_after == seconds
        assert caught.value.title == "Too much"

    @pytest.mark.parametrize(
        "response",
        [
            pytest.param({"html": "<h1>Bad Gateway</h1>"}, id="html"),
            pytest.param({"content": b""}, id="empty"),
            pytest.param({"content": b"\xff\xfe\x00"}, id="binary"),
            pytest.param({"json": ["no", "problem"]}, id="list"),
            pytest.param({"json": "no problem"}, id="string"),
            pytest.param({"json": None}, id="null"),
            pytest.param({"json": {"errors": ["odd"]}}, id="odd-errors"),
        ],
    )
    def test_not_from_the_service(self, kind, response):
        """An error of a proxy in between, whatever its body, is a RequestError with
        its status."""
        for status in (502, 503):
            transport = answering(status, **response)
            for ask in (
                lambda client: client.classify([FRAMES]),
                lambda client: client.label([FRAMES]),
                lambda client: client.models(),
            ):
                client = kind(transport=transport)
                with client, pytest.raises(RequestError) as caught:
                    ask(client)
                assert caught.value.status == status

    @pytest.mark.parametrize(
        "response",
        [
            pytest.param({"html": "<h1>Bad Gateway</h1>"}, id="html"),
            pytest.param({"content": b""}, id="empty"),
            pytest.param({"json": ["no", "problem"]}, id="list"),
        ],
    )
    def test_not_ready_by_a_proxy(self, kind, response):
        """A proxy's 503 is not ready either, whatever its body."""
        with kind(transport=answering(503, **response)) as client:
            assert client.ready() == ["not ready"]

    def test_not_ready(self, kind):
        """A service that isn't ready says why."""
        body = {"status": "not ready", "reasons": ["loading the bundles"]}
        with kind(transport=answering(503, json=body)) as client:
            assert client.ready() == ["loading the bundles"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["classify", "label"])
class TestSent:
    def sent(self, kind, task, **options):
        """The members of a request, but for its sequences, as the service gets them."""
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
        first, second = (np.array(one, np.float32) for one in body.pop("sequences"))
        np.testing.assert_array_equal(first, FRAMES)
        np.testing.assert_array_equal(second, FRAMES[:1])
        return body

    def test_only_what_is_said(self, kind, task):
        """What is not said is not sent: a service of before knows no such member."""
        assert self.sent(kind, task) == {}
        options = {"model": None, "top_k": None, "states": None, "return_state": False}
        assert self.sent(kind, task, **options) == {}

    def test_all(self, kind, task):
        """What is said is sent as it is."""
        states = {"states": ["a", None], "return_state": True}
        options = {"model": "walks", "top_k": 2} | states
        assert self.sent(kind, task, **options) == options
        assert self.sent(kind, task, states=(None, None)) == {"states": [None, None]}
        assert self.sent(kind, task, states=[]) == {"states": []}


class Raw(socketserver.ThreadingTCPServer):
    """A real server that answers every request with the same bytes."""

    daemon_threads = True

    def __init__(self, raw):
        super().__init__(("127.0.0.1", 0), Handler)
        self.raw, self.asked = raw, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    """Reads one request, keeps its head in lower case, and answers."""

    timeout = SECONDS

    def handle(self):
        head = b"".join(iter(self.rfile.readline, b"\r\n")).decode().lower()
        _, _, length = head.partition("content-length:")
        self.rfile.read(int(length.split()[0]) if length else 0)
        self.server.asked.append(head)
        self.wfile.write(self.server.raw)


@contextmanager
def serving(raw):
    """Such a server, until the block ends."""
    with Raw(raw) as server:
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
    """An answer of either method whose one prediction is that."""
    whole = {
        "model": "m",
        "version": "1",
        "classes": ["a"],
        "predictions": [prediction],
    }
    return json.dumps(whole).encode()


def raised(kind, raw, ask):
    """The RequestError of a call that is answered with those bytes."""
    with (
        serving(raw) as server,
        kind(server.url, timeout=SECONDS) as client,
        pytest.raises(RequestError) as caught,
    ):
        ask(client)
    assert isinstance(caught.value.title, str)
    assert str(caught.value).startswith(f"{caught.value.status} ")
    return caught.value


ASKED = {
    "classify": lambda client: client.classify([FRAMES]),
    "label": lambda client: client.label([FRAMES]),
    "models": lambda client: client.models(),
    "ready": lambda client: client.ready(),
}
GOOD = {"label": "a", "probability": 1.0, "probabilities": [1.0]}
GOOD |= {"labels": ["a"]}
DIGITS = "9" * 5000
NO_ANSWERS = [
    pytest.param(b"", id="empty"),
    pytest.param(b"<h1>Welcome</h1>", id="html"),
    pytest.param(b"\xff\xfe", id="binary"),
    pytest.param(b"[" * 100_000, id="deep"),
    pytest.param(DIGITS.encode(), id="long-number"),
    pytest.param(b"[]", id="list"),
    pytest.param(b"null", id="null"),
    pytest.param(b"{}", id="no-members"),
    pytest.param(b'{"predictions": [], "models": [{}]}', id="few-members"),
    pytest.param(b'{"predictions": 5, "models": 5, "status": 5}', id="numbers"),
    pytest.param(answer_with(5), id="prediction-number"),
    pytest.param(answer_with({}), id="prediction-empty"),
    pytest.param(answer_with(GOOD | {"label": 5, "labels": 5}), id="label-number"),
    pytest.param(answer_with(GOOD | {"probabilities": "no"}), id="probabilities-text"),
    pytest.param(answer_with(GOOD | {"probabilities": [None]}), id="probability-null"),
    pytest.param(answer_with(GOOD | {"probabilities": [[1], [1, 2]]}), id="ragged"),
    pytest.param(answer_with(GOOD | {"probabilities": [[[1]]]}), id="axes"),
    pytest.param(answer_with(GOOD | {"probabilities": None}), id="no-probabilities"),
    pytest.param(answer_with(GOOD | {"top": [5]}), id="top-number"),
]
PROBLEMS = [
    pytest.param({"errors": [{}]}, id="errors-empty"),
    pytest.param({"errors": [{"path": "x"}, {"message": "y"}, 5]}, id="errors-half"),
    pytest.param({"errors": [{"path": 5, "message": ["y"]}]}, id="errors-numbers"),
    pytest.param({"errors": 5}, id="errors-number"),
    pytest.param({"errors": {"path": "x", "message": "y"}}, id="errors-object"),
    pytest.param(
        {"title": 5, "detail": [], "type": {}, "request_id": 3, "retry_after": [1]},
        id="other-types",
    ),
    pytest.param({"retry_after": DIGITS}, id="retry-after-digits"),
    pytest.param({"retry_after": 1e300}, id="retry-after-float"),
    pytest.param({"retry_after": True}, id="retry-after-true"),
    pytest.param({"retry_after": -1}, id="retry-after-negative"),
]


@pytest.mark.parametrize("kind", KINDS)
class TestNotTheService:
    @pytest.mark.parametrize("body", NO_ANSWERS)
    def test_no_answer(self, kind, body):
        """A 200 that is no answer of the service's raises InvalidAnswer with that
        status, and says what is wrong with it."""
        for ask in ASKED.values():
            error = raised(kind, response(200, body), ask)
            assert isinstance(error, InvalidAnswer)
            assert error.status == 200
            assert error.detail

    @pytest.mark.parametrize("status", [204, 300, 304, 308])
    def test_without_a_body(self, kind, status):
        """Whatever else a server says without a body is a RequestError, too."""
        for ask in ASKED.values():
            assert raised(kind, response(status), ask).status == status

    @pytest.mark.parametrize("problem", PROBLEMS)
    def test_problem(self, kind, problem):
        """Problem details whose members are not as documented count as if they were
        not there."""
        body = json.dumps(problem).encode()
        error = raised(kind, response(422, body), ASKED["classify"])
        assert (error.status, error.title, error.detail) == (422, "Said", "")
        assert (error.type, error.request_id) == ("about:blank", "")
        assert (error.errors, error.retry_after) == ([], None)

    @pytest.mark.parametrize(
        "body", [b"[" * 100_000, b'{"retry_after": %s}' % DIGITS.encode()]
    )
    def test_no_problem(self, kind, body):
        """So do those that no parser reads."""
        error = raised(kind, response(500, body), ASKED["models"])
        assert (error.status, error.retry_after) == (500, None)

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [(DIGITS, None), ("Wed, 21 Oct 2026 07:28:00 GMT", 3), ("7", 7)],
        ids=["digits", "date", "seconds"],
    )
    def test_retry_after(self, kind, header, seconds):
        """A Retry-After that is a date, or no time that could be waited for, leaves
        the body's."""
        member = b'{"retry_after": 3}' if seconds else b"{}"
        raw = response(503, member, Retry_After=header)
        assert raised(kind, raw, ASKED["label"]).retry_after == seconds

    def test_shown(self, kind):
        """The text of an error is one line that a terminal can show, however much the
        server says."""
        problem = {"title": "a\nb\x1b[2J", "detail": "x" * 10**6}
        body = json.dumps(problem).encode()
        error = raised(kind, response(400, body), ASKED["classify"])
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
    @pytest.mark.parametrize("status", [302, 307])
    def test_not_followed(self, kind, status):
        """A redirect is not followed; the error says where it leads."""
        with serving(response(200, b"{}")) as other:
            raw = response(status, Location=f"{other.url}/there")
            for ask in ASKED.values():
                error = raised(kind, raw, ask)
                assert error.status == status
                assert f"{other.url}/there" in str(error)
            assert other.asked == []

    @pytest.mark.parametrize(
        "location", ["mailto:x", "http://[::1", "http://xn--/", "//", "\xff", ""]
    )
    def test_leads_nowhere(self, kind, location):
        """Nor is one whose Location is no address."""
        error = raised(kind, response(302, Location=location), ASKED["models"])
        assert error.status == 302

    @pytest.mark.parametrize("status", [302, 307])
    def test_to_another_origin(self, kind, status):
        """With httpx' `follow_redirects` the caller's headers and cookies, a key in
        whatever header above all, are not sent to another origin."""
        options = {"timeout": SECONDS, "follow_redirects": True, **SECRETS}
        with ExitStack() as stack:
            other = stack.enter_context(serving(response(200, b"{}")))
            redirect = response(status, Location=f"{other.url}/there")
            first = stack.enter_context(serving(redirect))
            client = stack.enter_context(kind(first.url, **options))
            for ask in ASKED.values():
                with pytest.raises(InvalidAnswer):
                    ask(client)
        assert len(first.asked) == len(other.asked) == len(ASKED)
        assert all(head.count("s3cret") == 3 for head in first.asked)
        assert not any("s3cret" in head for head in other.asked)
        assert all(f"host: {other.url[7:]}" in head for head in other.asked)

    def test_to_the_same_origin(self, kind):
        """They are sent where it leads to the same origin."""

        def answer(request):
            asked.append(request.headers.get("X-API-Key"))
            if request.url.path == "/models":
                return httpx.Response(307, headers={"Location": "/there"})
            return httpx.Response(200, json={"models": []})

        asked, transport = [], httpx.MockTransport(answer)
        options = {"headers": {"X-API-Key": "s3cret"}, "follow_redirects": True}
        with kind(transport=transport, **options) as client:
            assert client.models() == []
        assert asked == ["s3cret"] * 2


@pytest.fixture
def mute():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        kept, stopped = [], threading.Event()

        def accept():
            while not stopped.is_set():
                try:
                    kept.append(listening.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        stopped.set()
        thread.join(10)
        for connection in kept:
            connection.close()


@pytest.fixture
def closed():
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("kind", KINDS)
class TestNoAnswer:
    def test_timeout(self, mute, kind):
        """A service that doesn't answer in time raises httpx's own error."""
        with kind(mute, timeout=0.2) as client, pytest.raises(httpx.TimeoutException):
            client.classify([FRAMES])

    def test_gone(self, closed, kind):
        """So does one that isn't there, for every method."""
        with kind(closed) as client:
            for ask in (
                lambda: client.classify([FRAMES]),
                lambda: client.label([FRAMES]),
                client.models,
                client.ready,
            ):
                with pytest.raises(httpx.ConnectError):
                    ask()

    def test_ragged(self, closed, kind):
        """What is no array is refused before anything is sent."""
        with kind(closed) as client, pytest.raises(ValueError, match="inhomogeneous"):
            client.classify([[[1, 2, 3], [1, 2]]])


def test_options(server):
    """Further options reach httpx: an Authorization header for a proxy, say."""
    options = {"headers": {"X-Request-ID": "mine"}}
    with Client(server, **options) as client, pytest.raises(RequestError) as caught:
        client.classify([])
    assert caught.value.request_id == "mine"


def test_shared_between_threads(server):
    """One client serves many threads."""
    answers = {}
    sequences = [random_frames(np.random.default_rng(n), 1 + n) for n in range(16)]
    with Client(server) as client:

        def ask(place):
            answers[place] = client.label([sequences[place]])

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
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
