"""Names from files are printed as they are."""

import numpy as np

from model.cli import console
from model.evaluation import evaluation


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
