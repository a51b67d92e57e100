"""What the commands show: tables on a terminal, plain columns elsewhere."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from model.bundle.bundle import Bundle
from model.config import Config
from model.datasets.builtin import BuiltinDataset
from model.datasets.dataset import PARTS, Dataset

if TYPE_CHECKING:  # it imports TensorFlow
    from model.training.evaluation import Metrics

# What is shown may hold names from a user's file: they are no markup.
console = Console(highlight=False, markup=False, emoji=False)
FORMATS = """
files of your own, by their ending:
  .jsonl    {"frames": [[0.1, 0.2], [0.3, 0.4]], "label": "a"}   one class a sequence
            {"frames": [[0.1, 0.2], [0.3, 0.4]], "labels": ["a", "b"]}   one a step
            "split": "train" | "validation" | "test" may be added
  .csv      a row a step: columns sequence, label, perhaps step and split;
  .parquet  every other column is a feature
  .npz      x [steps of all sequences, F], lengths [N], y [N] or [steps];
            perhaps classes, features, split (0 train, 1 validation, 2 test)
  .ts       the UEA/UCR archive's format
"""
if not console.is_terminal:
    console.width = 120  # as wide, wherever it goes


def _table(title: str, *, show_header: bool = True) -> Table:
    """Drawn on a terminal; columns of plain text elsewhere."""
    drawn = box.ROUNDED if console.is_terminal else None
    return Table(title=title, title_justify="left", box=drawn, show_header=show_header)


def figures_table(title: str, parts: dict[str, "Metrics"]) -> Table:
    """Error, accuracy, F1 and calibration of each part."""
    table = _table(title)
    table.add_column("part")
    for name in (
        "judged",
        "error %",
        "accuracy %",
        "macro F1 %",
        "calibration error %",
    ):
        table.add_column(name, justify="right")
    for part, f in parts.items():
        values = (f.error, f.accuracy, f.macro_f1, f.calibration_error)
        table.add_row(part, f"{f.count:,}", *(f"{value:.2f}" for value in values))
    return table


def class_table(figures: "Metrics") -> Table:
    """How often each class is recognised."""
    table = _table("by class")
    table.add_column("class")
    table.add_column("count", justify="right")
    table.add_column("accuracy %", justify="right")
    rows = zip(figures.class_accuracy.items(), figures.confusion, strict=True)
    for (name, accuracy), row in rows:
        table.add_row(
            name, str(sum(row)), "-" if accuracy is None else f"{accuracy:.2f}"
        )
    return table


def bundle_table(found: Bundle) -> Table:
    """What a bundle is, a line each."""
    metadata, record = found.metadata, found.metadata.training
    directions = "both directions" if metadata.bidirectional else "forward"
    state = f"{metadata.state_size} floats a sequence"
    rows = {
        "name": f"{metadata.name}, version {metadata.version}",
        "task": metadata.task,
        "input": f"{metadata.input.features} features a step",
        "classes": ", ".join(metadata.classes),
        "network": f"{metadata.cell} {metadata.layers} x {metadata.hidden}, {directions}",
        "state": state if metadata.state_size else "none: it needs whole sequences",
        "temperature": f"{metadata.temperature:.3f}",
        "trained on": f"{record.source}, up to {record.longest} steps",
        "created": record.created,
        "files": f"{len(metadata.files)}, each as its SHA-256 says",
        "digest": found.digest,
    }
    for part, figures in record.parts.items():
        rows[f"{part} error"] = f"{figures.error:.2f} % of {figures.count:,}"
    if metadata.int8:
        rows["int8"] = f"{metadata.int8.part} error {metadata.int8.error:.2f} %"
    table = _table(str(found.folder), show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def datasets_table(entries: Iterable[BuiltinDataset]) -> Table:
    """The built-in sets."""
    table = _table("built-in data sets")
    for column in ("name", "task", "what it is", "licence"):
        table.add_column(column)
    for entry in entries:
        table.add_row(entry.name, entry.task, entry.description, entry.licence)
    return table


def summary(dataset: Dataset, config: Config) -> str:
    """What is about to be trained, in a few lines."""
    counts = ", ".join(f"{len(dataset.part(p)):,} {p}" for p in PARTS)
    shortest, longest = dataset.lengths.min(), dataset.lengths.max()
    train = np.unique(dataset.part("train").targets)
    lacking = [c for code, c in enumerate(dataset.classes) if code not in train]
    if lacking:
        counts += f"\nnever seen in training: {', '.join(lacking)}"
    network = config.network
    way = "both directions" if network.bidirectional else "forward"
    return (
        f"{dataset.name}: {dataset.task}, {len(dataset.classes)} classes,"
        f" {len(dataset.features)} features, {shortest} to {longest} steps; {counts}\n"
        f"{config.name}: {network.cell} {network.layers} x {network.hidden}, {way},"
        f" dropout {network.dropout}, seed {config.training.seed}"
    )


def published(folder: Path, parts: dict[str, "Metrics"]) -> None:
    """Where the bundle is, and what it can."""
    console.print(figures_table("figures", parts))
    console.print(f"bundle: {folder}", soft_wrap=True)
    card = folder / "assets.extra" / "report" / "card.md"
    console.print(f"card:   {card}", soft_wrap=True)
