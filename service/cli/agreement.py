"""How many answers agree with the labels of a file."""

from collections import Counter
from collections.abc import Sequence
from itertools import compress

from rich.console import Console
from rich.table import Table as Grid

from model.datasets.answers import Table
from model.datasets.dataset import Task, join_names

MAX_CLASSES = 20  # of the table
UNITS: dict[Task, str] = {"classify": "sequences", "label": "steps"}


def counted(count: int, unit: str) -> str:
    """A count with its unit, which is given as its plural."""
    return f"{count:,} {unit if count != 1 else unit.removesuffix('s')}"


def show(
    table: Table,
    task: Task,
    classes: Sequence[str],
    console: Console,
    seen: Sequence[bool] | None,
) -> None:
    """Print how right the answers are, if the table has the column `true_label`.

    Labels that the network does not know count as wrong, and are named. Rows that it was
    trained on are counted apart, if there are others.

    Args:
        seen: for each row whether its sequence was used in training; None: unknown.
    """
    if "true_label" not in table:
        return
    unit = UNITS[task]
    rows = list(zip(table["true_label"], table["label"], strict=True))
    learnt = Counter(row for row in compress(rows, seen or ()) if row[0] is not None)
    pairs = Counter(rows) - learnt or learnt
    fresh = "new " if learnt and pairs is not learnt else ""
    known, right, unknown = Counter[str](), Counter[str](), Counter[str]()
    for (label, answer), count in pairs.items():
        if label is None:
            continue
        (known if label in classes else unknown)[label] += count
        right[label] += count * (label == answer)
    if total := known.total() + unknown.total():
        percent = 100 * right.total() / total
        console.print(f"right: {percent:.2f} % of {counted(total, fresh + unit)}")
    if unknown:
        names = join_names(sorted(unknown))
        lacking = counted(unknown.total(), unit)
        console.print(f"of them {lacking} with labels that the model lacks: {names}")
    if several := sum(n for (label, _), n in pairs.items() if label is None):
        console.print(f"no label, or several: {counted(several, unit)}")
    console.print(_membership(learnt, unit, fresh=bool(fresh), known=seen is not None))
    if known and len(classes) <= MAX_CLASSES:
        grid = Grid("class", box=None, pad_edge=False)
        grid.add_column(unit, justify="right")
        grid.add_column("right %", justify="right")
        for name in filter(known.__contains__, classes):
            percent = 100 * right[name] / known[name]
            grid.add_row(name, f"{known[name]:,}", f"{percent:.2f}")
        console.print(grid)


def _membership(
    learnt: Counter[tuple[str | None, str]], unit: str, *, fresh: bool, known: bool
) -> str:
    """Say how many rows the network was trained on, and how right it is there."""
    worse = "new ones are answered worse"
    if not known:
        return (
            f"how many of them are of its training is not known: if some are, {worse}"
        )
    if not learnt:
        return "none of them was used in training"
    if not fresh:
        return f"all of them were used in training: {worse}"
    right = sum(n for (label, answer), n in learnt.items() if label == answer)
    percent = 100 * right / learnt.total()
    return f"used in training: {counted(learnt.total(), unit)}, {percent:.2f} % right"
