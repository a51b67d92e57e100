"""The model card: what a network does, how well, and where that ends; Markdown."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from model.bundle.bundle import Metadata
from model.export import quantize
from model.training.evaluation import Metrics

UNITS = {"classify": "sequence", "label": "step"}  # what one answer is for
PARTS = {"train": "training", "validation": "validation", "test": "test"}
WORST = 5  # classes, and confusions
MAX_FEATURES = 12  # named one by one
PLOTS = {
    "history": "Cost and error by epoch; the training part's while the weights still"
    " change, with dropout and augmentation where there are any",
    "confusion": "True classes against predicted ones",
    "reliability": "Confidence against accuracy, before and after calibration",
    "length": "Accuracy by length of the sequence",
}


def line(name: str) -> str:
    r"""`name` on one line, of signs that can be seen.

    >>> line("two\nlines")
    'two lines'
    """
    seen = "".join(sign if sign.isprintable() else " " for sign in name)
    return " ".join(seen.split()) or "␣"


def text(
    metadata: Metadata,
    parts: dict[str, Metrics],
    before: dict[str, Metrics],
    *,
    shown: str,
) -> str:
    """The card.

    Args:
        parts, before: figures by part, after and before calibration.
        shown: the part that plots, classes and confusions are of.
    """
    sections = [
        _head(metadata),
        _network(metadata),
        _data(metadata),
        _results(metadata, parts, before),
        _plots(shown),
        _mistakes(metadata, parts[shown], shown),
        _call(metadata),
        _limits(metadata, parts),
        quantize.section(metadata),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _head(metadata: Metadata) -> str:
    aim = {
        "classify": "says which class the whole sequence belongs to",
        "label": "says of each step which class it belongs to",
    }[metadata.task]
    features = metadata.input.names
    if len(features) > MAX_FEATURES:
        features = (*features[:3], "…", features[-1])
    longest = _count(metadata.training.longest, "step")
    rows = [
        ("Task", f"`{metadata.task}`: one class a {UNITS[metadata.task]}"),
        (f"Classes ({len(metadata.classes)})", _names(metadata.classes)),
        (f"Features ({metadata.input.features})", _names(features)),
        ("Length", f"one step or more; trained on up to {longest}"),
    ]
    return f"""# {_escape(metadata.name)}, version {metadata.version}

A recurrent network that reads a sequence, one frame of features a step, and
{aim}.

{_table(("What it does", ""), rows)}"""


def _network(metadata: Metadata) -> str:
    layers = f"{metadata.layers} × {metadata.cell.upper()} of {metadata.hidden} units"
    if metadata.cell == "gru":
        order = "after" if metadata.reset_after else "before"
        layers += f", reset gate {order} the matrix product"
    ways, stream = "forwards", "no: it needs whole sequences"
    if metadata.bidirectional:
        ways = "forwards and backwards"
    if metadata.state_size:
        stream = f"yes: {_count(metadata.state_size, 'number')} carry a sequence on"
    rows = [
        ("Layers", layers),
        ("Reads", ways),
        ("Dropout in training", f"{metadata.dropout:g} of each layer's outputs"),
        ("Can be streamed", stream),
    ]
    mean, scale = metadata.normalisation.mean, metadata.normalisation.scale
    note = (
        "Send frames in the units of the training data: the network itself first\n"
        "subtracts a mean and multiplies by a scale, which `bundle.json` records."
    )
    if set(mean) == {0.0} and set(scale) == {1.0}:
        note = "Frames enter the network as they are: nothing is normalised."
    return f"## Network\n\n{_table(('Network', ''), rows)}\n\n{note}"


def _data(metadata: Metadata) -> str:
    training = metadata.training
    rows = [
        ("Source", _escape(training.source)),
        ("SHA-256", f"`{training.data}`"),
        ("Epochs", f"{training.epochs}, the best was number {training.best_epoch}"),
        ("Seed", f"{training.seed}"),
        ("Created", _escape(training.created)),
    ]
    return f"## Data and provenance\n\n{_table(('Training', ''), rows)}"


def _results(
    metadata: Metadata, parts: dict[str, Metrics], before: dict[str, Metrics]
) -> str:
    unit = UNITS[metadata.task]
    rows = [
        (
            PARTS[name],
            f"{part.count:,}",
            f"{part.error:.2f} % ({round(part.count * part.error / 100):,})",
            f"{part.macro_f1:.2f} %",
            f"{before[name].calibration_error:.2f} → {part.calibration_error:.2f} %",
        )
        for name, part in parts.items()
    ]
    head = ("Part", f"{unit.capitalize()}s", "Error", "Macro F1", "Calibration error")
    note = "expect more errors on new data: there was no test part."
    if "test" in parts:
        note = "its figures flatter; the test part had no say in either."
    return f"""## Results

