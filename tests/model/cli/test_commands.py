"""The training commands: train, resume, export, evaluate, inspect."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.bundle import bundle, labels
from model.cli import progress
from model.datasets import builtin
from model.training import loop
from tests.model.cli.commands import DRAWN, TINY, refusal, run, write_data
from tests.support.bundles import ROOT
from tests.support.networks import make_dataset, write_json_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("command")


@pytest.fixture(scope="module")
def data(folder):
    return write_data(folder / "Walks of dogs.jsonl")


@pytest.fixture(scope="module")
def file(data, folder):
    """The file that holds the data."""
    return folder / "Walks of dogs.jsonl"


@pytest.fixture(scope="module")
def folders(folder):
    return ("--output", folder / "bundles", "--runs", folder / "runs")


@pytest.fixture(scope="module")
def trained(file, data, folders):
    """The output of a training run."""
    return run("train", file, "--name", "walks", *TINY, "--seed", 5, *folders).stdout


@pytest.fixture(scope="module")
def exported(trained, folder):
    """The bundle of that run."""
    return bundle.read(folder / "bundles" / "walks" / "1")


def test_train_output(trained, exported):
    """A run prints a line for each epoch, the metrics, and the bundle's folder."""
    lines = [line.strip() for line in trained.splitlines() if line.strip()]
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split()[1] for line in epochs] == ["1/2", "2/2"]
    paths = dict(line.split() for line in lines[-4:-1])
    assert paths["bundle:"] == str(exported.folder)
    assert Path(paths["card:"]).is_file()
    assert Path(paths["worst:"]).is_file()
    assert f"unrolled predict FILE --bundle {exported.folder} -o" in lines[-1]
    *_, test = [line.split() for line in lines if line.startswith("test ")]
    part_metrics = exported.metadata.training.parts["test"]
    assert test[1:3] == [str(part_metrics.count), f"{part_metrics.error:.2f}"]


def test_train_bundle(exported, data):
    """The bundle holds the network that the options describe."""
    metadata = exported.metadata
    assert (metadata.task, metadata.layers, metadata.hidden) == ("label", 1, 4)
    assert (metadata.training.seed, metadata.training.epochs) == (5, 2)
    assert metadata.training.source == "Walks of dogs"
    assert metadata.classes == data.classes


def test_train_plain(trained):
    """Without a terminal there are no boxes and no escapes."""
    assert not DRAWN.search(trained)


