"""Names from files are printed as they are; networks are described."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from model.bundle.bundle import Bundle
from model.cli import console
from model.evaluation import evaluation
from model.evaluation.comparison import Baseline, Difference
from tests.support import exports
from tests.support.bundles import make_metadata


def test_classes():
    """A class's name is not read as markup."""
    for name in ("[red]", "[/b]", ":cat:", "[link=x]y", "a\\[b]"):
        scores = np.eye(2)
        predictions = evaluation.Predictions(scores, np.arange(2), np.ones(2, int))
        part_metrics = evaluation.compute_metrics(predictions, (name, "other"))
        with console.console.capture() as output:
            console.console.print(console.class_table(part_metrics))
            console.console.print(
                console.metrics_table(f"of {name}", {name: part_metrics})
            )
        for line in ("of ", "100.00"):
            assert any(line in row and name in row for row in output.get().splitlines())


def test_intervals():
    """The table has the 95 % interval of each metric; `inspect` too, if it is known."""
    answers = evaluation.Predictions(
        np.eye(2)[[0] * 40], np.arange(40) % 10 // 9, np.ones(40)
    )
    metrics = evaluation.compute_metrics(answers, ("a", "b"))
    with console.console.capture() as output:
        console.console.print(
            console.metrics_table("of", {"cross_validation": metrics})
        )
    text = output.get()
    assert "cross-validation" in text
    assert "10.00 (3.96 to 23.05)" in text
    assert "in brackets: 95 % intervals" in text

    assert "groups" not in text
    grouped = replace(answers, groups=np.arange(40) // 20, grouped=True)
    parts = {"test": evaluation.compute_metrics(grouped, ("a", "b")), "all": metrics}
    with console.console.capture() as output:
        console.console.print(console.metrics_table("of", parts))
    assert "those between groups, of which one says nothing about others: test 2\n" in (
        " ".join(output.get().split()) + "\n"
    )

    for kind in ("classify-gru", "label-lstm"):
        bundle = exports.load()[kind].bundle
        part = bundle.metadata.training.parts["test"]
        low, high = part.intervals.error
        row = f"{part.error:.2f} % of {part.count} ({low:.2f} to {high:.2f})"
        with console.console.capture() as output:
            console.console.print(console.bundle_table(bundle))
        assert row in output.get()
        assert "test ECE" in output.get()
        part = part.model_copy(update={"intervals": None})
        record = bundle.metadata.training.model_copy(update={"parts": {"test": part}})
        metadata = bundle.metadata.model_copy(update={"training": record})
        with console.console.capture() as output:
            console.console.print(
                console.bundle_table(replace(bundle, metadata=metadata))
            )
        assert f"{part.error:.2f} % of {part.count} " in output.get()
        assert row not in output.get()


def test_baselines():
    """A table compares the network with its baselines, and a line warns if it isn't
    better."""
    answers = evaluation.Predictions(np.eye(2), np.arange(2), np.ones(2))
    metrics = evaluation.compute_metrics(answers, ("a", "b"))
    for low, warned in ((-9, False), (-1, True)):
        baseline = Baseline(2, 9, 40.0, [30, 50], Difference(low + 1, low, low + 2))
        beside = {"logistic_regression": baseline, "majority": baseline}
        parts = {"train": metrics, "test": replace(metrics, baselines=beside)}
        with console.console.capture() as output:
            console.print_baselines(parts)
        lines = [" ".join(line.split()) for line in output.get().splitlines()]
        assert any("majority class 40.00 (30.00 to 50.00)" in line for line in lines)
        assert lines[-1].startswith("warning: the network does not beat") == warned
    with console.console.capture() as output:
        console.print_baselines({"train": metrics})
    assert output.get() == ""


def test_published(tmp_path):
    """A long path with brackets is printed on one line, and so is the reason why there
    are no int8 weights."""
    path = tmp_path / "[bold]" / ("long" * 50) / "1"
    for reason in ("", "On the test part: the error rises by 2.5 points"):
        bundle = Bundle(path, make_metadata(int8_refused=reason), "0" * 64)
        with console.console.capture() as output:
            console.print_published(bundle, {}, path / "worst.md")
        lines = output.get().splitlines()
        assert f"bundle: {path}" in lines
        assert (f"int8:   none. {reason}" in lines) == bool(reason)


def test_stack():
    """The table of a bundle says how many frames make a step."""
    for stack in (1, 8):
        size = 2 if stack != 8 else 2 + 7 + 1
        metadata = make_metadata(stack=stack, state_size=size)
        with console.console.capture() as output:
            table = console.bundle_table(Bundle(Path("made"), metadata, "0" * 64))
            console.console.print(table)
        assert ("8 frames a step" in output.get()) == (stack == 8)
