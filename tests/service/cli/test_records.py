"""Records on the command line and in the client: tables, DataFrames and streams."""

import io
import json

import pandas as pd
import pytest

from service.client import Client
from service.settings import Settings
from tests.service.cli.commands import invoke
from tests.support.servers import running


@pytest.fixture(scope="module")
def url(text_bundles):
    with running(Settings(port=0, bundles=text_bundles, workers=1)) as service:
        yield service.url


@pytest.fixture(scope="module")
def table(text_bundles):
    return text_bundles / "visits.csv"


def succeed(*arguments):
    result = invoke(*map(str, arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_predict(url, table, text_bundles, tmp_path):
    """The service and the bundle give the same table, for the model whose columns fit."""
    column = ("--sequence-column", "visit")
    answers = succeed("predict", table, "--url", url, "--model", "visits", *column)
    assert answers.startswith("visit,label,probability,true_label")
    assert len(answers.splitlines()) == 121
    bundle = text_bundles / "visits" / "1"
    result = invoke("predict", str(table), "--bundle", str(bundle), *column)
    assert result.stdout == answers
    assert "used in training: 102 sequences, " in result.stderr
    frame = pd.read_csv(table)
    frame.to_parquet(tmp_path / "visits.parquet")
    first = frame.groupby("visit", sort=False)["host"].first().fillna("").tolist()
    for path in (table, tmp_path / "visits.parquet"):
        options = ("--bundle", bundle, *column, "--keep", "host")
        answers = pd.read_csv(io.StringIO(succeed("predict", path, *options)))
        assert answers["host"].fillna("").tolist() == first


def test_classify_and_stream(url, table, tmp_path):
    """A table goes to the model of its columns; a stream sends a record at a time."""
    frame = pd.read_csv(table).rename(columns={"visit": "sequence"})
    file = tmp_path / "visits.csv"
    frame[frame.sequence.isin(["v0", "v1"])].to_csv(file, index=False)
    lines = succeed("classify", file, "--url", url).splitlines()
    last = [json.loads(line)["label"] for line in lines]
    assert len(last) == 2
    stream = succeed("stream", file, "--model", "visits", "--rate", 1e4, "--url", url)
    answers = [json.loads(line) for line in stream.splitlines()]
    steps = frame.groupby("sequence").size()
    assert len(answers) == steps["v0"] + steps["v1"]
    assert [answers[steps["v0"] - 1]["label"], answers[-1]["label"]] == last


def test_dataframe(url, table):
    """A DataFrame's columns are matched by their names; lists of objects are sent as they
    are."""
    frame = pd.read_csv(table)
    first = frame[frame.visit == "v7"].drop(columns=["label", "visit"])
    records = json.loads(first.to_json(orient="records"))
    with Client(url) as client:
        whole = client.classify(frame, by="visit", model="visits")
        assert whole.ids[7] == "v7"
        (answer,) = client.classify([records], model="visits").predictions
        assert answer.probability == whole.predictions[7].probability
        many = client.classify([records] * 300, model="visits")
        assert {p.probability for p in many.predictions} == {answer.probability}
