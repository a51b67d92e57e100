"""The classes of a part, for a card: precision, recall and F1, and what is taken for what."""

from collections.abc import Sequence

import numpy as np

from model.evaluation.evaluation import Metrics
from model.report.markdown import escape, table

WORST = 5  # classes, and confusions
MOST = 50  # classes in the table


def measures(part: Metrics, title: str, unit: str) -> str:
    """Return precision, recall and F1 of each class; of many, those with the lowest F1."""
    order = sorted(part.by_class, key=lambda name: part.by_class[name].f1 or 0)
    chosen = {*order[:MOST]}
    rows = [
        (escape(name), f"{m.count:,}", *map(_percent, (m.precision, m.recall, m.f1)))
        for name, m in part.by_class.items()
        if name in chosen
    ]
    fewer = f" The {MOST} with the lowest F1 are shown." if len(order) > MOST else ""
    head = ("Class", f"{unit.capitalize()}s", "Precision", "Recall", "F1")
    return f"""## Classes, {title}

{table(head, rows)}

Precision: the share of the answers with this class that are right. Recall: the share of the
{unit}s of this class that are found. F1: their harmonic mean.{fewer}"""


def mistakes(part: Metrics, names: Sequence[str], title: str, unit: str) -> str:
    """Return the classes and the pairs of classes that err most."""
    counts = np.array(part.confusion)
    actual, correct = counts.sum(1), counts.diagonal()
    wrong, names = counts - np.diag(correct), [*map(escape, names)]
    if not wrong.any():
        return f"## Mistakes\n\nNone in the {title}."
    shares = 100 * wrong / np.maximum(actual, 1)[:, None]
    worst = np.argsort(-shares.sum(1), kind="stable")[:WORST]
    classes = [
        (names[true], f"{shares[true].sum():.1f} %", f"{actual[true]:,}")
        for true in worst
        if wrong[true].any()
    ]
    confusions = [
        (
            names[true],
            names[predicted],
            f"{wrong[true, predicted]:,}",
            f"{shares[true, predicted]:.1f} %",
        )
        for true, predicted in sorted(
            np.argwhere(wrong).tolist(), key=lambda at: -wrong[*at]
        )
    ][:WORST]
    unit = f"{unit.capitalize()}s"
    return f"""## Mistakes

The classes with the highest error, {title}:

{table(("Class", "Error", unit), classes)}

The most frequent confusions:

{table(("True", "Predicted", unit, "Share of the true class"), confusions)}"""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"
