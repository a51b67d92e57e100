"""Tables and named steps in bulk jobs: the answers are those of the sequences."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.bundle import bundle
from service.bulk import shards
from service.bulk import tables as bulk_tables
from service.bulk.local_model import LocalModel
from service.bulk.scorer import Scorer
from service.settings import Settings
from tests.support import tables

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def folders(bundles, tmp_path_factory):
    """The folders of `machines` and `moods`."""
    root = tables.write_named_bundles(bundles, tmp_path_factory.mktemp("named"))
    return {name: root / name / "1" for name in ("machines", "moods")}


@pytest.fixture(scope="module")
def metadata(folders):
    return bundle.read(folders["machines"]).metadata


@pytest.fixture(scope="module")
def scorers(folders):
    return {name: Scorer(path, Settings(), None) for name, path in folders.items()}


@pytest.fixture(scope="module")
def models(folders):
    return {
        name: LocalModel(bundle.read(path), Settings())
        for name, path in folders.items()
    }


def _write_named_lines(table, path, convert=lambda step: step):
    """A line for each sequence, whose steps are objects."""
    with path.open("w") as file:
        for key, rows in table.sort_values("t").groupby("run", sort=False):
            others = rows.drop(columns=["run", "state", "t"])
            steps = [convert(step) for step in others.to_dict("records")]
            file.write(json.dumps({"id": key, "frames": steps}) + "\n")


def _write_structs(table, path):
    """A row for each sequence, whose steps are structs."""
    groups = list(table.sort_values("t").groupby("run", sort=False))
    steps = [
        rows.drop(columns=["run", "state"]).to_dict("records") for _, rows in groups
    ]
    ids = [key for key, _ in groups]
    parquet.write_table(pa.table({"frames": steps, "id": ids}), path)


WRITERS = tables.WRITERS | {
    "named.jsonl": _write_named_lines,
    "structs.parquet": _write_structs,
}


@given(seed=st.integers(0, 2**16), name=st.sampled_from([*WRITERS]))
def test_any_order(scorers, models, tmp_path_factory, seed, name):
    """Columns and rows in any order give the answers to the sequences, in any format."""
    table = tables.make_table(seed)
    path = tmp_path_factory.mktemp("any") / name
    WRITERS[name](tables.shuffle(table, seed), path)
    sequences = tables.sequences_of(table)
    for model, scorer in scorers.items():
        right = models[model].predict([*sequences.values()])
        answers = dict(zip(sequences, right, strict=True))
        lines = tables.score(scorer, path)
        assert sorted(line["id"] for line in lines) == sorted(sequences)
        for line in lines:
            np.testing.assert_allclose(
                line["probabilities"], answers[line["id"]], **CLOSE
            )


def test_arrays(scorers, tmp_path):
    """NumPy archives and .ts files work too; one feature may be numbers in a row."""
    table = tables.make_table()
    frames = tables.sequences_of(table)
    right = tables.score(scorers["machines"], _named(table, tmp_path / "a.jsonl"))
    names = np.array([tables.FEATURES[place] for place in (2, 0, 1)])
    np.savez(
        tmp_path / "a.npz",
        x=np.concatenate([*frames.values()])[:, [2, 0, 1]],
        lengths=[len(sequence) for sequence in frames.values()],
        features=names,
        ids=np.array([*frames]),
    )
    text = "@dimensions 3\n@classLabel false\n@data\n"
    for sequence in frames.values():
        text += ":".join(",".join(map(str, column)) for column in sequence.T) + "\n"
    (tmp_path / "a.ts").write_text(text)
    for name in ("a.npz", "a.ts"):
        lines = tables.score(scorers["machines"], tmp_path / name)
        assert len(lines) == len(right)
        for line, other in zip(lines, right, strict=True):
            np.testing.assert_allclose(
                line["probabilities"], other["probabilities"], **CLOSE
            )


def _named(table, path):
    _write_named_lines(table, path)
    return path


def test_shards(metadata, tmp_path, monkeypatch):
    """A table is split into shards of about so many steps, by its sequences."""
    monkeypatch.setattr(bulk_tables, "SHARD_STEPS", 10)
    rng = np.random.default_rng(0)
    for lengths in ([1], [3, 25, 1, 1, 9, 12], rng.integers(1, 30, 50).tolist()):
        path = tmp_path / "a.csv"
        table = tables.make_table(lengths=lengths)
        table.to_csv(path, index=False)
        file = shards.open_file(str(path), metadata)
        parts = [[*map(file.parse, file.read(n))] for n in range(file.count)]
        assert all(parts)
        assert max(sum(len(row.frames) for row in part[:-1]) for part in parts) < 10
        rows = [row for part in parts for row in part]
        assert [row.id for row in rows] == [f"m{n}" for n in range(len(lengths))]
        assert [len(row.frames) for row in rows] == lengths


def test_remote(metadata, tmp_path):
    """A table in an object store is copied, and the copy removed."""
    table = tables.make_table()
    table.to_csv(tmp_path / "a.csv", index=False)
    system, path = (
        pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem()),
        "a.csv",
    )
    file = bulk_tables.TableFile(system, path, metadata)
    assert [file.parse(item).id for item in file.read(0)] == ["m0", "m1", "m2"]


def test_invalid_steps(metadata, tmp_path):
    """A line whose steps lack a feature, or mix kinds, is an error of that line."""
    path = tmp_path / "a.jsonl"
    good = dict.fromkeys(tables.FEATURES, 1)
    for frames, reason in (
        ([{"vib x": 1, "vib y": 1}], "feature 'temp' is missing"),
        ([{"Vib_X": 1} | good, {"temp": 1}], "frames[1]: feature 'vib x' is missing"),
        ([good, good | {"temp": "1"}], "frames[1]['temp'] must be a number"),
        ([good, good | {"temp": None}], "frames[1]['temp'] must be a number"),
        ([good, good | {"temp": 10**400}], "frames[1] must be finite in float32"),
        ([good, good | {"temp": 1e39}], "frames[1][2] must be finite in float32"),
        ([good, [1, 2, 3]], "frames must be all lists, all objects or all numbers"),
        ([1, 2], "frames[0] has 1 features, the model takes 3"),
    ):
        path.write_text(json.dumps({"id": 7, "frames": frames}) + "\n")
        file = shards.open_file(str(path), metadata)
        (row,) = map(file.parse, file.read(0))
        assert row.frames is None
        assert row.id == 7
        assert reason in row.reason
    path.write_text(json.dumps({"frames": [good | {"note": "x"}]}) + "\n")
    file = shards.open_file(str(path), metadata)
    (row,) = map(file.parse, file.read(0))
    assert row.frames.tolist() == [[1, 1, 1]]


def test_refused(metadata, tmp_path):
    """A table that does not fit the network refuses the job, and names the line."""
    for name, text, reason in (
        ("a.csv", "vib x,temp\n1,2\n", r"a\.csv, line 1: feature 'vib y' is missing"),
        ("a.csv", "vib x,vib y,temp\n1,2,3\n1,x,3\n", "line 3: column 'vib y' is 'x'"),
        ("a.jsonl", '{"vib x": 1, "vibby": 1, "temp": 1}\n', "did you mean 'vibby'"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=reason):
            shards.open_file(str(tmp_path / name), metadata)
