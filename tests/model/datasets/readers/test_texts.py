"""Files of text: tables, JSON Lines and CoNLL, the vocabulary, and its ids."""

import json

import numpy as np
import pytest

from model.datasets import builtin
from model.datasets import text as texts
from model.datasets.dataset import TEST
from model.datasets.readers.files import ReadError
from model.datasets.text import TextOptions
from tests.support.bundles import sentences, write_conll, write_csv

TABLE = TextOptions(text="body", label="kind")
CONLLU = (
    "# sent_id = 1\n"
    "1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "1\tLet\tlet\tVERB\tVB\t_\t0\troot\t_\t_\n"
    "2\tus\twe\tPRON\tPRP\t_\t1\tobj\t_\t_\n"
    "2.1\tgo\tgo\tVERB\t_\t_\t_\t_\t_\t_\n\n"
)


def test_table(tmp_path):
    """A table has a text and its class in each row; words of training get ids."""
    path = write_csv(tmp_path / "intents.csv")  # named as a built-in set of characters
    data = builtin.load_source(path, validation=0.2, text=TABLE)
    assert (data.task, len(data), data.features[0]) == ("classify", 300, "word")
    assert data.classes == ("switch-off", "switch-on")
    vocabulary = data.vocabulary
    words = texts.vocabularies.tokenize("turn on", "tokens")
    assert vocabulary.row(words[0])[0] > 0
    np.testing.assert_array_equal(
        data.sequence(0)[:2],
        vocabulary.encode([data.strings[w] for w in data.words[:2]]),
    )


def test_characters(tmp_path):
    path = write_csv(tmp_path / "commands.csv")
    options = TextOptions(text="body", label="kind", kind="characters")
    data = builtin.load_source(path, validation=0, text=options)
    assert data.features == ("character",)
    first = "".join(data.strings[word] for word in data.words[: data.lengths[0]])
    assert first.startswith("turn o")


def test_conll(tmp_path):
    """The first column is the word, the last the label; a test file joins as that part."""
    path = write_conll(tmp_path / "names.conll")
    test = write_conll(tmp_path / "more.conll", 20)
    data = builtin.load_source(path, test=test, validation=0.1)
    assert data.task == "label"
    assert (data.split == TEST).sum() == 20
    assert data.lengths[0] == len(sentences(1)[0])
    assert data.classes == ("B-PER", "I-PER", "O")


def test_unseen_words(tmp_path):
    """Words of the test part alone, and rare ones, have no id of their own."""
    path = write_conll(tmp_path / "names.conll")
    data = builtin.load_source(path, validation=0.1)
    known = {*data.vocabulary.entries}
    train, test = data.part("train"), data.part("test")
    counts = np.bincount(train.words, minlength=len(data.strings))
    assert known == {data.strings[n] for n in np.flatnonzero(counts >= 2)}
    new = np.array([data.strings[w] not in known for w in test.words])
    assert new.any()
    np.testing.assert_array_equal(test.frames[:, 0] == 0, new)


def test_conllu(tmp_path):
    """Comments, contractions and empty nodes are skipped; the column has a name."""
    path = tmp_path / "es.conllu"
    path.write_text(CONLLU * 3, encoding="utf-8")
    for column, labels in ((None, ["VERB", "PRON"]), ("xpos", ["VB", "PRP"])):
        read = texts.read(path, TextOptions(column=column))
        assert (read.tokens[0], read.labels[0]) == (["Let", "us"], labels)


def test_json_lines(tmp_path):
    """Tokens with labels, or a text with one; parts may be named."""
    path = tmp_path / "a.jsonl"
    lines = [{"tokens": ["a", "b"], "labels": ["x", "y"], "split": "test"}] * 2
    path.write_text("\n".join(map(json.dumps, lines)))
    read = texts.read(path, TextOptions(text="text"))
    assert (read.task, read.tokens[1], read.parts) == ("label", ["a", "b"], [2, 2])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "body,kind\nhello,\n", "line 2: no column 'kind'"),
        ("a.csv", "text,kind\nhello,x\n", "no column 'body'; there are text, kind"),
        ("a.csv", 'body,kind\n" ",x\n', "the text is empty"),
        ("a.csv", "body,kind,split\na,x,dev\n", "split is one of"),
        ("a.jsonl", '{"body": 5, "kind": "x"}', "not text"),
        ("a.jsonl", "[1]", "each line is an object"),
        ("a.jsonl", '{"tokens": ["a"], "labels": ["x", "y"]}', "2 labels for 1 tokens"),
        ("a.conll", "word\n", "has 1 columns"),
        ("a.conll", "\n\n", "holds no sentence"),
        ("a.txt", "hello", "no text in '.txt' files"),
    ],
)
def test_refused(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ReadError, match=reason):
        texts.dataset(texts.read(path, TABLE))


def test_builtin():
    """The built-in sets of text: parts by document and by template."""
    tags = builtin.load_source("tags")
    assert (len(tags), len(tags.classes)) == (57_340, 14)
    assert np.bincount(tags.split).tolist() == [45_829, 5_869, 5_642]
    intents = builtin.load("intents")
    assert len(intents.classes) == 24  # with Other
    assert (np.bincount(intents.split) > 2_000).all()


def test_rare_words_stay_private(tmp_path):
    """A vocabulary holds no word that occurs once, neither in its list nor its examples."""
    path = tmp_path / "a.csv"
    path.write_text("text,label\nthe cat,a\nthe secret,b\nthe cat,a\n")
    data = builtin.load_source(path, text=TextOptions(text="text"), validation=0)
    content = data.vocabulary.model_dump_json()
    assert '"the"' in content
    assert "secret" not in content


def test_spans(tmp_path):
    """Spans of a text or of tokens become BIO labels."""
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "Dan Lee met naïve Bob.", "spans": [PER | {"start": 0, "end": 7}]},
        {"text": "Bob", "spans": []},
        {"tokens": ["Ann", "Lee", "Bob"], "spans": [PER | {"first": 0, "last": 1}]},
        {"tokens": ["x"], "labels": ["O"]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = texts.read(path, TextOptions())
    assert read.task == "label"
    assert read.labels == [
        ["B-PER", "I-PER", "O", "O", "O", "O"],
        ["O"],
        ["B-PER", "I-PER", "O"],
        ["O"],
    ]


PER = {"label": "PER"}


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ({"start": 1, "end": 3}, "does not begin and end where tokens do"),
        ({"start": 0, "end": 2}, "does not begin and end where tokens do"),
        ({"first": 0, "last": 1}, "needs label, start and end"),
        ({"start": 0, "end": 3.5}, "whole numbers"),
        ({"start": 0, "end": 3, "label": ""}, "label is not text"),
    ],
)
def test_odd_spans(tmp_path, span, reason):
    """An error names the line and the span."""
    path, good = tmp_path / "a.jsonl", PER | {"start": 4, "end": 7}
    path.write_text(json.dumps({"text": "Dan Lee", "spans": [good, PER | span]}) + "\n")
    with pytest.raises(ReadError, match=rf"line 1: spans\[1\].*{reason}"):
        texts.read(path, TextOptions())
    path.write_text(json.dumps({"text": "Dan Lee", "spans": [good, good]}) + "\n")
    with pytest.raises(ReadError, match="overlaps"):
        texts.read(path, TextOptions())
