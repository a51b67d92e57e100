"""Each format gives the same sequences; the caller's mistakes are named."""

import json
import re

import numpy as np
import pytest

from model.datasets import readers
from model.datasets.dataset import TASKS
from model.datasets.readers import ReadError, csv_rows, files, parquet
from tests.model.datasets.data_files import WRITERS, make_ragged, refused


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_round_trip(tmp_path, monkeypatch, task, suffix):
    """Every format reads back what was written, whatever the size of its blocks."""
    monkeypatch.setattr(csv_rows, "BLOCK", 4)
    monkeypatch.setattr(parquet, "BLOCK", 5)
    for seed in range(3):
        data = make_ragged(task, seed=seed)
        path = tmp_path / f"data.{suffix}"
        WRITERS[suffix](path, data)
        dataset = readers.read(path)
        for name in ("frames", "lengths", "targets", "split"):
            expected = getattr(data, name)
            np.testing.assert_array_equal(getattr(dataset, name), expected)
        assert (dataset.name, dataset.task) == ("data", task)
        assert (dataset.classes, dataset.features) == (data.classes, data.features)
        assert dataset.digest == data.digest
        assert readers.read(path, task=task).digest == data.digest


def test_class_order(tmp_path):
    """Classes stand by value if all are whole numbers, or else by alphabet."""
    for values, classes in (
        ([10, 9, "-1"], ("-1", "9", "10")),
        ([10, 9, "x"], ("10", "9", "x")),
        ([True, False], ("false", "true")),
    ):
        path = tmp_path / "data.jsonl"
        records = [json.dumps({"frames": [1], "label": value}) for value in values]
        path.write_text("\n".join(records), encoding="utf-8")
        assert readers.read(path).classes == classes


@pytest.mark.parametrize("suffix", readers.FORMATS)
def test_no_file(tmp_path, suffix):
    """A path that is not there, or not a file, is refused like a bad file."""
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("folder", "gone"):
        path = tmp_path / f"{name}{suffix}"
        with pytest.raises(readers.ReadError, match=re.escape(str(path))):
            readers.read(path)


def test_unknown_format(tmp_path):
    """A suffix that no reader has is answered with those there are."""
    message = refused(tmp_path / "data.xls", "")
    assert message.startswith(": unknown format '.xls'; known are .jsonl, ")


def test_options(tmp_path):
    """A task that there isn't is the caller's mistake."""
    with pytest.raises(ValueError, match="task is 'clasify'"):
        readers.read(tmp_path / "data.csv", task="clasify")


def test_encoding(tmp_path):
    """Text files are read in the encoding that is named, and else as UTF-8."""
    path, lines = tmp_path / "a.csv", "sequence,label,x\na,grün,1\nb,blå,2\n"
    path.write_bytes(lines.encode("cp1252"))
    with pytest.raises(ReadError, match=r"line 2: not UTF-8 text: .*--encoding cp1252"):
        readers.read(path)
    with files.encoded("cp1252"):
        assert readers.read(path).classes == ("blå", "grün")
    path.write_text("\ufeff" + lines, encoding="utf-8")
    assert readers.read(path).classes == ("blå", "grün")
    with files.encoded("ascii"), pytest.raises(ReadError, match="not ASCII text"):
        readers.read(path)
    for name in ("cp12520", "utf-16", "base64", "\0"):
        with (
            pytest.raises(ValueError, match="use one such as cp1252"),
            files.encoded(name),
        ):
            pass
