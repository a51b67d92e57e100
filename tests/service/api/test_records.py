"""Requests of records over HTTP: answers, times across calls, streams, refusals."""

import random

import httpx
import numpy as np
import pytest

from model.bundle import bundle, onnx_step
from service.client import Client
from service.client.errors import RequestError
from service.settings import Settings
from tests.support.bundles import EVENTS
from tests.support.servers import running


@pytest.fixture(scope="module")
def url(text_bundles):
    settings = Settings(
        port=0, bundles=text_bundles, max_steps=5_000, max_sequences=50, workers=1
    )
    with running(settings) as service:
        yield service.url


@pytest.fixture(scope="module")
def client(url):
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def exact(text_bundles):
    """The answers of a bundle's network to a sequence of records, computed by itself."""

    def compute(name, records, precision="float32"):
        verified = bundle.read(text_bundles / name / "1")
        frames, _ = verified.schema().encode(records)
        file = bundle.INT8 if precision == "int8" else bundle.NETWORK
        step = onnx_step.load(verified.content(file.as_posix()))
        state = np.zeros((1, verified.metadata.state_size), np.float32)
        lengths = np.array([len(records)], np.int32)
        return step(frames[None], lengths, state)[0][0]

    return compute


def make(count, seed=0):
    """Records of a visit; some categories are not listed."""
    draw, second = random.Random(seed), 1_700_000_000
    records = []
    for _ in range(count):
        second += draw.choice([0, 1, 30, 4_000])
        record = {"event": draw.choice([*EVENTS, "refund", None]), "at": second}
        record |= {"host": f"host{draw.randint(1, 9)}", "bytes": draw.random() * 1e3}
        records.append(record)
    return records


def post(url, path, **body):
    return httpx.post(f"{url}/{path}", json=body, timeout=30)


def test_answers_batch(url, client, exact):
    """All sequences of a request are answered as by themselves."""
    sequences = [make(count, count) for count in (1, 7, 300)]
    for path, name in (("classify", "visits"), ("label", "calls")):
        response = post(url, path, records=sequences, model=name)
        assert response.status_code == 200, response.text
        answers = response.json()["predictions"]
        for records, answer in zip(sequences, answers, strict=True):
            expected = exact(name, records, client.model(name).precision)
            got = np.array(answer["probabilities"], np.float32)
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_answers_resumed(client, exact):
    """A sequence may be cut anywhere: a state token holds the last time."""
    records = make(9)
    expected = exact("visits", records)
    for cut in (1, 4, 8):
        first = client.classify([records[:cut]], model="visits", return_state=True)
        state = first.predictions[0].state
        rest = client.classify([records[cut:]], model="visits", states=[state])
        got = rest.predictions[0].probabilities
        np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(RequestError, match="earlier than the previous") as error:
        client.classify([records[:1]], model="visits", states=[state])
    assert error.value.errors[0]["path"] == "records[0][0].at"


def test_answers_defaults(url):
    """Without a name the first model of the task that reads records answers."""
    assert post(url, "classify", records=[make(1)]).json()["model"] == "visits"
    assert post(url, "label", records=[make(1)]).json()["model"] == "calls"


def test_answers_large(client, exact):
    """Records whose JSON is parsed in another process are answered alike."""
    records = make(4_000)
    (answer,) = client.classify([records], model="visits").predictions
    expected = exact("visits", records)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)


def test_answers_example(url, client):
    """The model's description has a request that is answered."""
    for name, path in (("visits", "classify"), ("calls", "label")):
        about = client.model(name)
        assert about.input == "records"
        assert post(url, path, **about.example).status_code == 200
    assert about.kinds == {"event": "category", "bytes": "number"}


def test_streams_cut(client, exact):
    """Each message adds records; the last answer is that of the whole sequence."""
    records = make(8)
    with client.stream("visits") as stream:
        parts = (records[:3], records[3:4], records[4:])
        answers = [stream.send(part) for part in parts]
    assert [answer.steps for answer in answers] == [3, 4, 8]
    got = answers[-1].probabilities
    np.testing.assert_allclose(got, exact("visits", records), atol=1e-5)


def test_streams_refused(client):
    """An invalid message changes nothing."""
    first, second = make(2)
    with client.stream("visits") as stream:
        stream.send([first])
        for message, reason in (
            ([second | {"bytes": "x"}], r"records\[0\].bytes"),
            ([second | {"at": 0}], "earlier than the previous"),
            ([[1.0] * 4], "takes records"),
            ("login", "takes records"),
        ):
            with pytest.raises(RequestError, match=reason):
                stream.send(message)
        assert stream.send([second]).steps == 2


GOOD = make(1)[0]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("classify", {"records": []}, "records"),
        ("classify", {"records": [[GOOD], []]}, "records[1]"),
        ("classify", {"records": [GOOD]}, "records[0]"),
        ("classify", {"records": [[1]]}, "records[0][0]"),
        ("classify", {"records": [[GOOD, {}]]}, "records[0][1].event"),
        ("classify", {"records": [[GOOD | {"bytes": []}]]}, "records[0][0].bytes"),
        ("classify", {"records": [[GOOD]], "texts": ["a"]}, "texts and records"),
        ("classify", {"records": [[GOOD]], "states": []}, "states"),
        ("classify", {"records": [[GOOD]], "spans": True}, "spans"),
        ("classify", {"records": [[GOOD]], "model": "calls"}, "model"),
        ("classify", {"records": [[GOOD]], "model": "commands"}, "records"),
        ("classify", {"texts": ["a"], "model": "visits"}, "texts"),
        ("classify", {"sequences": [[[1, 2, 3, 4]]], "model": "visits"}, "sequences"),
    ],
)
def test_refused(url, path, body, field):
    """An error names the field."""
    response = post(url, path, **body)
    assert response.status_code == 422, response.text
    assert [error["path"] for error in response.json()["errors"]] == [field]


def test_limits(url):
    """Sequences, steps and numbers are limited; a body of empty records is not parsed."""
    for body in ({"records": [[GOOD] * 5_001]}, {"records": [[GOOD]] * 51}):
        assert post(url, "classify", **body).status_code == 413
    bomb = b'{"records": [[' + b"{}," * 2_000_000 + b"{}]]}"
    response = httpx.post(f"{url}/classify", content=bomb, timeout=30)
    assert response.status_code == 413


def test_other_members(url):
    """Members that are no columns are ignored, whatever they are; a list in a column is
    refused where it stands."""
    more = {"user": {"id": 1}, "tags": [["a"]] * 1_000}
    plain = post(url, "classify", records=[[GOOD] * 100]).json()
    full = post(url, "classify", records=[[GOOD | more] * 100]).json()
    assert full == plain
    response = post(url, "classify", records=[[GOOD] * 900 + [GOOD | {"host": [1]}]])
    (error,) = response.json()["errors"]
    assert error["path"] == "records[0][900].host"
    escaped = b'{"\\u0072ecords": [[' + b"[]," * 2_000_000 + b"[]]]}"
    assert httpx.post(f"{url}/classify", content=escaped).status_code == 413


def test_strange(url):
    """Names of any characters are answered, and neighbours are untouched."""
    expected = post(url, "classify", records=[[GOOD]]).json()["predictions"][0]
    for value in ("\0", "\u0301" * 500, "x" * 100_000, "\u202e", -(10**30)):
        sequences = [[GOOD | {"event": value}], [GOOD]]
        response = post(url, "classify", records=sequences)
        assert response.status_code == 200, response.text
        assert response.json()["predictions"][1] == expected
