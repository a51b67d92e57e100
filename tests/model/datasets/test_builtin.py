"""The built-in sets, and how a name or path becomes a set with parts."""

import hashlib
import itertools
import re

import numpy as np
import pytest

from model.bundle import spans
from model.datasets import builtin, readers
from model.datasets.dataset import PARTS, TEST


@pytest.fixture(scope="module")
def builtins():
    return {name: builtin.load(name) for name in builtin.BUILTIN}


SIZES = {
    "tags": (45829, 5869, 5642),
    "intents": (22154, 3692, 3747),
    "addresses": (1030, 220, 220),
    "digits": (7000, 1000, 2000),
    "letters": (5626, 625, 626),
    "letters-unseen": None,  # By words: counted below.
    "vowels": (270, 0, 370),
}


@pytest.mark.parametrize("name", builtin.BUILTIN)
class TestBuiltins:
    def test_parts(self, builtins, name):
        """Each sequence is in one part, and the parts are as large as documented."""
        data = builtins[name]
        sizes = tuple(len(data.part(part)) for part in PARTS)
        assert sum(sizes) == len(data)
        assert SIZES[name] in (None, sizes)
        assert min(sizes[0], sizes[2]) > 0

    def test_deterministic(self, builtins, name):
        """Loading again gives the same set."""
        assert builtin.load(name).digest == builtins[name].digest

    def test_description(self, builtins, name):
        """The description of a built-in set is true."""
        said, data = builtin.BUILTIN[name], builtins[name]
        assert said.name == data.name == name
        assert said.task == data.task
        assert all((said.title, said.source, said.licence))
        assert "\n" not in said.description

    def test_every_class_is_trained(self, builtins, name):
        """Classes of the test part are found in the training part."""
        data = builtins[name]
        train = np.unique(data.part("train").targets)
        assert set(np.unique(data.part("test").targets)) <= set(train)


def test_digits(builtins):
    """Digits are 28 rows of 28 values from 0 to 1, balanced outside of training."""
    data = builtins["digits"]
    assert data.frames.shape == (280000, 28)
    assert (data.lengths == 28).all()
    assert (data.frames.min(), data.frames.max()) == (0, 1)
    assert data.classes == tuple("0123456789")
    assert np.bincount(data.part("test").targets).tolist() == [200] * 10
    assert np.bincount(data.part("validation").targets).tolist() == [100] * 10


def spell(data):
    """The word of each sequence, by its targets."""
    return {
        "".join(data.classes[code] for code in data.target(index))
        for index in range(len(data))
    }


def test_letters(builtins):
    """Fold 0 is the test part, and its words are all known from training."""
    data = builtins["letters"]
    with np.load(builtin.DATA / "letters.npz") as archive:
        fold = archive["fold"]
    np.testing.assert_array_equal(data.split == TEST, fold == 0)
    assert data.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert spell(data.part("test")) <= spell(data.part("train"))


def test_letters_unseen(builtins):
    """No word stands in two parts."""
    data = builtins["letters-unseen"]
    train, validation, test = (spell(data.part(part)) for part in PARTS)
    assert (len(train), len(validation), len(test)) == (40, 4, 11)
    assert len(train | validation | test) == 55


def test_vowels(builtins):
    """The official parts stay, and none is for validation."""
    data = builtins["vowels"]
    np.testing.assert_array_equal(data.split == TEST, np.arange(640) >= 270)
    assert np.bincount(data.part("train").targets).tolist() == [30] * 9
    assert (data.lengths.min(), data.lengths.max()) == (7, 29)


def test_addresses(builtins):
    """Labels are BIO, no label follows one that it can't, and no address is in two parts."""
    data = builtins["addresses"]
    scheme = spans.tagging_scheme(data.classes)
    assert scheme is not None
    assert (data.lengths.min(), data.lengths.max()) == (1, 22)
    parts: dict[str, int] = {}
    for index in range(len(data)):
        names = [data.classes[code] for code in data.target(index)]
        for before, name in itertools.pairwise(["O", *names]):
            assert name[:2] != "I-" or before[2:] == name[2:]
        words = data.sequence(index)[:, 0].astype(int)
        text = " ".join(data.strings[word] for word in words).lower()
        key = " ".join(re.findall(r"\w+", text))
        assert parts.setdefault(key, data.split[index]) == data.split[index]


