"""Print the commands' results: tables on a terminal, plain columns elsewhere."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from model.bundle import folders
from model.bundle.bundle import Bundle
from model.bundle.metadata import shown_part
from model.bundle.records import CategoryColumn
from model.datasets import checks
from model.datasets.builtin import BuiltinDataset
from model.datasets.dataset import PARTS, Dataset
from model.datasets.summary import Summary, summarise
from model.evaluation import comparison

if TYPE_CHECKING:  # it imports TensorFlow
    from model.evaluation.evaluation import Metrics
    from model.export.promotion import Promotion

MAX_ROWS = 20  # classes or features in a table
METRICS_CAPTION = (
    "in brackets: 95 % intervals; ECE: expected calibration error; by chance: that of a"
    " perfectly calibrated network on as many answers"
)
GROUPS_CAPTION = (
    "; the intervals are those between groups, of which one says nothing about others"
)
# Names from a user's file must not be read as markup.
console = Console(
    highlight=False,
    markup=False,
    emoji=False,
    # A notebook gets plain text, as a file does.
    force_jupyter=False,
    force_terminal=False if "ipykernel" in sys.modules else None,
)
FORMATS = """
your own files, by suffix:
  .csv      one row per step: columns sequence (the id) and label, optionally step (rows
  .tsv      are sorted by it) and split; every other column is a feature. Name other
  .parquet  columns with --sequence-column, --label-column, --step-column and --ignore;
            --group-column names subjects or machines that stay in one part
  .jsonl    {"frames": [[0.1, 0.2], [0.3, 0.4]], "label": "a"}   one class per sequence
            {"frames": [[0.1, 0.2], [0.3, 0.4]], "labels": ["a", "b"]}   one per step
            optional: "id", "group", "split": "train" | "validation" | "test", and steps with
            names: [{"x": 0.1, "y": 0.2}, ...]; or one step per line, as in a table
  .npz      x [steps of all sequences, F], lengths [N], y [N] or [steps]; optional:
            classes, features, ids, groups, split (0 train, 1 validation, 2 test)
  .ts       the UEA/UCR archive's format
texts, and records of categories, numbers and times:
  .csv      --text COLUMN: a text a row, with its label. --categories A,B --numbers C --time D:
            a record a row; .jsonl: {"records": [{"a": "x", "c": 1}], "label": "a"}
  .jsonl    {"tokens": ["Bob", "ran"], "labels": ["NAME", "O"]}, or spans of a "text"
  .conll    a word and its label a line; .conllu

