"""Names from files are printed as they are; networks are described."""

from pathlib import Path

import numpy as np

from model.bundle.bundle import Bundle
from model.cli import console
from model.config import Config
from model.evaluation import evaluation
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


def test_path(tmp_path):
    """A long path with brackets is printed on one line."""
    path = tmp_path / "[bold]" / ("long" * 50) / "1"
    with console.console.capture() as output:
        console.print_published(path, {})
    assert f"bundle: {path}" in output.get().splitlines()


def test_stack():
    """The line before the training and the table of a bundle say how frames are stacked."""
    for stack in (None, 1, 8):
        config = Config().update({"network": {"stack": stack}})
        size = 2 if stack != 8 else 2 + 7 + 1
        metadata = make_metadata(stack=stack or 1, state_size=size)
        with console.console.capture() as output:
            table = console.bundle_table(Bundle(Path("made"), metadata, "0" * 64))
            console.console.print(table)
        for text in (console.describe_network(config), output.get()):
            assert ("8 frames a step" in text) == (stack == 8)
