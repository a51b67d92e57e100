"""Requests of text over HTTP: words and characters, states, streams, spans, refusals."""

import asyncio
import json

import httpx
import numpy as np
import pytest

from model.bundle import bundle, onnx_step
from model.bundle.vocabulary import tokenize
from service.client import Client
from service.client.errors import RequestError
from service.settings import Settings
from tests.support.servers import running

SENTENCE = "Anna9 Smith sees the naïve 🐕"
COMMAND = "turn on the naïve café, please"


@pytest.fixture(scope="module")
def url(text_bundles):
    settings = Settings(
        port=0,
        bundles=text_bundles,
        max_steps=5_000,
        max_sequences=50,
        workers=1,
        default_label="names",
    )
    with running(settings) as service:
        yield service.url


@pytest.fixture(scope="module")
def client(url):
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def exact(text_bundles):
    """The answers of a bundle's network to one text, computed by itself."""

    def compute(name, text, precision="float32"):
        verified = bundle.read(text_bundles / name / "1")
        words = verified.vocabulary()
        tokens = tokenize(text, words.kind)
        file = bundle.INT8 if precision == "int8" else bundle.NETWORK
        step = onnx_step.load(verified.content(file.as_posix()))
        frames = words.encode(tokens)[None]
        state = np.zeros((1, verified.metadata.state_size), np.float32)
        return step(frames, np.array([len(tokens)], np.int32), state)[0][0]

    return compute


def post(url, path, **body):
    return httpx.post(f"{url}/{path}", json=body, timeout=30)


def precision(client, name):
    return client.model(name).precision


def test_answers_words(url, client, exact):
    """Each word has a label and its place in code points; all in one request are
    answered as by themselves."""
    texts = [SENTENCE, "Bob", "the the the " * 40]
    response = post(url, "label", texts=texts, model="names")
    assert response.status_code == 200, response.text
    for text, prediction in zip(texts, response.json()["predictions"], strict=True):
        expected = exact("names", text, precision(client, "names"))
        got = np.array(prediction["probabilities"], np.float32)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        for token in prediction["tokens"]:
            assert text[token["start"] : token["end"]] == token["text"]
    known = [t["known"] for t in response.json()["predictions"][0]["tokens"]]
    assert known == [False, True, True, True, True, False]


def test_answers_tokens(url):
    """Tokens that the client has cut are answered as the same text, and have spans by
    their numbers."""
    words = tokenize(SENTENCE, "tokens")
    cut = post(url, "label", tokens=[words], model="names", spans=True)
    whole = post(url, "label", texts=[SENTENCE], model="names", spans=True)
    (cut,), (whole,) = cut.json()["predictions"], whole.json()["predictions"]
    assert cut["probabilities"] == whole["probabilities"]
    assert "tokens" not in cut
    for first, second in zip(cut["spans"], whole["spans"], strict=True):
        assert second["text"] == SENTENCE[second["start"] : second["end"]]
        assert first["text"] == " ".join(words[first["first"] : first["last"] + 1])
        assert (first["label"], first["probability"]) == (
            second["label"],
            second["probability"],
        )


def test_answers_characters(client, exact):
    """A text is classified character by character, and may be cut anywhere."""
    answer = client.classify([COMMAND], model="commands")
    expected = exact("commands", COMMAND)
    got = answer.predictions[0].probabilities
    np.testing.assert_allclose(got, expected, atol=1e-5)
    for cut in (1, 7, len(COMMAND) - 1):
        first = client.classify(
            [COMMAND[:cut]], model="commands", return_state=True
        ).predictions[0]
        rest = client.classify([COMMAND[cut:]], model="commands", states=[first.state])
        np.testing.assert_allclose(
            rest.predictions[0].probabilities, expected, atol=1e-5
        )


def test_answers_defaults(url):
    """Without a name the first model of the task that reads text answers."""
    assert post(url, "label", texts=["Bob"]).json()["model"] == "names"
    assert post(url, "classify", texts=["Bob"]).json()["model"] == "commands"
    assert post(url, "classify", sequences=[[[1]]]).status_code == 404


def test_answers_large(url):
    """A text whose JSON is parsed in another process is answered alike."""
    text = "Anna sees the dog " * 1_000
    response = post(url, "label", texts=[text], model="names", top_k=1)
    assert len(response.json()["predictions"][0]["labels"]) == 4_000
    small = post(url, "label", texts=[text[:18]], model="names", top_k=1)
    labels = small.json()["predictions"][0]["labels"]
    assert response.json()["predictions"][0]["labels"][:4] == labels