def test_sources():
    """Each file of data is described, with its checksum."""
    text = (builtin.DATA / "SOURCES.md").read_text(encoding="utf-8")
    digests = dict(
        re.findall(r"^## (\S+)$.*?SHA-256\W+([0-9a-f]{64})", text, re.M | re.S)
    )
    files = sorted(path for path in builtin.DATA.iterdir() if path.suffix != ".md")
    assert sorted(digests) == [path.name for path in files]
    for path in files:
        assert digests[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def write(path, labels, *, part=None, features=1):
    """A CSV of one-step sequences with these labels, all different."""
    names = [f"f{index}" for index in range(features)]
    header = ["sequence", "label", *names] + ["split"] * bool(part)
    rows = [
        [str(index), label, *(str(index),) * features] + [part] * bool(part)
        for index, label in enumerate(labels)
    ]
    path.write_text("\n".join(map(",".join, [header, *rows])), encoding="utf-8")
    return path


class TestResolve:
    def test_builtin(self, builtins):
        """A built-in name gives the built-in set, with any seed."""
        assert builtin.load_source("vowels").digest == builtins["vowels"].digest
        assert builtin.load_source("vowels", seed=5).digest == builtins["vowels"].digest

    def test_file(self, tmp_path):
        """A file gets all its parts."""
        path = write(tmp_path / "mine.csv", "ab" * 20)
        data = builtin.load_source(str(path), validation=0.15)
        assert data.name == "mine"
        assert [len(data.part(part)) for part in PARTS] == [28, 6, 6]

    def test_file_with_test(self, tmp_path):
        """A test file is the test part, whole, and nothing else is."""
        train = write(tmp_path / "train.csv", "abc" * 10)
        test = write(tmp_path / "test.csv", "ba" * 3)
        data = builtin.load_source(str(train), test=test, validation=0.2)
        assert [len(data.part(part)) for part in PARTS] == [24, 6, 6]
        held_out = data.part("test")
        assert [data.classes[code] for code in held_out.targets] == list("bababa")

    def test_unknown(self):
        """A name that is neither is answered with the built-in names."""
        for name, near in (
            ("digit", "did you mean 'digits'?"),
            ("nothing-like-it.csv", "vowels)"),
        ):
            with pytest.raises(builtin.SourceError) as caught:
                builtin.load_source(name)
            message = str(caught.value)
            assert message.endswith(near)
            assert all(known in message for known in builtin.BUILTIN)
            with pytest.raises(builtin.SourceError, match="neither a file nor"):
                builtin.load(name)

    def test_builtin_refusals(self, tmp_path):
        """A built-in set keeps its task and its test part."""
        with pytest.raises(ValueError, match="digits is for task classify, not label"):
            builtin.load_source("digits", task="label")
        with pytest.raises(ValueError, match="digits has a test part of its own"):
            builtin.load_source("digits", test=tmp_path / "test.csv")

    def test_file_refusals(self, tmp_path):
        """Files that contradict each other are refused by name."""
        for train, test, reason in (
            ({"part": "test"}, {}, "would be another"),
            ({}, {"part": "train"}, "parts for training"),
            ({"features": 2}, {}, "feature .* is missing"),
        ):
            train = write(tmp_path / "train.csv", "abab", **train)
            test = write(tmp_path / "test.csv", "ab", **test)
            with pytest.raises(ValueError, match=reason) as caught:
                builtin.load_source(str(train), test=test)
            assert "test.csv" in str(caught.value)

    def test_missing_test_file(self, tmp_path):
        """A test file that is not there is named."""
        train = write(tmp_path / "train.csv", "abab")
        with pytest.raises(readers.ReadError, match=r"gone\.csv: No such file"):
            builtin.load_source(str(train), test=tmp_path / "gone.csv")
