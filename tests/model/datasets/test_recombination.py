"""Sequences put together from others: of which steps, and what they never show."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.datasets import builtin, recombination
from model.datasets.dataset import PARTS, Dataset
from model.datasets.recombination import RecombinationError

SEED = (0, 1)


def make_words(*words, split=None):
    """Words as sequences whose frames count the steps of all, so that a frame names its
    step."""
    text = "".join(words)
    classes = sorted(set(text))
    return Dataset(
        name="words",
        task="label",
        frames=np.arange(len(text))[:, None],
        lengths=[len(word) for word in words],
        targets=[classes.index(letter) for letter in text],
        classes=classes,
        features=("x0",),
        split=split or [0] * len(words),
    )


def drawn(data, recombined, seed=SEED):
    """The places and the word of each sequence of an epoch."""
    steps = recombined.epoch(seed)
    assert steps.lengths.dtype == np.int32
    ends = steps.starts + steps.lengths
    places = [
        steps.places[start:end] for start, end in zip(steps.starts, ends, strict=True)
    ]
    assert sum(map(len, places)) == len(steps.places)
    names = np.array(data.classes)
    return [(p, "".join(names[data.targets_of[p]])) for p in places]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 1000)),
)
def test_pieces(lengths, seed):
    """Spliced sequences are 1 to the longest's steps long; their steps are those of the
    train part, in runs of neighbours."""
    words = ["ab" * 5][0]
    data = make_words(*(words[:length] for length in lengths), split=[0] * len(lengths))
    data = data.take(np.argsort(-data.lengths, kind="stable"))
    for places, _ in drawn(data, recombination.build(data, 1, None), seed):
        assert 1 <= len(places) <= max(lengths)
        assert places.min() >= 0
        assert places.max() < sum(lengths)


def test_neighbours():
    """Pieces have up to four steps, all from one sequence."""
    data = make_words(*["abcdefgh"] * 300)
    sizes = []
    for places, _ in drawn(data, recombination.build(data, 1, None)):
        cuts = np.flatnonzero((np.diff(places) != 1) | (places[1:] % 8 == 0)) + 1
        sizes += map(len, np.split(places, cuts))
    assert set(sizes) >= {1, 2, 3, 4}
    assert np.mean(np.array(sizes) <= 4) > 0.98  # two pieces may continue by chance


def test_spelling(tmp_path):
    """Two thirds spell a word of the list, each letter by a random step of its class."""
    (tmp_path / "words").write_text("deaf\nfade\nzebra\nabcdefabcdef\n")
    data = make_words(*["abcdef", "fedcba"] * 300)
    recombined = recombination.build(data, 1, str(tmp_path / "words"))
    rows = drawn(data, recombined)
    spelled = [word for _, word in rows if word in ("deaf", "fade")]
    assert 330 < len(spelled) < 470
    assert 100 < spelled.count("deaf") < 300
    used = np.concatenate([places for places, word in rows if word == "deaf"])
    assert len(np.unique(used)) > 0.7 * len(used)
    # Too long, or of a class that isn't there.
    assert not {"zebra", "abcdefabcdef"} & {word for _, word in rows}


def test_probability():
    """A sequence is replaced with the probability that is set; the others stay whole."""
    data = make_words(*["abcdefghij"] * 1000)
    rows = drawn(data, recombination.build(data, 0.3, None))
    whole = [
        np.array_equal(places, np.arange(10 * row, 10 * row + 10))
        for row, (places, _) in enumerate(rows)
    ]
    assert 0.6 < np.mean(whole) < 0.8


def test_seed():
    """The same seed and epoch give the same sequences, another epoch others."""
    data = make_words(*["abcdefgh"] * 50)
    recombined = recombination.build(data, 0.5, None)
    first, again, other = (recombined.epoch(seed) for seed in ((3, 1), (3, 1), (3, 2)))
    np.testing.assert_array_equal(first.places, again.places)
    assert not np.array_equal(first.places[:50], other.places[:50])


def test_held_out(tmp_path):
    """Steps of other parts are never used, and words that hold one of theirs are not
    spelled, unless the train part has it too."""
    data = make_words(
        *["abcdef", "fedcba", "face", "bead", "face"] * 40, split=[0, 0, 1, 2, 0] * 40
    )
    (tmp_path / "words").write_text(
        "bead beads faced beaded fabed dab\n".replace(" ", "\n")
    )
    train = data.part("train")
    rows = drawn(train, recombination.build(data, 1, str(tmp_path / "words")))
    known = np.concatenate([train.sequence(row)[:, 0] for row in range(len(train))])
    assert np.isin(np.concatenate([places for places, _ in rows]), known).all()
    assert "dab" in {word for _, word in rows}
    words = recombination.build(data, 1, str(tmp_path / "words")).words
    spelled = {"".join(data.classes[code] for code in word) for word in words}
    assert spelled == {"faced", "fabed", "dab"}


def test_unseen_letters():
    """No word of the built-in list holds one of those that `letters-unseen` measures."""
    data = builtin.load("letters-unseen")
    words = recombination.build(data, 0.5, recombination.ENGLISH).words
    assert len(words) > 50_000
    names = np.array(data.classes)
    spelled = {"".join(names[word]) for word in words}
    for part in PARTS[1:]:
        held_out = data.part(part)
        for target in {tuple(held_out.target(row)) for row in range(len(held_out))}:
            word = "".join(names[list(target)])
            assert not any(word in other for other in spelled), word


def test_refused(tmp_path):
    """Data and lists that can't be used are refused with the reason."""
    data = make_words("abc", "cab")
    (tmp_path / "xyz").write_text("xyz")
    (tmp_path / "binary").write_bytes(gzip.compress(b"abc"))
    long = replace(data, classes=("a", "b", "long"))
    by_sequence = replace(data, task="classify", targets=[0, 1])
    for dataset, probability, words, reason in (
        (by_sequence, 0.5, None, "one label a sequence"),
        (long, 0.5, "english", "not long"),
        (data, 0.5, str(tmp_path / "none"), "No such file"),
        (data, 0.5, str(tmp_path / "binary"), "can't decode"),
        (data, 0.5, str(tmp_path / "xyz"), "no word can be spelled"),
        (data, 0, "english", "needs --recombine"),
    ):
        with pytest.raises(RecombinationError, match=reason):
            recombination.build(dataset, probability, words)
    assert recombination.build(data, 0, None) is None