def test_streams_characters(client, exact):
    """Each message adds characters; the last answer is that of the whole text."""
    with client.stream("commands") as stream:
        answers = [stream.send(part) for part in (COMMAND[:3], "n", COMMAND[4:])]
    assert [answer.steps for answer in answers] == [3, 4, len(COMMAND)]
    np.testing.assert_allclose(
        answers[-1].probabilities, exact("commands", COMMAND), atol=1e-5
    )


def test_streams_words(client):
    """A stream of words takes tokens, and no text, whose last word may be unfinished."""
    words = tokenize(SENTENCE, "tokens")
    whole = client.label([words], model="names").predictions[0]
    with client.stream("names") as stream:
        labels = [stream.send([word]).labels[0] for word in words]
        with pytest.raises(RequestError, match="unfinished"):
            stream.send("Bob")
        assert stream.send(["Bob"]).steps == len(words) + 1
    assert labels == whole.labels


def test_streams_wrong_kind(client):
    with client.stream("commands") as stream:
        with pytest.raises(RequestError, match="takes text"):
            stream.send([[1.0]])
        with pytest.raises(RequestError, match="at least one token"):
            stream.send("")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("label", {"texts": []}, "texts"),
        ("label", {"texts": ["Bob", "  "]}, "texts[1]"),
        ("label", {"tokens": [["Bob", ""]]}, "tokens[0][1]"),
        ("classify", {"texts": ["turn on"], "spans": True}, "spans"),
        ("label", {"texts": ["Bob"], "tokens": [["Bob"]]}, "texts and tokens"),
        ("label", {"model": "names"}, "sequences"),
        ("label", {"sequences": [[[1.0] * 9]], "model": "names"}, "sequences"),
        ("label", {"texts": [1]}, "texts[0]"),
        ("label", {"tokens": ["Bob"]}, "tokens[0]"),
        ("label", {"texts": ["Bob"], "states": []}, "states"),
        ("classify", {"tokens": [["turn"]], "model": "commands"}, "tokens"),
        ("classify", {"texts": ["a"], "model": "names"}, "model"),
    ],
)
def test_refused(url, path, body, field):
    """An error names the field."""
    response = post(url, path, **body)
    assert response.status_code == 422, response.text
    assert [error["path"] for error in response.json()["errors"]] == [field]


def test_limits(url):
    for body in ({"texts": ["a " * 5_001]}, {"texts": ["a"] * 51}):
        assert post(url, "label", **body).status_code == 413


@pytest.mark.parametrize(
    "text",
    ["\0", "\u0301" * 500, "x" * 100_000, "a " * 4_999, "\u200f\u202e", "𝒳" * 99],
)
def test_strange(url, text):
    """Any text is answered, or refused for what is wrong with it."""
    response = post(
        url, "label", texts=[text, "Bob sees the dog"], model="names", top_k=1
    )
    assert response.status_code in (200, 413, 422), response.text
    if response.status_code == 200:
        single = post(url, "label", texts=["Bob sees the dog"], model="names", top_k=1)
        both = response.json()["predictions"][1]
        assert both == single.json()["predictions"][0]


def test_lone_surrogate(url):
    """JSON can spell half a character, which is no text."""
    for body in (b'{"texts": ["a\\ud800"]}', b'{"tokens": [["\\udc00"]]}'):
        response = httpx.post(f"{url}/label", content=body)
        assert response.status_code == 400


def test_description(url, client):
    """The model says what it takes."""
    kinds = {m["name"]: m["input"] for m in httpx.get(f"{url}/models").json()["models"]}
    assert (kinds["names"], kinds["commands"]) == ("tokens", "characters")
    assert client.model("names").features[0] == "word"


def test_many_at_once(url):
    """Texts of many callers, batched together, are answered as by themselves."""
    texts = [f"Anna{n} sees the dog " * (1 + n % 7) for n in range(60)]

    async def ask():
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            bodies = [{"texts": [text], "model": "names"} for text in texts]
            responses = await asyncio.gather(
                *(http.post("/label", content=json.dumps(body)) for body in bodies)
            )
        return [response.json()["predictions"][0] for response in responses]

    together = asyncio.run(ask())
    for text, prediction in zip(texts[::12], together[::12], strict=True):
        (single,) = post(url, "label", texts=[text], model="names").json()[
            "predictions"
        ]
        np.testing.assert_allclose(
            prediction["probabilities"], single["probabilities"], atol=1e-5
        )
