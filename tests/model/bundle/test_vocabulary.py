"""Vocabularies: tokens with their places, ids that are the same everywhere, lying files."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.bundle import bundle, vocabulary
from model.bundle.bundle import BundleError
from model.bundle.vocabulary import Column, Vocabulary, starts, tokenize
from tests.support.bundles import seal


def make(entries=("the", "cat"), **changes):
    columns = [Column(name="word", size=1 + len(entries), width=4)]
    columns += [
        Column(name=name, size=64, width=2) for name in ("lower", "suffix3", "shape")
    ]
    values = {"kind": "tokens", "columns": (*columns,), "entries": entries}
    return Vocabulary(**values | changes)


def test_words():
    """Numbers, apostrophes and hyphens stay together; punctuation stands by itself."""
    text = "Don't pay 1,250.50 for co-op, naïve 猫!"
    words = tokenize(text, "tokens")
    assert words == [
        "Don't",
        "pay",
        "1,250.50",
        "for",
        "co-op",
        ",",
        "naïve",
        "猫",
        "!",
    ]


@given(st.text(max_size=40))
def test_places(text):
    """Each token is the text at its place; between them there are spaces only. Characters
    are cut anywhere alike."""
    for kind in vocabulary.KINDS:
        tokens = tokenize(text, kind)
        end = 0
        for token, start in zip(tokens, starts(text, tokens), strict=True):
            assert text[start : start + len(token)] == token
            assert not text[end:start].strip()
            end = start + len(token)
        assert not text[end:].strip()
    letters = tokenize(text, "characters")
    half = len(text) // 2
    parts = [*tokenize(text[:half], "characters"), *tokenize(text[half:], "characters")]
    assert letters == parts == list(text)


@given(st.text("a1_.,:'’- é", max_size=60))
def test_words_need_no_backtracking(text):
    """Possessive quantifiers find the words that a backtracking pattern finds."""
    plain = re.compile(r"\d+(?:[.,:]\d+)*|\w+(?:['’.-]\w+)*|[^\w\s]")
    assert tokenize(text, "tokens") == plain.findall(text)


def test_long_words():
    """A word of a megabyte is many tokens of at most 4,096 characters, found one by one:
    the first tokens take no memory for the others."""
    for piece in ("1.1.", "a-b-", "x"):
        text = piece * 2**18
        tokens = tokenize(text, "tokens")
        assert max(map(len, tokens)) <= vocabulary.MAX_TOKEN
        assert "".join(tokens) == text
        assert tokenize(text, "tokens", 3) == tokens[:3]


def test_ids():
    """The first column is a place in the list; the others are hashes, which never change
    (CRC-32), of any string that JSON can hold."""
    words = make()
    assert words.row("the") == (1, 27, 45, 0)
    assert words.row("The")[:2] == (0, 27)
    rows = words.encode(["cat", "\ud800", "x" * 10_000, "́́"])
    assert rows.dtype == np.float32
    assert rows.shape == (4, 4)
    assert (rows < [3, 64, 64, 64]).all()
    assert words.is_known("cat")
    assert not words.is_known("Cat")


def test_shape():
    assert [vocabulary.shape(word) for word in ("Dan", "12.5", "iOS-7", "猫")] == [
        "Xxx",
        "dd.d",
        "xXX-d",
        "x",
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"entries": ["a", "a"]}, "repeated"),
        ({"entries": ["a"]}, "size"),
        ({"entries": ["a", "x" * 300]}, "256"),
        ({"kind": "characters"}, "unknown columns"),
        ({"kind": "letters"}, "kind"),
        ({"columns": []}, "columns"),
        ({"examples": [["the", [2, 0, 0, 0]]]}, "example"),
        ({"more": 1}, "more"),
        ({"entries": ["a"] * 800_000}, "more than 250,000 entries"),
        ({"examples": [[]] * 600_000}, "more than 250,000 entries"),
    ],
)
def test_lies(changes, reason):
    """A file that contradicts itself is refused, and the reason names what."""
    text = json.dumps(json.loads(make().to_json()) | changes)
    with pytest.raises(ValueError, match=reason):
        Vocabulary.read(text.encode())


def test_examples():
    """Ids of examples are stored, and checked when the file is read."""
    words = make().with_examples(["the", "dog"])
    assert Vocabulary.read(words.to_json()) == words
    assert words.examples[0] == ("the", (1, 27, 45, 0))


def test_another_vocabulary(text_bundles, tmp_path):
    """A bundle with another network's vocabulary is refused, though its digests match."""
    import shutil

    folder = shutil.copytree(text_bundles / "names" / "1", tmp_path / "1")
    assert bundle.read(folder).vocabulary() is not None
    other = text_bundles / "commands" / "1" / vocabulary.FILE
    shutil.copyfile(other, folder / vocabulary.FILE)
    with pytest.raises(BundleError, match="vocabulary of another network"):
        seal(folder).vocabulary()
    (folder / vocabulary.FILE).write_text("{")
    with pytest.raises(BundleError, match=r"vocabulary\.json"):
        seal(folder).vocabulary()
