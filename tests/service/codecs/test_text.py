"""Spans of labelled tokens, and the tokens of a request."""

import asyncio

import numpy as np
import pytest

from model.bundle.spans import most_probable, tagging_scheme
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


def find_spans(classes, values, tokens, content):
    (spans,) = text.all_spans(classes, [values], [tokens], [content])
    return spans


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
    spans = find_spans(BIO, values, tokens, sentence)
    assert [(s["label"], s["text"], s["start"], s["end"]) for s in spans] == [
        ("PER", "Ann Lee", 0, 7),
        ("LOC", "New York", 12, 20),
    ]
    assert spans[0]["probability"] == pytest.approx(0.45)


def test_neighbours():
    """Two spans of a type that touch are two, where the second begins."""
    tokens = list("abc")
    values = probabilities(BIO, {"B-PER": 0.9}, {"B-PER": 0.9}, {"I-PER": 0.9})
    spans = find_spans(BIO, values, tokens, None)
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
    spans = find_spans(classes, values, tokens, None)
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
        (None, [["a", ""]], "tokens", "tokens[0][1]"),
        (None, [["a"]], "characters", "tokens"),
        (None, [["a"], ["a", "b" * 5_000]], "tokens", "tokens[1]"),
    ],
)
def test_refused(texts, tokens, kind, path):
    """A text without tokens, and a token that is too long, are named."""
    with pytest.raises(InvalidRequest) as caught:
        text.to_tokens(texts, tokens, kind, LIMITS, 2)
    assert [error.path for error in caught.value.errors] == [path]


@pytest.mark.parametrize("texts", [["a"] * 4, ["a " * 21], ["a " * 20] * 3])
def test_limits(texts):
    """Sequences, tokens in one, and ids in all are limited."""
    with pytest.raises(TooLarge):
        text.to_tokens(texts, None, "tokens", LIMITS, 2)


@pytest.mark.parametrize(
    ("token", "pieces"), [("a", 3), ("a" * 4_000, 3 * text.AT_ONCE // 8)]
)
def test_others_have_turns(token, pieces):
    """A long text is encoded in pieces, between which other tasks run; in smaller ones
    where its tokens are long."""

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
        tokens = [token] * (3 * text.AT_ONCE + 1)
        (frames,) = await text.encode(Words(), [tokens])
        other.cancel()
        return len(frames), turns

    assert asyncio.run(run()) == (3 * text.AT_ONCE + 1, pieces)


def test_best_path():
    """The best path of classes is that of an exhaustive Viterbi over all
    pairs of classes, of which an inside class may follow its own type alone."""
    rng = np.random.default_rng(0)
    kinds = [f"t{number}" for number in range(4)]
    classes = ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BIEL"))
    scheme = tagging_scheme(classes)
    for _ in range(20):
        values = rng.dirichlet(np.ones(len(classes)) / 3, 12).astype(np.float32)
        scores = np.log(np.maximum(values.astype(np.float64), 1e-12))

        def may_follow(first, second):
            return second[0] not in "IEL" or (
                first[0] in "BI" and first[2:] == second[2:]
            )

        best = [
            (-1e9 if c[0] in "IEL" else 0) + scores[0][k] for k, c in enumerate(classes)
        ]
        paths = [[k] for k in range(len(classes))]
        for row in scores[1:]:
            chosen = [
                max(
                    (k for k, c in enumerate(classes) if may_follow(c, after)),
                    key=best.__getitem__,
                )
                for after in classes
            ]
            paths = [[*paths[k], code] for code, k in enumerate(chosen)]
            best = [best[k] + row[code] for code, k in enumerate(chosen)]
        expected = paths[int(np.argmax(best))]
        assert most_probable(values, scheme).tolist() == expected
