"""The section of a card on text: vocabulary, new tokens, unfinished sequences."""

from model.bundle.metadata import Ids, Metadata
from model.evaluation.text import QUARTERS


def section(metadata: Metadata) -> str:
    """Return the section, empty for a network of frames."""
    about, text = metadata.input, metadata.training.text
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


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"