Train on one of them: unrolled train FILE --name NAME
"""
if not console.is_terminal:
    console.width = 120  # the same in every pipe and file


def _table(title: str, *, show_header: bool = True) -> Table:
    """Create a table: drawn on a terminal, plain text elsewhere."""
    style = box.ROUNDED if console.is_terminal else None
    return Table(title=title, title_justify="left", box=style, show_header=show_header)


def metrics_table(
    title: str, parts: dict[str, "Metrics"], column: str = "part"
) -> Table:
    """Show the metrics of each part, or of what else the column names."""
    table = _table(title)
    table.caption = METRICS_CAPTION
    table.caption_justify = "left"
    table.add_column(column)
    groups = [f"{_shown(n)} {m.groups:,}" for n, m in parts.items() if m.groups]
    if groups:
        table.caption += f"{GROUPS_CAPTION}: {', '.join(groups)}"
    for name in ("evaluated", "error %", "macro F1 %", "ECE %", "ECE by chance %"):
        table.add_column(name, justify="right")
    for part, m in parts.items():
        between = m.intervals
        table.add_row(
            _shown(part),
            f"{m.count:,}",
            _with_interval(m.error, between.error),
            _with_interval(m.macro_f1, between.macro_f1),
            _with_interval(m.calibration_error, between.calibration_error),
            f"{m.calibration_error_by_chance:.2f}",
        )
    return table


def _shown(part: str) -> str:
    return part.replace("_", "-")


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f} ({_span(interval)})"


def _span(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{low:.2f} to {high:.2f}"


def membership_text(counts: dict[str, int] | None) -> str:
    """Say how many of the evaluated sequences the bundle was trained on."""
    if counts is None:
        return (
            "the bundle doesn't say which sequences it was trained on: if some of these"
            " were, the error on new ones is higher"
        )
    total, new = sum(counts.values()), counts["new"]
    if new == total:
        return f"none of these {total:,} sequences was used in training"
    rest = f": 'new' are the other {new:,}" if new else ""
    return (
        f"of these {total:,} sequences {counts['trained_on']:,} were trained on and"
        f" {counts['chose_weights']:,} chose the weights, so the error on new ones is"
        f" higher{rest}"
    )


def class_table(metrics: "Metrics") -> Table:
    """Show the precision, recall and F1 of each class."""
    table = _table("by class")
    table.add_column("class")
    for column in ("count", "precision %", "recall %", "F1 %"):
        table.add_column(column, justify="right")
    for name, m in metrics.by_class.items():
        shares = (m.precision, m.recall, m.f1)
        cells = ("-" if share is None else f"{share:.2f}" for share in shares)
        table.add_row(name, f"{m.count:,}", *cells)
    return table


def bundle_table(bundle: Bundle) -> Table:
    """Show what a bundle holds."""
    metadata, record = bundle.metadata, bundle.metadata.training
    directions = "both directions" if metadata.bidirectional else "forward"
    stack = f", {metadata.stack} frames a step" if metadata.stack > 1 else ""
    state = f"{metadata.state_size} floats per sequence"
    rows = {
        "name": f"{metadata.name}, version {metadata.version}",
        "task": metadata.task,
        "input": f"{metadata.input.features} features per step",
        "classes": ", ".join(metadata.classes),
        "network": f"{metadata.cell} {metadata.layers} x {metadata.hidden},"
        f" {directions}{stack}",
        "state": state if metadata.state_size else "none: it needs whole sequences",
        "temperature": f"{metadata.temperature:.3f}",
        "trained on": f"{record.source}, up to {record.longest} steps",
        "created": record.created,
        "files": f"{len(metadata.files)}, SHA-256 verified",
        "digest": bundle.digest,
    }
    for part, metrics in record.parts.items():
        for kind, field in (("error", "error"), ("ECE", "calibration_error")):
            text = f"{getattr(metrics, field):.2f} % of {metrics.count:,}"
            if metrics.intervals is not None:
                text += f" ({_span(getattr(metrics.intervals, field))})"
            rows[f"{part.replace('_', '-')} {kind}"] = text
    if metadata.int8:
        for part, changed in metadata.int8.parts.items():
            rows[f"{part} error, int8"] = f"{changed.error:.2f} % of {changed.count:,}"
    elif metadata.int8_refused:
        rows["int8"] = f"none: {metadata.int8_refused}"
    table = _table(str(bundle.folder), show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def datasets_table(entries: Iterable[BuiltinDataset]) -> Table:
    """Show the built-in data sets."""
    table = _table("built-in data sets")
    for column in ("name", "task", "description", "licence"):
        table.add_column(column)
    for entry in entries:
        table.add_row(entry.name, entry.task, entry.description, entry.licence)
    return table


def print_dataset(dataset: Dataset) -> None:
    """Print tables about a data set, and warnings of likely mistakes.

    Raises:
        ValueError: a class occurs for validation or test only.
    """
    summary = summarise(dataset)
    console.print(_parts_table(dataset, summary))
    console.print(_counts_table(dataset, summary))
    if dataset.vocabulary is not None:
        console.print(_text_table(dataset))
    elif dataset.schema is not None:
        console.print(_records_table(dataset, summary))
    else:
        console.print(_features_table(dataset, summary))
    print_warnings(checks.warnings(dataset))
    checks.refuse_untrained_classes(dataset)


def print_warnings(lines: Iterable[str]) -> None:
    """Print likely mistakes in the data."""
    for line in lines:
        console.print(f"warning: {line}", style="yellow", soft_wrap=True)


def _parts_table(dataset: Dataset, summary: Summary) -> Table:
    """Show the sizes of the parts."""
    table = _table(
        f"{dataset.name}: task {dataset.task}, {len(dataset.classes):,} classes,"
        f" {len(dataset.features):,} features"
    )
    table.add_column("part")
    names = ["sequences", "steps", "shortest", "median", "longest"]
    names += ["groups"] if dataset.groups is not None else []
    for name in names:
        table.add_column(name, justify="right")
    for name, part in summary.parts.items():
        lengths = part.lengths or ("-", "-", "-")
        groups = () if part.groups is None else (part.groups,)
        sizes = (part.sequences, part.steps, *lengths, *groups)
        table.add_row(name, *(n if n == "-" else f"{n:,}" for n in sizes))
    return table


def _counts_table(dataset: Dataset, summary: Summary) -> Table:
    """Show how often the first classes occur in each part."""
    unit = "sequences" if dataset.task == "classify" else "steps"
    table = _table(f"{unit} of each class")
    table.add_column("class")
    for name in PARTS:
        table.add_column(name, justify="right")
    for name, counts in zip(dataset.classes[:MAX_ROWS], summary.counts, strict=False):
        table.add_row(f"{name:.40}", *(f"{count:,}" for count in counts))
    return _more(table, len(dataset.classes))


def _features_table(dataset: Dataset, summary: Summary) -> Table:
    """Show the ranges of the first features."""
    table = _table("features")
    table.add_column("feature")
    for name in ("minimum", "mean", "maximum"):
        table.add_column(name, justify="right")
    ranges = zip(summary.minimum, summary.mean, summary.maximum, strict=True)
    for name, numbers in zip(dataset.features[:MAX_ROWS], ranges, strict=False):
        table.add_row(f"{name:.40}", *(f"{number:.4g}" for number in numbers))
    return _more(table, len(dataset.features))


def _text_table(dataset: Dataset) -> Table:
    """Show how many tokens the vocabulary lists, and how many it does not, by part."""
    assert dataset.vocabulary is not None
    kind = "words" if dataset.vocabulary.kind == "tokens" else "characters"
    count = len(dataset.vocabulary.entries)
    table = _table(f"{kind}: {count:,} in the vocabulary")
    for name in ("part", kind, "not in the vocabulary"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name in PARTS:
        part = dataset.part(name)
        if len(part):
            unknown = 100 * float((part.frames[:, 0] == 0).mean())
            table.add_row(name, f"{len(part.frames):,}", f"{unknown:.2f} %")
    return table


def _records_table(dataset: Dataset, summary: Summary) -> Table:
    """Show the kinds of the first columns, and how often a category is not listed."""
    assert dataset.schema is not None
    table = _table("columns")
    for name in ("column", "kind"):
        table.add_column(name)
    for name in ("categories", "unknown", "minimum", "mean", "maximum"):
        table.add_column(name, justify="right")
    for index, column in enumerate(dataset.schema.fields[:MAX_ROWS]):
        if isinstance(column, CategoryColumn):
            unknown = 100 * float((dataset.frames[:, index] == 0).mean())
            values = [f"{len(column.entries):,}", f"{unknown:.2f} %"]
        else:
            ranges = (summary.minimum, summary.mean, summary.maximum)
            values = ["", "", *(f"{numbers[index]:.4g}" for numbers in ranges)]
        kind = "log(1 + seconds)" if column.kind == "time" else column.kind
        table.add_row(f"{column.name:.40}", kind, *values)
    return _more(table, len(dataset.schema.fields))


def _more(table: Table, count: int) -> Table:
    """Say how many rows a table leaves out."""
    if count > MAX_ROWS:
        table.add_row(f"and {count - MAX_ROWS:,} more")
    return table


def print_published(bundle: Bundle, parts: dict[str, "Metrics"], worst: Path) -> None:
    """Print the metrics of a new bundle, where to find it and the page of its worst
    answers, and why it has no int8 weights."""
    folder = bundle.folder
    console.print(metrics_table("metrics", parts))
    if parts:
        print_baselines(parts)
    console.print(f"bundle: {folder}", soft_wrap=True)
    card = folder / "assets.extra" / "report" / "card.md"
    console.print(f"card:   {card}", soft_wrap=True)
    if worst.exists():
        console.print(f"worst:  {worst}", soft_wrap=True)
    if bundle.metadata.int8_refused:
        reason = f"int8:   none. {bundle.metadata.int8_refused}"
        console.print(reason, soft_wrap=True)
    command = f"unrolled predict FILE --bundle {folder} -o answers.csv"
    console.print(f"answers for a file: {command}", soft_wrap=True)


def print_baselines(parts: dict[str, "Metrics"]) -> None:
    """Print the errors of a network and of its baselines, and warn if it isn't better."""
    part = shown_part(parts)
    metrics, beside = parts[part], parts[part].baselines
    if not beside:
        return
    table = _table(f"beside baselines, {part.replace('_', '-')} part")
    table.add_column("predictor")
    table.add_column("error %", justify="right")
    table.add_column("network minus baseline, points", justify="right")
    error = _with_interval(metrics.error, metrics.intervals.error)
    table.add_row("network", error, "")
    for name, baseline in beside.items():
        error = _with_interval(baseline.error, baseline.interval)
        change = baseline.difference
        gap = f"{change.value:+.2f} ({change.low:+.2f} to {change.high:+.2f})"
        table.add_row(comparison.NAMES[name].removeprefix("the "), error, gap)
    console.print(table)
    if not all(baseline.difference.better for baseline in beside.values()):
        text = f"warning: {comparison.verdict(beside)}"
        console.print(text, style="yellow", soft_wrap=True)


