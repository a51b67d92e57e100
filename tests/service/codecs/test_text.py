"""Spans of labelled tokens, and the tokens of a request."""

import asyncio

import numpy as np
import pytest

from model.bundle.vocabulary import tokenize
from service.codecs import text
from service.errors import InvalidRequest, TooLarge
from service.settings import Limits

BIO = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
LIMITS = Limits(max_sequences=3, max_steps=20, max_cells=100)


def probabilities(classes, *rows):
    """Probabilities [T, C] from the classes' names with their probabilities."""
    values = np.full((len(rows), len(classes)), 0.01, np.float32)
    for row, chosen in zip(values, rows, strict=True):
        for name, value in chosen.items():
            row[classes.index(name)] = value
    return values


def test_bio():
    """`I-` continues a span of its type only; a less probable label is taken where the most
    probable one can't stand."""
    sentence = "Ann Lee saw New York"
    tokens = tokenize(sentence, "tokens")
    values = probabilities(
        BIO,
        {"I-PER": 0.5, "B-PER": 0.45},
        {"I-PER": 0.9},
        {"O": 0.9},
        {"B-LOC": 0.8},
        {"I-LOC": 0.7},
    )
    spans = text.spans(BIO, values, tokens, sentence)
    assert [(s["label"], s["text"], s["start"], s["end"]) for s in spans] == [
        ("PER", "Ann Lee", 0, 7),
        ("LOC", "New York", 12, 20),
    ]
    assert spans[0]["probability"] == pytest.approx(0.45)


def test_neighbours():
    """Two spans of a type that touch are two, where the second begins."""
    tokens = list("abc")
    values = probabilities(BIO, {"B-PER": 0.9}, {"B-PER": 0.9}, {"I-PER": 0.9})
    spans = text.spans(BIO, values, tokens, None)
    assert [(s["first"], s["last"], s["text"]) for s in spans] == [
        (0, 0, "a"),
        (1, 2, "b c"),
    ]


def test_plain_labels():
    """Labels without prefixes: neighbours with one label are a span."""
    classes = ("NOUN", "O", "VERB")
    values = probabilities(
        classes, {"NOUN": 0.9}, {"NOUN": 0.6}, {"O": 0.9}, {"VERB": 0.8}
    )
    tokens = list("abcd")
    spans = text.spans(classes, values, tokens, None)
    assert [(s["label"], s["first"], s["last"]) for s in spans] == [
        ("NOUN", 0, 1),
        ("VERB", 3, 3),
    ]
    assert spans[0]["probability"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("texts", "tokens", "kind", "path"),
    [
        ([], None, "tokens", "texts"),
        (["a", " "], None, "tokens", "texts[1]"),
        ([""], None, "characters", "texts[0]"),
        (None, [["a", ""]], "tokens", "tokens[0]"),
        (None, [["a"]], "characters", "tokens"),
    ],
)
def test_empty(texts, tokens, kind, path):
    with pytest.raises(InvalidRequest) as caught:
        text.to_tokens(texts, tokens, kind, LIMITS, 2)
    assert [error.path for error in caught.value.errors] == [path]


@pytest.mark.parametrize("texts", [["a"] * 4, ["a " * 21], ["a " * 20] * 3])
def test_limits(texts):
    """Sequences, tokens in one, and ids in all are limited."""
    with pytest.raises(TooLarge):
        text.to_tokens(texts, None, "tokens", LIMITS, 2)


def test_others_have_turns():
    """A long text is encoded in pieces, between which other tasks run."""

    class Words:
        def encode(self, tokens):
            return np.zeros((len(list(tokens)), 2), np.float32)

    async def run():
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        tokens = ["a"] * (3 * text.AT_ONCE + 1)
        (frames,) = await text.encode(Words(), [tokens])
        other.cancel()
        return len(frames), turns

    assert asyncio.run(run()) == (3 * text.AT_ONCE + 1, 3)
