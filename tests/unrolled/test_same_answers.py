"""One table, with its columns and rows in any order, has the same answers everywhere.

The command line with a service and without one, `classify` and `label`, the client with
lists, arrays, pandas and polars, bulk jobs, `model.load`, the HTTP API, and the page.
"""

import csv
import io
import json

import httpx
import numpy as np
import pandas
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import model
from model.bundle import bundle
from service.bulk import shards
from service.bulk.scorer import Scorer
from service.client import Client
from service.settings import Settings
from tests.browser.browser import choose, chromium, drop, opened
from tests.service.cli.commands import invoke, predict
from tests.support import tables
from tests.support.servers import CLASSES, SECONDS, running

MODELS = {
    "machines": ("classify", CLASSES["walks"]),
    "moods": ("label", CLASSES["both"]),
}
LENGTHS = (3, 1, 9, 4)
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def named(bundles, tmp_path_factory):
    return tables.write_named_bundles(bundles, tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def url(named):
    with running(Settings(port=0, bundles=named, workers=1)) as server:
        yield server.url


def by_id(frame):
    """The probabilities in a table of answers, [rows, C], by the sequence's id."""
    names = [name for name in frame if name.startswith("probability_")]
    return {
        key: rows[names].to_numpy(np.float64)
        for key, rows in frame.groupby("run", sort=False)
    }


def by_command(name, url, path, folder):
    """The answers of the commands: a table, or a line for each sequence."""
    command = (path, "--model", name)
    yield "predict", by_id(predict(*command, "--url", url)[0])
    yield "predict --bundle", by_id(predict(path, "--bundle", folder)[0])
    result = invoke(MODELS[name][0], *command, "--url", url)
    assert result.exit_code == 0, result.stderr
    lines = map(json.loads, result.stdout.splitlines())
    yield "classify, label", [np.atleast_2d(line["probabilities"]) for line in lines]


def by_client(name, url, table, sequences):
    """The answers of the Python client."""
    task, classes = MODELS[name]
    with Client(url) as client:
        method = client.classify if task == "classify" else client.label
        lists = [frames.tolist() for frames in sequences.values()]
        for kind, values in (("arrays", [*sequences.values()]), ("lists", lists)):
            answers = method(values, model=name).predictions
            yield f"client, {kind}", [np.atleast_2d(a.probabilities) for a in answers]
        for frame in (table, polars.from_pandas(table)):
            answer = method(frame, by="run", step="t", model=name)
            kind = type(frame).__module__.partition(".")[0]
            yield f"client, {kind}", by_id(pandas.DataFrame(answer.to_dict()))
    body = {"model": name, "sequences": lists}
    response = httpx.post(f"{url}/{task}", json=body, timeout=SECONDS).json()
    assert response["classes"] == list(classes)
    rows = [np.atleast_2d(p["probabilities"]) for p in response["predictions"]]
    yield "HTTP", rows


def by_bulk(path, folder):
    """The answers of a bulk job's shards."""
    scorer = Scorer(folder, Settings(), None)
    file = shards.open_file(str(path), scorer.metadata, scorer.encoding)
    answers = {}
    for number in range(file.count):
        rows = [file.parse(item) for item in file.read(number)]
        for line in map(json.loads, scorer.score(rows).text.splitlines()):
            answers[line["id"]] = np.atleast_2d(line["probabilities"])
    yield "bulk", answers


def by_python(name, folder, table, path):
    """The answers of `model.load`."""
    network = model.load(folder)
    method = network.classify if MODELS[name][0] == "classify" else network.label
    for kind, data in (("DataFrame", table), ("file", path)):
        yield f"model.load, {kind}", by_id(pandas.DataFrame(method(data).to_dict()))


def assert_same(answers, expected):
    for interface, rows in answers:
        if isinstance(rows, list):  # in the order of the sequences
            rows = dict(zip(expected, rows, strict=True))
        assert sorted(rows) == sorted(expected), interface
        for key, right in expected.items():
            np.testing.assert_allclose(rows[key], right, **CLOSE, err_msg=interface)


def golden(folder, sequences):
    """The answers of the bundle's SavedModel, sequence by sequence."""
    tensorflow = pytest.importorskip("tensorflow")
    with bundle.read(folder).saved_model() as saved:
        serve = tensorflow.saved_model.load(str(saved)).signatures["serving_default"]
    return {
        key: np.atleast_2d(
            serve(
                frames=tensorflow.constant(frames[None]),
                lengths=tensorflow.constant([len(frames)], tensorflow.int32),
            )["probabilities"][0].numpy()
        )
        for key, frames in sequences.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_everywhere(named, url, tmp_path_factory, name):
    """All interfaces give the answers of the exported SavedModel."""
    folder = named / name / "1"

    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**16), form=st.sampled_from(sorted(tables.WRITERS)))
    def check(seed, form):
        table = tables.make_table(seed, LENGTHS)
        mixed = tables.shuffle(table, seed)
        path = tmp_path_factory.mktemp("same") / form
        tables.WRITERS[form](mixed, path)
        # In the order in which the file has them.
        sequences = tables.sequences_of(table)
        sequences = {key: sequences[key] for key in dict.fromkeys(mixed["run"])}
        expected = golden(folder, sequences)
        assert_same(by_command(name, url, path, folder), expected)
        assert_same(by_client(name, url, mixed, sequences), expected)
        assert_same(by_bulk(path, folder), expected)
        assert_same(by_python(name, folder, mixed, path), expected)

    check()


@pytest.mark.browser
def test_page(named, url):
    """The page gives these answers too."""
    with chromium() as browser, opened(browser, url) as page:
        for name in MODELS:
            choose(page, name)
            for seed in range(3):
                table = tables.make_table(seed, LENGTHS)
                mixed = tables.shuffle(table, seed)
                delimiter, decimal = ((",", "."), (";", ","), ("\t", "."))[seed]
                text = mixed.to_csv(index=False, sep=delimiter, decimal=decimal)
                drop(page, f"{name} {seed}.csv", text)
                page.locator(
                    "#sequence-source", has_text=f"{name} {seed}.csv"
                ).wait_for()
                page.locator("#answers-said", has_text="agree").wait_for()
                with page.expect_download() as file:
                    page.locator("#answers-download").click()
                downloaded = file.value.path().read_text(encoding="utf-8")
                frame = pandas.DataFrame(csv.DictReader(io.StringIO(downloaded)))
                expected = golden(named / name / "1", tables.sequences_of(table))
                assert_same([("page", by_id(frame))], expected)