def describe(dataset: Dataset, warned: list[str], *, progress: bool) -> None:
    """Print what the data holds, and warnings; or warn of the same in Python."""
    if progress:
        print_dataset(dataset)
        print_warnings(warned)
        return
    checks.refuse_untrained_classes(dataset)
    for line in [*checks.warnings(dataset), *warned]:
        warnings.warn(line, stacklevel=4)


def print_search(
    summary: str, page: Path, command: str | None, *, bidirectional: bool
) -> None:
    """Print the results of a search.

    Args:
        page: the report.
        command: that trains with the best settings.
        bidirectional: the best network is, and needn't be.
    """
    console.print(summary, soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
    if command:
        console.print(f"train with the best settings: {command}", soft_wrap=True)
    if bidirectional:
        console.print(
            "the best network reads in both directions, so it can't be streamed;"
            " --no-bidirectional searches only those that can",
            soft_wrap=True,
        )


def print_promotion(promotion: "Promotion | None", output: Path) -> None:
    """Print the comparison with the version in service, and which one is served now.

    Args:
        promotion: None if there was no other version.
        output: the folder of bundles that has the new one.
    """
    if promotion is None:
        return
    new, present = f"{promotion.name}@{promotion.version}", promotion.present
    if promotion.metrics:
        before, after = promotion.metrics
        rows = {f"{present}, in service": before, f"{promotion.version}, new": after}
        title = f"on the {promotion.part} part"
        if promotion.left_out:
            title += f", without {promotion.left_out:,} that trained version {present}"
        console.print(metrics_table(title, rows, "version"))
    if promotion.promoted:
        console.print(f"served: {new}; {promotion.reason}", soft_wrap=True)
        return
    option = "" if output in folders.DEFAULTS else f" --bundles {output}"
    console.print(f"not served: {new}; {promotion.reason}", soft_wrap=True)
    console.print(f"serve it: unrolled promote {new}{option}", soft_wrap=True)