@pytest.mark.slow
def test_train_process(file, tmp_path):
    """As a process it exits with 0 and writes nothing to stderr."""
    folders = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
    arguments = ("train", file, "--name", "x", *TINY, "--task", "label", *folders)
    process = subprocess.run(
        [sys.executable, "-m", "model", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert f"bundle: {tmp_path / 'b' / 'x' / '1'}" in process.stdout
    assert not DRAWN.search(process.stdout)
    bundle.read(tmp_path / "b" / "x" / "1")


def test_train_broken_labels(file, tmp_path):
    """Labels that can't be read are refused before the training."""
    (tmp_path / "b" / "x" / "1").mkdir(parents=True)
    (tmp_path / "b" / "x" / labels.LABELS).write_text("{")
    folders = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
    assert labels.LABELS in refusal("train", file, "--name", "x", *TINY, *folders)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_train_interrupted(file, tmp_path, monkeypatch):
    """Ctrl-C prints how to resume or export the run, and the command works."""

    def stop(bars, *_):
        if bars.epoch == 2:
            raise KeyboardInterrupt

    def begins(bars, epoch, batches):
        bars.epoch = epoch

    folders = ("--output", tmp_path / "b", "--runs", tmp_path / "r")
    with monkeypatch.context() as patch:
        patch.setattr(progress.ProgressBars, "on_batch_end", stop)
        patch.setattr(progress.ProgressBars, "on_epoch_begin", begins)
        result = run("train", file, "--name", "x", *TINY, *folders, code=130)
    assert "epoch 1" in result.stderr
    assert "--resume" in result.stderr
    assert not (tmp_path / "b").exists()
    (line,) = [s for s in result.stderr.splitlines() if "unrolled export" in s]
    arguments = line.partition("unrolled ")[2].split()
    assert "bundle: " in run(*arguments).stdout
    record = bundle.read(tmp_path / "b" / "x" / "1").metadata.training
    assert (record.epochs, record.best_epoch) == (1, 1)


def test_train_interrupted_at_once(file, folders, tmp_path, monkeypatch):
    """Ctrl-C before the first epoch is complete prints one line."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "fit", stop)
    result = run("train", file, *TINY, "--runs", tmp_path, code=130)
    assert len(result.stderr.splitlines()) == 1


def test_resume_other_settings(file, folders, exported):
    """A run is not resumed with other settings."""
    settings = (*TINY, "--seed", 5, "--hidden", 5)
    line = refusal("train", file, "--name", "walks", *settings, "--resume", *folders)
    assert "other settings (network.hidden)" in line


def test_resume_other_data(file, folders, exported):
    """Another seed splits the file differently, which is other data."""
    line = refusal(
        "train", file, "--name", "walks", *TINY, "--seed", 6, "--resume", *folders
    )
    assert "other data" in line


def test_resume_finished(file, folders, exported):
    """A complete run is not resumed; the message has the export command."""
    settings = (*TINY, "--seed", 5)
    line = refusal("train", file, "--name", "walks", *settings, "--resume", *folders)
    assert "is complete" in line
    assert "export" in line


def test_resume_nothing(file, tmp_path):
    """Without a run nothing is resumed."""
    line = refusal("train", file, *TINY, "--resume", "--runs", tmp_path)
    assert "no training run" in line


@pytest.mark.slow
def test_export_again(exported, folder, tmp_path):
    """The best weights of a run can be exported again."""
    run("export", folder / "runs" / "walks", "--output", tmp_path)
    again = bundle.read(tmp_path / "walks" / "1")
    np.testing.assert_array_equal(
        again.golden().probabilities, exported.golden().probabilities
    )
    assert again.metadata.training == exported.metadata.training
    assert not (tmp_path / "walks" / labels.LABELS).exists()


@pytest.mark.slow
def test_export_promotion(exported, folder, tmp_path):
    """A second version is compared with the first, and both are printed; the output
    says which is served, and how to serve the other."""
    command = ("export", folder / "runs" / "walks", "--output", tmp_path)
    assert "served" not in run(*command).stdout
    output = run(*command).stdout
    assert not DRAWN.search(output)
    rows = [line.split() for line in output.splitlines()]
    assert ["on", "the", "test", "part"] in rows
    (before,) = [row[3:] for row in rows if row[:3] == ["1,", "in", "service"]]
    (after,) = [row[2:] for row in rows if row[:2] == ["2,", "new"]]
    assert before == after
    reason = "not provably worse: +0.00 points, 95 % interval -"
    assert f"not served: walks@2; {reason}" in output
    assert labels.read(tmp_path / "walks") == {"default": 1}
    output = run(*command, "--promote", "not-worse").stdout
    assert f"\nserved: walks@3; {reason}" in output
    assert labels.read(tmp_path / "walks") == {"default": 3}
    *_, reason, hint = run(*command, "--promote", "never").stdout.splitlines()
    assert reason.startswith("not served: walks@4; not provably worse: +0.00 points")
    assert hint == f"serve it: unrolled promote walks@4 --bundles {tmp_path}"
    assert labels.read(tmp_path / "walks") == {"default": 3}
    (tmp_path / "walks" / labels.LABELS).write_text("{")
    assert labels.LABELS in refusal(*command)
    assert bundle.versions(tmp_path / "walks") == [1, 2, 3, 4]


def test_export_no_run(tmp_path):
    """A folder that is not a run is refused by name."""
    assert str(tmp_path) in refusal("export", tmp_path)


def test_export_changed_data(exported, folder, data, file):
    """A run whose data has changed is not exported."""
    original = file.read_text()
    try:
        file.write_text(original.replace("0.", "1.", 1))
        line = refusal("export", folder / "runs" / "walks")
    finally:
        file.write_text(original)
    assert "data has changed" in line


def test_evaluate_same_test_part(exported, file):
    """Evaluation uses the test part of training, with the same metrics."""
    output = run("evaluate", exported.folder, file, "--json").stdout
    part_metrics = json.loads(output)
    metrics = exported.folder / bundle.REPORT / "metrics.json"
    recorded = json.loads(metrics.read_text())["parts"]["test"]
    assert part_metrics["count"] == recorded["count"]
    assert part_metrics["confusion"] == recorded["confusion"]
    np.testing.assert_allclose(part_metrics["error"], recorded["error"], atol=1e-3)


def test_evaluate_other_file(exported, tmp_path):
    """Other data than the training data is not split."""
    path = tmp_path / "other.jsonl"
    line = {"frames": [[1, 2, 3]], "labels": [exported.metadata.classes[0]]}
    path.write_text(f"{json.dumps(line)}\n" * 30)
    assert "--part all" in refusal("evaluate", exported.folder, path)
    run("evaluate", exported.folder, path, "--part", "all")


def test_evaluate_all(exported, file, data):
    """`--part all` evaluates all sequences of a file."""
    result = run("evaluate", exported.folder, file, "--part", "all").stdout
    assert not DRAWN.search(result)
    rows = [line.split() for line in result.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["all"]]
    assert row[1] == str(len(data.targets))
    classes = {row[0]: row[1] for row in rows if row[:1] and row[0] in data.classes}
    counts = np.bincount(data.targets)
    want = {name: str(counts[code]) for code, name in enumerate(data.classes)}
    assert classes == want
    assert ["class", "count", "precision", "%", "recall", "%", "F1", "%"] in rows


def test_evaluate_training_sequences(exported, file, tmp_path):
    """The output says how many sequences were trained on, and measures the new ones."""
    used = {"trained_on": 42, "chose_weights": 9, "new": 9}
    options = ("--part", "all")
    output = run("evaluate", exported.folder, file, *options).stdout
    assert "of these 60 sequences 42 were trained on and 9 chose" in output
    result = run("evaluate", exported.folder, file, *options, "--json").stdout
    assert json.loads(result)["sequences"] == used
    test = run("evaluate", exported.folder, file).stdout
    assert "trained on" not in test
    row = next(r for r in test.splitlines() if r.split()[:1] == ["test"])
    new = next(r for r in output.splitlines() if r.split()[:1] == ["new"])
    assert new.split()[1:] == row.split()[1:]

    new_data = make_dataset("label", counts=(60, 0, 0), seed=9)
    other = write_json_lines(tmp_path / "other.jsonl", new_data, parts=False)
    output = run("evaluate", exported.folder, other, *options).stdout
    assert "none of these 60 sequences was used in training" in output


def test_evaluate_other_columns(exported, tmp_path):
    """A table may have other names for its columns."""
    path = tmp_path / "table.csv"
    name = exported.metadata.classes[0]
    path.write_text(f"run,state,x1,x0,x2\na,{name},1,2,3\nb,{name},4,5,6\n")
    command = ("evaluate", exported.folder, path, "--part", "all")
    assert "--sequence-column=run" in refusal(*command)
    run(*command, "--sequence-column", "run", "--label-column", "state")


def test_evaluate_by_name(exported, file, folder):
    """The folder of a bundle's versions is accepted too."""
    for path in (exported.folder.parent, folder / "bundles"):
        run("evaluate", path, file, "--part", "all", "--json")


def test_evaluate_other_data(exported, tmp_path):
    """Data that doesn't fit the bundle is refused."""
    for text, expected in (
        ('{"frames": [[1, 2]], "labels": ["ant"]}', "2 features"),
        (
            '{"frames": [[1, 2, 3]], "label": "ant"}',
            "task label needs one for each step",
        ),
        ('{"frames": [[1, 2, 3]], "labels": ["gnu"]}', "gnu"),
    ):
        path = tmp_path / "other.jsonl"
        path.write_text(text + "\n")
        assert expected in refusal("evaluate", exported.folder, path, "--part", "all")


def test_evaluate_no_bundle(file, tmp_path):
    """A folder without a bundle, or with several, is refused by name."""
    assert f"{tmp_path}: no bundle" in refusal("evaluate", tmp_path, file)
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
    line = refusal("inspect", tmp_path)
    assert f"{tmp_path}: several bundles: a, b" in line


def test_inspect_output(exported):
    """`inspect` shows the network, its classes and the digest."""
    output = run("inspect", exported.folder).stdout
    assert not DRAWN.search(output)
    for part in ("walks, version 1", "label", "gru 1 x 4", "ant, bee, cat"):
        assert part in output
    assert exported.digest in output


def test_inspect_spoilt(exported, folder):
    """A changed file is named."""
    path = exported.folder / bundle.NETWORK
    original = path.read_bytes()
    try:
        path.write_bytes(original + b" ")
        line = refusal("inspect", exported.folder)
    finally:
        path.write_bytes(original)
    assert str(path) in line
    assert "SHA-256" in line


def test_datasets_output():
    """The built-in sets and all file formats are listed."""
    output = run("datasets").stdout
    assert not DRAWN.search(output)
    for name in (*builtin.BUILTIN, ".jsonl", ".csv", ".parquet", ".npz", ".ts"):
        assert name in output
