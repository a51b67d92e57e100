"""Texts on the command line: as options, in a file, and where only tables are taken."""

import json

import numpy as np
import pytest

from service.settings import Settings
from tests.service.cli.commands import assert_fails, invoke, predict
from tests.support.servers import running


@pytest.fixture(scope="module")
def url(text_bundles):
    settings = Settings(port=0, bundles=text_bundles, workers=1, precision="float32")
    with running(settings) as service:
        yield service.url


def lines(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_options_and_files(url, tmp_path):
    """A text is an option, or a line of a file; each has a line of the output."""
    texts = ["turn on the dog", "naïve"]
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    options = [word for text in texts for word in ("--text", text)]
    first = lines(invoke("classify", *options, "--url", url))
    assert first == lines(invoke("classify", str(file), "--url", url))
    assert len(first) == 2
    assert first == lines(invoke("classify", "-", "--url", url, input="\n".join(texts)))
    request = json.dumps({"texts": texts, "model": "commands"})
    assert first == lines(invoke("classify", "-", "--url", url, input=request))
    (labels,) = lines(invoke("label", "--text", "Anna sees", "--url", url))
    assert [token["text"] for token in labels["tokens"]] == ["Anna", "sees"]


def test_one_of_both(url, tmp_path):
    for arguments in ((), (str(tmp_path / "a.txt"), "--text", "a")):
        result = invoke("classify", *arguments, "--url", url)
        assert result.exit_code == 2
        assert "give FILE, or --text" in result.output


@pytest.mark.parametrize("name", ["commands.csv", "names.conll"])
def test_tables(url, text_bundles, name, monkeypatch):
    """The service and the bundle give the same table for a file of texts, with the labels
    that it has."""
    monkeypatch.setenv("UNROLLED_PRECISION", "float32")  # as the service has it
    file, model = text_bundles / name, name.partition(".")[0]
    options = ("--label-column", "kind") if model == "commands" else ()
    if model == "commands":  # the test's bundles do not record the names of columns
        file = file.with_name("texts.csv")
        file.write_text((text_bundles / name).read_text().replace("body,", "text,", 1))
    by_service, lines = predict(file, "--model", model, "--url", url, *options)
    folder = text_bundles / model / "1"
    by_bundle, notes = predict(file, "--bundle", folder, *options)
    assert any(line.startswith("used in training: ") for line in notes)
    assert len(by_service) >= 300
    assert any(line.startswith("right: ") for line in lines)
    numbers = by_service.columns.str.startswith("probability")
    np.testing.assert_allclose(
        by_service.loc[:, numbers], by_bundle.loc[:, numbers], atol=1e-6
    )
    assert by_service.label.equals(by_bundle.label)


def test_columns(text_bundles, tmp_path):
    """The column of ids is used; one that is not used, or is missing, is refused."""
    file, bundle = tmp_path / "tickets.csv", text_bundles / "commands" / "1"
    file.write_text("text,ticket,kind,who\nturn on,T7,switch-on,a\nnaïve,T5,x,a\n")
    frame, _ = predict(file, "--bundle", bundle, "--sequence-column", "ticket")
    assert frame["ticket"].tolist() == ["T7", "T5"]
    for option, value, reason in (
        (
            "--sequence-column",
            "tickets",
            "'tickets' is missing; did you mean 'ticket'?",
        ),
        ("--sequence-column", "who", "line 3: 'a' is also in line 2"),
        ("--label-column", "label", "label column 'label' is missing"),
        (
            "--step-column",
            "ticket",
            "--step-column is not used: each text is a sequence",
        ),
        ("--ignore", "other", "column to ignore 'other' is missing"),
    ):
        result = invoke("predict", file, "--bundle", bundle, option, value)
        assert_fails(result, reason)
    conll = text_bundles / "names.conll"
    names = ("--bundle", text_bundles / "names" / "1")
    result = invoke("predict", conll, *names, "--sequence-column", "ticket")
    assert_fails(result, "--sequence-column is not used: a .conll file has no names of")


def test_empty_texts(url, text_bundles, tmp_path):
    """The other texts are answered, and those that are empty are marked and counted."""
    file = tmp_path / "a.csv"
    file.write_text("id,text,kind\na,turn on,x\nb,,x\nc,dog,y\n")
    for options in (
        ("--url", url, "--model", "commands"),
        ("--bundle", text_bundles / "commands" / "1"),
    ):
        frame, notes = predict(file, *options)
        assert notes[0] == "1 of 3 texts are empty (line 3): they have no answer"
        assert frame["id"].tolist() == ["a", "b", "c"]
        assert frame["label"].isna().tolist() == [False, True, False]
        assert frame["probability"].isna().tolist() == [False, True, False]
        frame, _ = predict(file, *options, "--keep", "kind")
        assert frame["kind"].tolist() == ["x", "x", "y"]
    result = invoke("classify", file, "--url", url)
    assert_fails(result, "1 of 3 texts are empty (line 3): remove them")


def test_kept_of_lines(text_bundles, tmp_path):
    """`--keep` of JSON Lines whose line is a whole text copies to each token's row."""
    file = tmp_path / "a.jsonl"
    lines = [{"text": "Ann ran", "who": "x"}, {"tokens": ["Bob"], "who": "y"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--bundle", text_bundles / "names" / "1", "--keep", "who")
    frame, _ = predict(file, *options)
    assert frame["who"].tolist() == ["x", "x", "y"]


def test_stream(url, tmp_path):
    """A text of a file is streamed letter by letter, and so are messages of lines."""
    file = tmp_path / "a.txt"
    file.write_text("on\n")
    command = ("stream", "--model", "commands", "--url", url)
    result = invoke(*command, file, "--rate", 100)
    assert [json.loads(line)["steps"] for line in result.stdout.splitlines()] == [1, 2]
    result = invoke(*command, "-", input='{"text": "o"}\n{"text": "n"}\n')
    assert [json.loads(line)["steps"] for line in result.stdout.splitlines()] == [1, 2]


def test_partly_known(text_bundles, tmp_path):
    """An id that is empty stays empty, since a number in its place could be another's; and
    labels that only some texts have are not left out without a word."""
    file = tmp_path / "a.csv"
    file.write_text("id,text,label\n,turn on,x\n1,dog,\n")
    frame, notes = predict(file, "--bundle", text_bundles / "commands" / "1")
    assert frame.iloc[:, 0].isna().tolist() == [True, False]
    assert "true_label" not in frame
    assert notes[0] == (
        "only 1 of 2 texts have a label: no answer is compared with one"
    )


def test_encoding(text_bundles, tmp_path):
    """`--encoding` reads a file as a spreadsheet of Windows wrote it."""
    file, options = tmp_path / "a.csv", ("--bundle", text_bundles / "commands" / "1")
    text = "id,text,kind\nä,naïve café,x\n"
    file.write_text(text, encoding="utf-8")
    right, _ = predict(file, *options)
    file.write_text(text, encoding="cp1252")
    result = invoke("predict", file, *options)
    assert_fails(result, "line 2: not UTF-8 text: save it as UTF-8, or name its encodi")
    frame, _ = predict(file, *options, "--encoding", "cp1252", "--keep", "text")
    assert frame["text"].tolist() == ["naïve café"]
    assert frame.drop(columns="text").equals(right)
    for name, reason in (
        ("a.csv", "can't read lines in it"),
        ("a.npz", "no text file"),
    ):
        command = ("predict", tmp_path / name, *options, "--encoding", "cp12520")
        assert_fails(invoke(*command), reason)


def test_plain_lines(url, text_bundles, tmp_path):
    """A file of a text a line has a row for each; the table need have no labels."""
    file = tmp_path / "texts.txt"
    file.write_text("turn on the dog\n\nnaïve\n", encoding="utf-8")
    frame, _ = predict(file, "--model", "commands", "--url", url)
    assert frame["sequence"].tolist() == [1, 2]
    assert "true_label" not in frame
    other = tmp_path / "a.csv"
    other.write_text("words\nturn on\n")
    result = invoke("predict", other, "--model", "commands", "--url", url)
    assert_fails(result, "'text' is missing; found words")
