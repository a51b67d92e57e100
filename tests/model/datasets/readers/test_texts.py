"""Files of text: tables, JSON Lines and CoNLL, the vocabulary, and its ids."""

import json
from dataclasses import replace

import numpy as np
import pandas
import pytest

from model.bundle import vocabulary as vocabularies
from model.datasets import builtin
from model.datasets import text as texts
from model.datasets.dataset import TEST, TRAIN
from model.datasets.readers import Columns
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
    words = vocabularies.tokenize("turn on", "tokens")
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
        read = texts.read(path, TextOptions(column=column)).sequences
        assert (read.values[0], read.labels_of(0, "label")) == (["Let", "us"], labels)


def test_json_lines(tmp_path):
    """Tokens with labels, or a text with one; parts may be named."""
    path = tmp_path / "a.jsonl"
    lines = [{"tokens": ["a", "b"], "labels": ["x", "y"], "split": "test"}] * 2
    path.write_text("\n".join(map(json.dumps, lines)))
    read = texts.read(path, TextOptions()).sequences
    assert (read.task, read.values[1]) == ("label", ["a", "b"])
    assert read.split.tolist() == [TEST, TEST]


def test_recognised(tmp_path):
    """JSON Lines with tokens or spans are text without an option; others are not."""
    path = tmp_path / "a.jsonl"
    for line, kind in (
        ({"tokens": ["a"], "labels": ["x"]}, "tokens"),
        ({"text": "a", "spans": []}, "texts"),
        ({"text": "a", "label": "x"}, None),
        ({"frames": [[1]], "tokens": 5}, None),
    ):
        path.write_text(json.dumps(line) + "\n")
        assert texts.kind_of(path, TextOptions()) == kind
    lines = ({"tokens": ["a", f"b{n}"], "labels": ["x", "y"]} for n in range(9))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert builtin.load_source(path).task == "label"


def test_empty(tmp_path):
    """To predict, texts that are empty can be left out; the others keep their numbers."""
    path = tmp_path / "a.csv"
    path.write_text('body,kind\n"  ",x\na,x\n,y\nb,\n')
    for source, place in ((path, "line"), (pandas.read_csv(path), "row")):
        data = texts.sequences(source, TABLE, skip_empty=True)
        assert data.values == [["a"], ["b"]]
        assert data.ids == ("2", "4")
        places = [(row.place, row.id) for row in data.empty]
        assert places == [(0, "1"), (1, "3")]
        assert f"2 of 4 texts are empty ({place}s " in data.empty_rows()
        with pytest.raises(ReadError, match=r"2 of 4 texts are empty .*: remove them"):
            texts.sequences(source, TABLE)


def test_columns(tmp_path):
    """Ids and groups are those of their columns; the groups stay in one part."""
    path = tmp_path / "a.csv"
    rows = [f"t{n},word{n} word, c{n // 8} ,{'xy'[n % 2]}" for n in range(160)]
    path.write_text("\n".join(["ticket,text,customer,label", *rows]))
    columns = Columns("ticket", group="customer", ignore=("ticket",))
    with pytest.raises(ReadError, match="'ticket' was given two meanings"):
        texts.read(path, TextOptions(), columns)
    columns = replace(columns, ignore=())
    for source in (path, pandas.read_csv(path, skipinitialspace=True)):
        options = {"text": TextOptions(text="text"), "columns": columns}
        data = builtin.load_source(source, validation=0.2, **options)
        assert data.ids.tolist() == [f"t{n}" for n in range(160)]
        parts = {}
        for group, part in zip(data.groups, data.split.tolist(), strict=True):
            parts.setdefault(group.strip(), set()).add(part)
        assert len(parts) == 20
        assert all(len(several) == 1 for several in parts.values())


def test_other_test_file(tmp_path):
    """A test file must have the groups, too, and no other part."""
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("text,label,who\na b,x,1\nc,y,2\nd,x,3\n")
    options = {"text": TextOptions(text="text"), "columns": Columns(group="who")}
    for content, reason in (
        ("text,label\na,x\n", "b.csv, line 1: group column 'who' is missing"),
        ("text,label,who,split\na,x,9,train\n", "names parts for training"),
        ("text,label,who\na,z,9\n", "no sequence for training has the class z"),
    ):
        other.write_text(content)
        with pytest.raises(ValueError, match=reason):
            builtin.load_source(path, test=other, validation=0, **options)
    other.write_text("text,label,who\nc new,x,9\n")
    data = builtin.load_source(path, test=other, validation=0, **options)
    assert data.groups.tolist() == ["1", "2", "3", "9"]
    assert data.split.tolist() == [TRAIN, TRAIN, TRAIN, TEST]
    assert [data.strings[word] for word in data.words[-2:]] == ["c", "new"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", '{"body": ' + 99_999 * "[", "line 1: not JSON.* nested too deeply"),
        (
            "a.jsonl",
            '{"kind": %s}' % ("1" * 5000),
            "line 1: a number has too many digit",
        ),
        ("a.csv", "body,kind\nhello,\n", "line 2: column 'kind' is empty"),
        (
            "a.csv",
            "text,kind\nhello,x\n",
            "line 1: .*'body' is missing; found text, kind",
        ),
        ("a.csv", "body,kind\nhello,x,y\n", "line 2: 3 columns; the header has 2"),
        ("a.csv", "body,body\nhello,x\n", "line 1: column 'body' is repeated"),
        ("a.csv", 'body,kind\n" ",x\n', "holds no text"),
        (
            "a.csv",
            'body,kind\na,x\n" ",x\n',
            r"1 of 2 texts are empty \(line 3\): remov",
        ),
        (
            "a.csv",
            "body,kind\na,x\n" + 5 * ",x\n",
            r"5 of 6 texts are empty \(lines 3, 4, 5 and 2 more\)",
        ),
        ("a.jsonl", '{"tokens": [], "labels": []}', "holds no text"),
        ("a.csv", "body,kind,split\na,x,dev\n", "split 'dev' is none of"),
        ("a.jsonl", '{"body": 5, "kind": "x"}', "not text"),
        ("a.jsonl", "[1]", "expected an object on each line"),
        ("a.jsonl", '{"tokens": ["a"], "labels": ["x", "y"]}', "2 labels for 1 tokens"),
        ("a.conll", "word\n", "has 1 columns"),
        ("a.conll", "a N O\nb V\n", "line 2: has 2 columns; the lines before have 3"),
        ("a.conll", "\n\n", "holds no text"),
        ("a.txt", "hello", "no text in '.txt' files"),
    ],
)
def test_refused(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ReadError, match=reason):
        texts.read(path, TABLE)


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
    content = data.vocabulary.to_json().decode()
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
    read = texts.read(path, TextOptions()).sequences
    assert read.task == "label"
    assert [read.labels_of(index, "label") for index in range(len(read))] == [
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
