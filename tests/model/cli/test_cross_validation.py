"""Training a file of few sequences: they are cross-validated."""

from dataclasses import replace

import numpy as np
import pytest

from model.bundle import bundle
from model.training import fold
from tests.model.cli.commands import run, write_data
from tests.support.networks import make_dataset, write_json_lines

TINY = ("--layers", "1", "--hidden", "4", "--updates", "6", "--folds", "2")
pytestmark = pytest.mark.slow


def test_trains_on_all(tmp_path, monkeypatch):
    """Ctrl-C in the cross-validation loses no finished fold. The network is trained on
    all sequences but the test part, and calibrated by answers out of fold."""
    write_data(tmp_path / "walks.jsonl")
    folders = ("--output", tmp_path / "trained", "--runs", tmp_path / "runs")
    arguments = ("train", tmp_path / "walks.jsonl", *TINY, *folders)
    train_fold, sizes = fold.train_fold, []

    def stop_at_the_second(dataset, job, report):
        sizes.append((len(dataset), int(job.held_out.sum())))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return train_fold(dataset, job, report)

    monkeypatch.setattr(fold, "train_fold", stop_at_the_second)
    stopped = run(*arguments, code=130).stderr.splitlines()
    assert stopped == ["stopped", "continue: the same command with --resume"]
    printed = run(*arguments, "--resume").stdout
    assert len(sizes) == 3
    assert {total for total, _ in sizes} == {51}
    assert sum(held_out for _, held_out in sizes[1:]) + sizes[0][1] == 51 + sizes[1][1]
    for text in ("51 training sequences: GRU 1 x 4", "cross-validation: error"):
        assert text in printed
    record = bundle.read(tmp_path / "trained" / "walks" / "1").metadata.training
    assert set(record.parts) == {"train", "cross_validation", "test"}
    assert record.parts["cross_validation"].count == record.parts["train"].count
    assert (record.validation_fraction, record.epochs) == (0, 2)
    assert record.settings["training"]["updates"] == 6
    assert record.settings["data"]["source"] == "walks.jsonl"  # not its folder
    card = (tmp_path / "trained/walks/1" / bundle.REPORT / "card.md").read_text()
    assert "6 updates of 16 |" in card
    assert "keras" in record.versions
    again = ("evaluate", tmp_path / "trained" / "walks", tmp_path / "walks.jsonl")
    assert f"{record.parts['test'].error:.2f}" in run(*again).stdout


def test_few_groups(tmp_path):
    """Under five groups each is left out once; table and card say how many there were,
    and the bundle can be evaluated on its data."""
    data = make_dataset(counts=(30, 0, 0))
    data = replace(data, groups=np.array([*"abc"] * 10))
    write_json_lines(tmp_path / "few.jsonl", data, parts=False)
    folders = ("--output", tmp_path / "trained", "--runs", tmp_path / "runs")
    printed = run("train", tmp_path / "few.jsonl", *TINY[:-2], *folders).stdout
    assert "about others: train 3, cross-validation 3" in " ".join(printed.split())
    trained = tmp_path / "trained" / "few" / "1"
    record = bundle.read(trained).metadata.training
    assert set(record.parts) == {"train", "cross_validation"}
    assert record.settings["training"]["folds"] == 3
    card = (trained / bundle.REPORT / "card.md").read_text()
    assert "| cross-validation | 90 | 3 |" in card  # repeated three times
    again = run("evaluate", trained, tmp_path / "few.jsonl", "--part", "train").stdout
    assert "about others: train 3" in " ".join(again.split())
