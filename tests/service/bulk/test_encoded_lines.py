"""Files of texts and records, as a bulk job computes them."""

import json

import numpy as np
import pytest

import model
from service.bulk import json_lines, shards
from service.bulk.scorer import Scorer
from service.settings import Settings
from tests.support.tables import score

TEXTS = ["Anna sees the dog", "naïve 🐕 Bob", "x " * 300]


@pytest.fixture(scope="module")
def scorers(text_bundles):
    names = ("names", "commands", "visits", "calls")
    settings = Settings(precision="float32")  # as model.load has it
    return {n: Scorer(text_bundles / n / "1", settings, None) for n in names}


def expected(text_bundles, name, data):
    network = model.load(text_bundles / name)
    answer = (network.classify if network.task == "classify" else network.label)(data)
    return [prediction.probabilities for prediction in answer.predictions]


@pytest.mark.parametrize("name", ["names", "commands"])
def test_texts(scorers, text_bundles, tmp_path, monkeypatch, name):
    """Lines of texts, plain or in JSON, are answered in order, with their ids and tokens,
    wherever shards begin."""
    monkeypatch.setattr(json_lines, "SHARD_BYTES", 50)
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("\n\n".join(TEXTS) + "\r\n", encoding="utf-8")
    lines.write_text(
        "".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(TEXTS))
    )
    answers = score(scorers[name], plain)
    numbers = expected(text_bundles, name, TEXTS)
    for answer, probabilities in zip(answers, numbers, strict=True):
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
    if name == "names":
        assert [token["text"] for token in answers[0]["tokens"]] == TEXTS[0].split()
    for number, answer in enumerate(score(scorers[name], lines)):
        assert answer.pop("id") == number
        assert answer == answers[number]


def test_tokens_and_records(scorers, text_bundles, tmp_path):
    """Lists of words; and records, a sequence a line or a record a row."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"tokens": TEXTS[0].split()}) + "\n")
    (answer,) = score(scorers["names"], path)
    (numbers,) = expected(text_bundles, "names", TEXTS[:1])
    np.testing.assert_allclose(answer["probabilities"], numbers, atol=1e-5)

    record = {"event": "pay", "host": "host1", "bytes": 5}
    rows = [record | {"at": 1e9 + second} for second in (0, 5, 90)]
    (numbers,) = expected(text_bundles, "visits", [rows])
    path.write_text(json.dumps({"id": "v1", "records": rows}) + "\n")
    (line,) = score(scorers["visits"], path)
    table = tmp_path / "a.csv"
    cells = "".join(f"v1,{','.join(map(str, row.values()))}\n" for row in rows)
    table.write_text(f"sequence,event,host,bytes,at\n{cells}")
    (row,) = score(scorers["visits"], table)
    for answer in (line, row):
        assert answer["id"] == "v1"
        np.testing.assert_allclose(answer["probabilities"], numbers, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("names", {"text": " "}, "at least one token"),
        ("names", {"tokens": ["a", ""]}, "tokens must be words"),
        ("names", {"frames": [[1]]}, "text or tokens is missing"),
        ("names", {"text": 5}, "text"),
        ("commands", {"tokens": ["a"]}, "text is missing"),
        ("visits", {"text": "a"}, "records is missing"),
        ("visits", {"records": [{"event": "a"}]}, "records[0].host is missing"),
    ],
)
def test_errors(scorers, tmp_path, name, line, reason):
    """An error is that of its line alone."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": 3} | line) + "\n")
    (answer,) = score(scorers[name], path)
    assert reason in answer["error"]
    assert answer.get("id") in (3, None)


def test_other_formats(scorers, tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n")
    scorer = scorers["names"]
    with pytest.raises(ValueError, match=r"no text in '\.csv' files"):
        shards.open_file(str(tmp_path / "a.csv"), scorer.metadata, scorer.encoding)
