"""How many answers agree with the labels of a file."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as Grid

from model.datasets.answers import Table
from model.datasets.dataset import Task, join_names

MAX_CLASSES = 20  # of the table
UNITS: dict[Task, str] = {"classify": "sequences", "label": "steps"}


def counted(count: int, unit: str) -> str:
    """A count with its unit, which is given as its plural."""
    return f"{count:,} {unit if count != 1 else unit.removesuffix('s')}"


def show(table: Table, task: Task, classes: Sequence[str], console: Console) -> None:
    """Print how right the answers are, if the table has the column `true_label`.

    Labels that the network does not know count as wrong, and are named.
    """
    if "true_label" not in table:
        return
    unit = UNITS[task]
    pairs = Counter(zip(table["true_label"], table["label"], strict=True))
    known, right, unknown = Counter[str](), Counter[str](), Counter[str]()
    for (label, answer), count in pairs.items():
        if label is None:
            continue
        (known if label in classes else unknown)[label] += count
        right[label] += count * (label == answer)
    if total := known.total() + unknown.total():
        percent = 100 * right.total() / total
        console.print(f"right: {percent:.2f} % of {counted(total, unit)}")
    if unknown:
        names = join_names(sorted(unknown))
        lacking = counted(unknown.total(), unit)
        console.print(f"of them {lacking} with labels that the model lacks: {names}")
    if several := sum(n for (label, _), n in pairs.items() if label is None):
        console.print(f"no label, or several: {counted(several, unit)}")
    if known and len(classes) <= MAX_CLASSES:
        grid = Grid("class", box=None, pad_edge=False)
        grid.add_column(unit, justify="right")
        grid.add_column("right %", justify="right")
        for name in filter(known.__contains__, classes):
            percent = 100 * right[name] / known[name]
            grid.add_row(name, f"{known[name]:,}", f"{percent:.2f}")
        console.print(grid)
