"""Write the model card in Markdown: what a network does, how well, and its limits."""

from collections.abc import Sequence
from typing import Any

from model.bundle.metadata import Metadata, shown_part
from model.evaluation import comparison
from model.evaluation.evaluation import Metrics
from model.export import quantize
from model.report import classes, text_section
from model.report.markdown import count, escape, names, table

UNITS = {"classify": "sequence", "label": "step"}  # what one prediction is for
PARTS = {
    "train": "training",
    "validation": "validation",
    "cross_validation": "cross-validation",
    "test": "test",
}
READS = {
    "last": "the output of the last step",
    "mean": "the mean of the outputs of all steps",
    "last+mean": "the output of the last step, and the mean of all",
}
MAX_FEATURES = 12  # listed by name
PLOTS = {
    "history": "Cost and error by epoch; for the training part averaged during the epoch,"
    " with dropout and augmentation if any",
    "confusion": "Confusion matrix: true classes against predicted ones",
    "reliability": "Reliability diagram: confidence against accuracy, before and after calibration",
    "length": "Accuracy by length of the sequence",
}


def title(part: str) -> str:
    """Return the name of a part in a sentence."""
    name = PARTS[part]
    return name if part == "cross_validation" else f"{name} part"


def text(
    metadata: Metadata,
    parts: dict[str, Metrics],
    before: dict[str, Metrics],
    *,
    shown: str,
) -> str:
    """Return the text of the card.

    Args:
        parts, before: metrics by part, after and before calibration.
        shown: the part that plots, classes and confusions show.
    """
    sections = [
        _head(metadata),
        _network(metadata),
        _data(metadata),
        _results(metadata, parts, before),
        _baselines(metadata, parts[shown], shown),
        _plots(shown),
        classes.measures(parts[shown], title(shown), UNITS[metadata.task]),
        classes.mistakes(
            parts[shown], metadata.classes, title(shown), UNITS[metadata.task]
        ),
        _call(metadata),
        _limits(metadata, parts),
        text_section.section(metadata),
        quantize.section(metadata),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _head(metadata: Metadata) -> str:
    aim = {
        "classify": "predicts the class of the whole sequence",
        "label": "predicts the class of each step",
    }[metadata.task]
    features = metadata.input.names
    if len(features) > MAX_FEATURES:
        features = (*features[:3], "…", features[-1])
    longest = count(metadata.training.longest, "step")
    rows = [
        ("Task", f"`{metadata.task}`: one class for each {UNITS[metadata.task]}"),
        (f"Classes ({len(metadata.classes)})", names(metadata.classes)),
        (f"Features ({metadata.input.features})", names(features)),
        ("Length", f"one step or more; trained on up to {longest}"),
    ]
    return f"""# {escape(metadata.name)}, version {metadata.version}

A recurrent network that reads a sequence, one {text_section.step(metadata)} at each step, and
{aim}.

{table(("What it does", ""), rows)}"""


def _network(metadata: Metadata) -> str:
    layers = f"{metadata.layers} × {metadata.cell.upper()} of {metadata.hidden} units"
    if metadata.cell == "gru":
        order = "after" if metadata.reset_after else "before"
        layers += f", reset gate {order} the matrix product"
    ways, stream = "forwards", "no: it needs whole sequences"
    if metadata.bidirectional:
        ways = "forwards and backwards"
    if metadata.state_size:
        stream = (
            f"yes: {count(metadata.state_size, 'number')} of state for each sequence"
        )
    rows = [
        ("Layers", layers),
        ("Reads", ways),
        *([("Frames a step", f"{metadata.stack}")] * (metadata.stack > 1)),
        *(
            [("The class is read from", READS[metadata.read])]
            * (metadata.task == "classify")
        ),
        ("Dropout in training", f"{metadata.dropout:g} of each layer's outputs"),
        ("Can be streamed", stream),
    ]
    mean, scale = metadata.normalisation.mean, metadata.normalisation.scale
    note = (
        "Send frames in the units of the training data: the network itself first\n"
        "subtracts a mean and multiplies by a scale, which `bundle.json` records."
    )
    if set(mean) == {0.0} and set(scale) == {1.0}:
        note = "Frames enter the network as they are, without normalisation."
    note = text_section.note(metadata) or note
    return f"## Network\n\n{table(('Network', ''), rows)}\n\n{note}"


def _data(metadata: Metadata) -> str:
    training = metadata.training
    epochs = f"{training.epochs}"
    if "cross_validation" not in training.parts:
        epochs += f", the best was number {training.best_epoch}"
    rows = [
        ("Source", escape(training.source)),
        ("SHA-256", f"`{training.data}`"),
        ("Epochs", epochs),
        *_optimisation(training.settings),
        ("Seed", f"{training.seed}"),
        ("Created", escape(training.created)),
    ]
    if training.versions:
        versions = (f"{name} {version}" for name, version in training.versions.items())
        rows.append(("Libraries", names(versions)))
    return f"## Data and provenance\n\n{table(('Training', ''), rows)}"


def _optimisation(settings: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return rows about the settings of the training; none of an older bundle."""
    training, changes = settings.get("training", {}), settings.get("augmentation", {})
    if "optimizer" not in training:
        return []
    length = f"{training['epochs']:,} epochs"
    if training["updates"]:
        length = f"{training['updates']:,} updates"
    rate = f"learning rate {training['learning_rate']:g}"
    if training["warmup"]:
        rate += f" after {training['warmup']:.0%} warm-up".replace("%", " %")
    schedule = "cosine decay" if training["schedule"] == "cosine" else "constant"
    parts = [training["optimizer"], rate, schedule, f"{length} of {training['batch']}"]
    parts += [
        f"{name.replace('_', ' ')} {training[name]}"
        for name in ("class_weights", "label_smoothing")
        if training[name] not in ("none", 0)
    ]
    random = [
        f"{name.replace('_', ' ')} {value}" for name, value in changes.items() if value
    ]
    return [
        ("Optimisation", escape(", ".join(parts))),
        ("Augmentation", escape(", ".join(random) or "none")),
    ]


def _results(
    metadata: Metadata, parts: dict[str, Metrics], before: dict[str, Metrics]
) -> str:
    unit = UNITS[metadata.task]
    rows = [
        (
            PARTS[name],
            f"{part.count:,}",
            *([] if part.groups is None else [f"{part.groups:,}"]),
            f"{round(part.count * part.error / 100):,}",
            f"{part.error:.2f} % ({span(part.intervals.error)})",
            f"{part.macro_f1:.2f} % ({span(part.intervals.macro_f1)})",
            f"{before[name].calibration_error:.2f} → {part.calibration_error:.2f} %"
            f" ({span(part.intervals.calibration_error)})",
            f"{part.calibration_error_by_chance:.2f} %",
        )
        for name, part in parts.items()
    ]
    units = f"{unit.capitalize()}s"
    part = parts[shown_part(parts)]
    head, apart = (
        ["Part", units, "Wrong", "Error", "Macro F1", "ECE", "ECE by chance"],
        "",
    )
    if part.groups is not None:
        head.insert(2, "Groups")
        apart = " The intervals are those between groups."
    if part.groups == 1:
        apart += (
            f" The {title(shown_part(parts))} has one, which says nothing about others."
        )
    return f"""## Results

{table(head, rows)}

Error is the share of wrong {unit}s. Macro F1 is the mean F1 of the classes in the part.
ECE is the expected calibration error: the mean gap between confidence and accuracy, over 15
bins, before and after calibration. In brackets: 95 % intervals; other sequences of the same
kind would give other numbers.{apart}

The ECE of the {title(shown_part(parts))} rests on {count(part.count, "answer")}. On as many, a
perfectly calibrated network with the same confidences would have {part.calibration_error_by_chance:.2f} % (ECE by
chance). The interval subtracts that excess, so it may lie below the ECE.

{_provenance(metadata, parts)}"""


def _provenance(metadata: Metadata, parts: dict[str, Metrics]) -> str:
    """Say which parts chose the network, so that their metrics are too good."""
    if "cross_validation" in parts:
        end = "; the test part influenced nothing." if "test" in parts else "."
        settings = metadata.training.settings.get("training", {})
        folds, times = (settings.get(key) for key in ("folds", "repeats"))
        repeated = f", repeated {times} times" if times != 1 else ""
        text = f" ({folds} folds{repeated})" if folds and times else ""
        groups = parts["cross_validation"].groups
        without = "sequence" if groups is None else "sequence's group"
        return f"""Each answer of the cross-validation{text} is
that of a network which was trained without the {without}; the network of this bundle was trained on all of them. The temperature was fitted
on these answers, so their ECE is a little too good{end}"""
    note = "expect more errors on new data: there was no test part."
    if "test" in parts:
        note = "its metrics are too good; the test part influenced neither."
    return f"""The best epoch and the temperature were chosen on the validation part, so
{note}"""


def _baselines(metadata: Metadata, part: Metrics, shown: str) -> str:
    """Show the errors of simpler predictors, and say plainly if they are as good."""
    if not part.baselines:
        return ""
    macro = f"{part.macro_f1:.2f} %"
    rows = [
        ("Network", f"{part.error:.2f} % ({span(part.intervals.error)})", macro, "")
    ]
    for name, baseline in part.baselines.items():
        change = baseline.difference
        rows.append(
            (
                comparison.NAMES[name].removeprefix("the ").capitalize(),
                f"{baseline.error:.2f} % ({span(baseline.interval)})",
                "–" if baseline.macro_f1 is None else f"{baseline.macro_f1:.2f} %",
                f"{change.value:+.2f} ({change.low:+.2f} to {change.high:+.2f})",
            )
        )
    verdict = comparison.verdict(part.baselines)
    verdict = f"{verdict[0].upper()}{verdict[1:]}."
    if not all(baseline.difference.better for baseline in part.baselines.values()):
        verdict = f"**{verdict}** The simpler predictor may do as well."
    unit, first = UNITS[metadata.task], next(iter(part.baselines.values()))
    reads = {
        "classify": "the mean, the standard deviation, the first and\nthe last frame of each"
        " sequence",
        "label": "each step's frame, the one before and\nthe one after it",
    }[metadata.task]
    if metadata.input.kind != "frames":
        reads = "n-grams of one to four letters"
    head = ("Predictor", "Error", "Macro F1", "Network minus baseline, points")
    return f"""## Baselines, {title(shown)}

{verdict}

{table(head, rows)}

In brackets: 95 % intervals, of the difference for the same {unit}s. Of
{part.count:,} {unit}s the baselines answered {first.count:,}; they learnt from {first.learnt:,}, a random sample
if there are more. Logistic regression reads {reads}."""


def _plots(shown: str) -> str:
    plots = [f"{text}:\n\n![{text}]({name}.png)" for name, text in PLOTS.items()]
    return "\n\n".join([f"## Plots, {title(shown)}", *plots])


def _call(metadata: Metadata) -> str:
    numbers = count(metadata.input.features, "number")
    member = text_section.member(metadata) or f'"sequences": [[[{numbers}], ...], ...]'
    about = text_section.about(metadata) or (
        f"`sequences` is a list of sequences, each a list of frames, each a list of {numbers}."
    )
    answer = {
        "classify": "has a `label`, its `probability`, and the `probabilities` of all"
        " classes.",
        "label": "has a list of `labels` and one of `probabilities`, with an entry for each"
        " step.",
    }[metadata.task]
    return f"""## How to call it

```sh
curl http://localhost:8000/{metadata.task} -H 'content-type: application/json' \\
  -d '{{"model": "{metadata.name}", {member}}}'
```

{about} Sequences may differ in length. Each prediction
{answer}"""


def _limits(metadata: Metadata, parts: dict[str, Metrics]) -> str:
    longest = count(metadata.training.longest, "step")
    fitted = "cross_validation" if "cross_validation" in parts else "validation"
    limits = [
        f"Trained on sequences of up to {longest}. Longer ones are accepted,"
        " but were not evaluated.",
        "It always predicts one of the classes above. For input unlike the training data"
        " the prediction means little.",
        f"Probabilities are calibrated by one temperature ({metadata.temperature:.3g}),"
        f" fitted on the {title(fitted)}: right on average there, but not necessarily for"
        " a single class, a rare input or other data.",
    ]
    if metadata.task == "label" and metadata.state_size:
        limits.append(
            "The class of a step is predicted from this step and earlier ones, so the"
            " first steps of a sequence are the hardest."
        )
    for name, part in parts.items():
        unseen = [key for key, share in part.class_accuracy.items() if share is None]
        if unseen:
            limits.append(f"Not in the {title(name)}: {names(unseen)}.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def span(interval: Sequence[float]) -> str:
    """Return a 95 % interval as text."""
    low, high = interval
    return f"{low:.2f} to {high:.2f}"