{_table(head, rows)}

Error is the share of {unit}s that are wrong, and in brackets their number. Macro F1 is
the mean of the F1 of each class that the part has. Calibration error is the expected
distance of confidence and accuracy, over 15 bins, before and after calibration. The
validation part chose the best epoch and the temperature, so
{note}"""


def _plots(shown: str) -> str:
    plots = [f"{text}:\n\n![{text}]({name}.png)" for name, text in PLOTS.items()]
    return "\n\n".join([f"## Plots, {shown} part", *plots])


def _mistakes(metadata: Metadata, part: Metrics, shown: str) -> str:
    counts = np.array(part.confusion)
    actual, hits = counts.sum(1), counts.diagonal()
    wrong, names = counts - np.diag(hits), [*map(_escape, metadata.classes)]
    if not wrong.any():
        return f"## Mistakes\n\nNone in the {shown} part."
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
            names[taken],
            f"{wrong[true, taken]:,}",
            f"{shares[true, taken]:.1f} %",
        )
        for true, taken in sorted(
            np.argwhere(wrong).tolist(), key=lambda at: -wrong[*at]
        )
    ][:WORST]
    unit = f"{UNITS[metadata.task].capitalize()}s"
    return f"""## Mistakes

The classes with the most errors for their number, {shown} part:

{_table(("Class", "Error", unit), classes)}

The most frequent confusions:

{_table(("True", "Taken for", unit, "Share of the true class"), confusions)}"""


def _call(metadata: Metadata) -> str:
    numbers = _count(metadata.input.features, "number")
    answer = {
        "classify": "has a `label`, its `probability`, and the `probabilities` of all"
        " classes.",
        "label": "has a list of `labels` and one of `probabilities`, an entry a step.",
    }[metadata.task]
    return f"""## How to call it

```sh
curl http://localhost:8000/{metadata.task} -H 'content-type: application/json' \\
  -d '{{"model": "{metadata.name}", "sequences": [[[{numbers}], ...], ...]}}'
```

`sequences` is a list of sequences, each a list of frames, each a list of {numbers}.
The sequences may differ in length. The prediction of each
{answer}"""


def _limits(metadata: Metadata, parts: dict[str, Metrics]) -> str:
    longest = _count(metadata.training.longest, "step")
    limits = [
        f"Trained on sequences of up to {longest}. Longer ones get an answer too, but"
        " nothing here says how good it is.",
        "It knows the classes above and no other: whatever it is given, it names one"
        " of them. Input unlike the data above gives answers that mean little.",
        f"Probabilities are calibrated by one temperature ({metadata.temperature:.3g}),"
        " fitted on the validation part: right on average there, and possibly not for a"
        " single class, a rare input or other data.",
    ]
    if metadata.task == "label" and metadata.state_size:
        limits.append(
            "A step is judged by itself and those before it, never by later ones, so"
            " the first steps of a sequence are the hardest."
        )
    for name, part in parts.items():
        unseen = [key for key, share in part.class_accuracy.items() if share is None]
        if unseen:
            limits.append(f"Not in the {PARTS[name]} part: {_names(unseen)}.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _names(names: Iterable[str]) -> str:
    return " · ".join(map(_escape, names))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def _escape(name: str) -> str:
    """`name` as Markdown that shows it, in a table too."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", line(name))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
