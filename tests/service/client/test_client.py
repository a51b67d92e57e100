"""The Python clients: results, and refused requests."""

import inspect
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx
import numpy as np
import pytest

from service.client import (
    AsyncClient,
    AsyncStream,
    Client,
    ConnectionLost,
    RequestError,
    Stream,
    results,
)
from service.http.middleware import REQUEST_ID
from tests.support.bundles import random_frames

FRAMES = random_frames(np.random.default_rng(0), 4)


class TestResults:
    def test_classify(self, server, kind):
        """`classify` returns one prediction per sequence."""
        client = kind.client(server)
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
        client = kind.client(server)
        answer = client.label([FRAMES, FRAMES[:1]], model="tags")
        assert type(answer) is results.Labellings
        for prediction, length in zip(answer.predictions, (4, 1), strict=True):
            assert type(prediction) is results.Labelling
            assert len(prediction.labels) == length
            assert prediction.probabilities.shape == (length, 3)
            assert prediction.top is None

    def test_top_k(self, server, kind):
        """With `top_k` there are choices in place of probabilities, likeliest first."""
        client = kind.client(server)
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
        client = kind.client(server)
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
        client = kind.client(server)
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
        client = kind.client(server)
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
        client = kind.client(server)
        models = client.models()
        assert client.ready() == []
        assert {model.name for model in models} == {"walks", "tags", "both"}

    def test_model(self, server, kind):
        """The models have every member that the service lists; `model` adds more."""
        client = kind.client(server)
        listed = httpx.get(f"{server}/models").json()["models"]
        assert [asdict(model) for model in client.models()] == listed
        for body in listed:
            name = f"{body['name']}@1"
            model = client.model(name)
            assert asdict(model) == httpx.get(f"{server}/models/{name}").json()
            assert len(model.features) == model.feature_count == 3
        for name in ("nobody", "a/b", "", "ä?"):
            with pytest.raises(RequestError) as caught:
                client.model(name)
            assert caught.value.status == 404

    def test_other_versions(self, kind):
        """Members that a newer service adds are ignored, and an older one's are few."""
        few = {"name": "a", "version": "1", "task": "label", "classes": ["x"]}
        few |= {"feature_count": 2, "streamable": True}
        for extra in ({}, {"colour": "blue"}):
            body = {"models": [few | extra], **extra}
            transport = httpx.MockTransport(
                lambda _, b=body: httpx.Response(200, json=b)
            )
            (model,) = kind.client(transport=transport).models()
            assert (model.name, model.labels, model.default) == ("a", {}, False)


class TestRefused:
    def test_fields(self, server, kind):
        """RequestError has all members of the problem details."""
        client = kind.client(server)
        with pytest.raises(RequestError) as caught:
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
        client = kind.client(server)
        with pytest.raises(RequestError) as caught:
            client.classify([frames])
        with pytest.raises(ValueError, match="inhomogeneous"):
            client.classify([[[1, 2, 3], [1, 2]]])
        assert caught.value.status == 422
        assert caught.value.errors[0]["path"] == "sequences[0][2][1]"

    def test_state(self, server, kind):
        """An invalid state token is refused with its path."""
        client = kind.client(server)
        (first,) = client.label([FRAMES], model="tags", return_state=True).predictions
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


@pytest.mark.parametrize("task", ["classify", "label"])
def test_request_body(kind, task):
    """A request has the options that were given, and no others: an older service may not
    know them."""

    def body(**options):
        bodies = []

        def answer(request):
            bodies.append(json.loads(request.content))
            return httpx.Response(503, json={})

        client = kind.client(transport=httpx.MockTransport(answer), retries=0)
        with pytest.raises(RequestError):
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


def test_options(server):
    """Headers are sent with each request."""
    options = {"headers": {"X-Request-ID": "mine"}}
    with Client(server, **options) as client, pytest.raises(RequestError) as caught:
        client.classify([])
    assert caught.value.request_id == "mine"


def test_shared_between_threads(server):
    """Threads may share a client."""
    sequences = [random_frames(np.random.default_rng(n), n) for n in range(1, 17)]
    with Client(server) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda frames: client.label([frames]), sequences))
    assert [len(answer.predictions[0].labels) for answer in answers] == [*range(1, 17)]


def test_pickled(server):
    """An error is the same after it was sent to another process."""
    with Client(server) as client, pytest.raises(RequestError) as refused:
        client.classify([FRAMES[:, :2]])
    nobody = Client("http://127.0.0.1:1", retries=0)
    with nobody, pytest.raises(ConnectionLost) as lost:
        nobody.models()
    for error in (refused.value, lost.value):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))
        assert vars(copy) == vars(error)


def test_both_alike():
    """Both kinds of clients and streams have the same methods and parameters."""
    for blocking, other in ((Stream, AsyncStream), (Client, AsyncClient)):
        names = {name for name in vars(blocking) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in names | {"__init__"}:
            first, second = (
                list(inspect.signature(getattr(kind, name)).parameters.values())
                for kind in (blocking, other)
            )
            for parameter, other_parameter in zip(first, second, strict=True):
                if parameter.name == "transport":  # of httpx: each has its own kind
                    assert other_parameter.kind == parameter.kind
                else:
                    assert other_parameter == parameter, name
