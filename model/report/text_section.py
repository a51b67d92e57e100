"""The parts of a card on text and records: vocabulary, new tokens, unfinished sequences."""

import json

from model.bundle.metadata import Ids, Metadata, Records, TextRecord
from model.evaluation.text import QUARTERS


def section(metadata: Metadata) -> str:
    """Return the section, empty for a network of frames."""
    about, text = metadata.input, metadata.training.text
    if isinstance(about, Records) and text is not None:
        return "\n".join(_records(about, text))
    if not isinstance(about, Ids) or text is None:
        return ""
    unit = "words" if about.kind == "tokens" else "characters"
    columns = ", ".join(
        f"{name} ({size:,} × {width})"
        for name, size, width in zip(
            about.names, about.sizes, about.widths, strict=True
        )
    )
    lines = [
        "## Text",
        "",
        f"The network reads {unit}. `vocabulary.json` lists {about.sizes[0] - 1:,} of them,",
        "and so publishes what training contained. Numbers stand for each of the ids of:",
        f"{columns}.",
    ]
    if text.parts:
        lines += [
            "",
            f"| Part | {unit.capitalize()} | New, not in training | Error on those seen |"
            " Error on new ones |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {name.capitalize()} | {part.tokens:,} | {part.new:.2f} % |"
            f" {_percent(part.error_seen)} | {_percent(part.error_new)} |"
            for name, part in text.parts.items()
        ]
    for name, values in text.parts.items():
        if (measured := values.spans) is not None:
            lines += [
                "",
                f"Spans of the {name} part ({measured.spans:,}): precision"
                f" {measured.precision:.2f} %, recall {measured.recall:.2f} %,"
                f" F1 {measured.f1:.2f} %. A span is right if its type and both ends are.",
            ]
    for name, part in text.prefixes.items():
        shares = ", ".join(
            f"{error:.1f} % after {share:.0%}".replace("%", " %").replace("  ", " ")
            for share, error in zip(QUARTERS, part.errors, strict=True)
        )
        lines += [
            "",
            f"Unfinished sequences of the {name} part: the error is {shares} of their steps."
            f" The expected calibration error over all prefixes is"
            f" {part.calibration_error:.2f} %. At the median the answer no longer changes"
            f" after step {part.decided:g} (of {part.length:g}).",
        ]
    return "\n".join(lines)


def step(metadata: Metadata) -> str:
    """Return what a network reads at each step."""
    steps = {"tokens": "word", "characters": "character", "records": "record"}
    return steps.get(metadata.input.kind, "frame of features")


def note(metadata: Metadata) -> str:
    """Return how text and records enter the network; "" for frames."""
    if metadata.input.kind == "frames":
        return ""
    return "`vocabulary.json`, in the bundle, says how the service turns them into numbers."


def member(metadata: Metadata) -> str:
    """Return the member of a request that holds the input; "" for frames."""
    about = metadata.input
    if isinstance(about, Ids):
        return '"texts": ["turn on the light"]'
    if not isinstance(about, Records):
        return ""
    values = {"category": "...", "number": 0.5, "time": "2026-01-31T12:00:00Z"}
    pairs = zip(about.names, about.kinds, strict=True)
    record = {name: values[kind] for name, kind in pairs}
    return f'"records": [[{json.dumps(record)}, ...], ...]'


def about(metadata: Metadata) -> str:
    """Return what this member is; "" for frames."""
    return {
        "tokens": "`texts` is a list of texts. If you have cut them into words, send lists of"
        " words as `tokens`.",
        "characters": "`texts` is a list of texts.",
        "records": "`records` is a list of sequences, each a list of records.",
    }.get(metadata.input.kind, "")


def _records(about: Records, text: TextRecord) -> list[str]:
    """Return the section of a network that reads records."""
    listed = {
        "category": "{:,} listed, {} numbers for each",
        "number": "",
        "time": "logarithm of the seconds since the record before",
    }
    lines = [
        "## Records",
        "",
        "`vocabulary.json` lists the categories, and so publishes what training contained.",
        "",
        "| Column | Kind | |",
        "| --- | --- | --- |",
    ]
    for name, kind, size, width in zip(
        about.names, about.kinds, about.sizes, about.widths, strict=True
    ):
        plain = name.replace("|", "\\|")
        lines.append(f"| {plain} | {kind} | {listed[kind].format(size - 1, width)} |")
    lines += [
        "",
        "| Part | Records | With a category that is not listed | Error on others |"
        " Error on those |",
        "| --- | --- | --- | --- | --- |",
    ]
    return lines + [
        f"| {name.capitalize()} | {part.tokens:,} | {part.new:.2f} % |"
        f" {_percent(part.error_seen)} | {_percent(part.error_new)} |"
        for name, part in text.parts.items()
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"
