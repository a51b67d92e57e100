"""The command describe, and the look at the data with which a training begins."""

import subprocess
import sys

import pytest

from tests.model.cli.commands import DRAWN, TINY, refusal, run
from tests.support.bundles import ROOT
from tests.support.networks import make_dataset, write_json_lines

HEAVY = ("tensorflow", "keras", "onnx", "matplotlib")


@pytest.fixture
def table(tmp_path):
    """A CSV of machines: 12 sequences of 3 steps, 4 of each class."""
    rows = ["machine;step;state;u;v"]
    for number in range(12):
        state = ("fan", "pump", "valve")[number % 3]
        rows += [
            f"m{number};{step};{state};{number * step},5;{number}" for step in range(3)
        ]
    path = tmp_path / "machines.csv"
    path.write_text("\n".join(rows))
    return path


COLUMNS = ("--sequence-column", "machine", "--label-column", "state")


def test_tables(table):
    """The parts, the classes with their counts, and the ranges of features are shown."""
    output = run("describe", table, *COLUMNS, "--ignore", "v").stdout
    assert not DRAWN.search(output)
    lines = [line.split() for line in output.splitlines()]
    assert lines[0][:3] == ["machines:", "task", "classify,"]
    assert ["all", "12", "36", "3", "3", "3"] in lines
    assert ["u", "0.5", "6", "22.5"] in lines
    counts = {line[0]: line[1:] for line in lines if line[:1] in (["fan"], ["pump"])}
    assert all(sum(map(int, numbers)) == 4 for numbers in counts.values())
    assert len(counts) == 2


def test_groups(table):
    """The groups of each part are counted, and none is in two parts."""
    shown = ("describe", table, *COLUMNS)
    assert "groups" not in run(*shown).stdout
    path = table.with_name("halls.csv")
    header, *rows = table.read_text().splitlines()
    halls = (f"{row};hall {int(row.split(';')[0][1:]) // 3}" for row in rows)
    path.write_text("\n".join([f"{header};hall", *halls]))
    parts = ("--validation-fraction", "0.15", "--test-fraction", "0.15")
    output = run("describe", path, *COLUMNS, *parts, "--group-column", "hall").stdout
    counts = {line.split()[0]: line.split()[-1] for line in output.splitlines() if line}
    assert counts["part"] == "groups"
    sizes = [int(counts[name]) for name in ("train", "validation", "test")]
    assert (sizes, counts["all"]) == ([2, 1, 1], "4")


def test_warnings(table):
    """A warning is one line that begins with its kind."""
    output = run("describe", table, *COLUMNS).stdout
    lines = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2
    assert "fan (4), pump (4), valve (4)" in lines[0]
    assert "feature v has one number for each sequence" in lines[1]


def test_wide(tmp_path):
    """Of very many classes and features the first are shown."""
    data = make_dataset(counts=(60, 10, 10))
    path = tmp_path / "wide.csv"
    names = ",".join(f"f{number}" for number in range(3_000))
    values = ",".join(map(str, range(3_000)))
    rows = [f"s{n},c{n % 40},{n},{values}" for n in range(len(data))]
    path.write_text(f"sequence,label,u,{names}\n" + "\n".join(rows))
    output = run("describe", path).stdout
    assert "and 20 more" in output
    assert "and 2,981 more" in output
    assert len(output.splitlines()) < 70


def test_untrained_class(tmp_path):
    """A class in the test part that training lacks is shown, named and refused."""
    rows = ["sequence,label,u,split"]
    rows += [f"a{n},x,{n},train" for n in range(8)]
    rows += [f"b{n},y,{n},validation" for n in range(8, 12)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(rows))
    for command in (("describe", path), ("train", path, *TINY, "--runs", tmp_path)):
        result = run(*command, code=2)
        assert "y" in result.stdout
        assert "error: class y occurs in the validation part but not" in result.stderr


def test_misspelt_columns(table):
    """A misspelt column is refused, and the nearest name suggested."""
    for options, expected in (
        ((*COLUMNS, "--label-column", "sate"), "did you mean 'state'?"),
        ((*COLUMNS, "--sequence-column", "Machines"), "did you mean 'machine'?"),
        ((*COLUMNS, "--ignore", "w"), "column to ignore 'w' is missing"),
        ((*COLUMNS, "--step-column", "stpe"), "did you mean 'step'?"),
    ):
        assert expected in refusal("describe", table, *options)


def test_encoding(tmp_path):
    """A file of another encoding is read with `--encoding`."""
    path = tmp_path / "a.csv"
    rows = [f"{n},{'grün' if n % 2 else 'blå'},{n}" for n in range(20)]
    path.write_text("\n".join(["sequence,label,x", *rows]), encoding="cp1252")
    assert "--encoding cp1252" in refusal("describe", path)
    assert " grün " in run("describe", path, "--encoding", "cp1252").stdout


def test_names_are_not_markup(tmp_path):
    """Names of classes and features are printed as they are."""
    data = make_dataset(counts=(20, 0, 0))
    path = write_json_lines(tmp_path / "[b].jsonl", data)
    path.write_text(path.read_text().replace('"ant"', '"[red]ant"'))
    output = run("describe", path).stdout
    assert "[red]ant" in output
    assert "[b]: task" in output


@pytest.mark.slow
def test_training_begins_with_it(tmp_path):
    """`train` prints the same tables and warnings before the first epoch."""
    path = write_json_lines(tmp_path / "walks.jsonl", make_dataset(counts=(60, 0, 0)))
    table = run("describe", path, "--validation-fraction", "0.15").stdout
    folders = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
    output = run("train", path, *TINY, *folders).stdout
    assert output.startswith(table)
    network, first = output.removeprefix(table).splitlines()[:2]
    assert network.startswith("walks: 42 training sequences: GRU 1 x 4, ")
    assert first.startswith("epoch   1/2")


def test_without_tensorflow(table):
    """It runs where TensorFlow is not installed, and imports nothing of training."""
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))"
    arguments = ["unrolled", "describe", str(table), *COLUMNS]
    code = (
        f"{block}; sys.argv = {arguments!r}; from unrolled.__main__ import app; app()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "machines: task classify" in process.stdout
