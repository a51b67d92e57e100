"""Write the report of a network: four plots, the metrics, and the model card.

    history.png      cost and error by epoch
    confusion.png    confusion matrix
    reliability.png  reliability diagram, before and after calibration
    length.png       accuracy by length of the sequence
    metrics.json     the numbers in the plots
    card.md          the model card

The plots show the test part or, without one, the validation part.
`metrics.json` is strict JSON; numbers that aren't finite are null:

    name, version, task, classes, temperature    as in `bundle.json`
    unit                   what one prediction is for: "sequence" or "step"
    history                an object for each epoch, see `runs.Epoch`
    parts.PART             one of train, validation, test; each is optional
      count                predictions
      error, accuracy, macro_f1                  percent
      calibration_error    ECE {before, after} calibration, percent
      class_accuracy       percent by class; null if the part has no such class
      by_length            groups: shortest, longest (steps), count, accuracy (percent)
      reliability          {before, after}: bins of confidence, without empty ones:
                           from, to, confidence, accuracy (0 to 1), count
      confusion            counts, [true][predicted], in the order of classes
"""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from PIL import Image

from model.bundle.bundle import Metadata
from model.report import card
from model.report.palette import ABSENT, MAIN, OTHER, QUIET
from model.training import calibration
from model.training.evaluation import Metrics
from model.training.runs import Epoch

SHARES = LinearSegmentedColormap.from_list(
    "shares", ["#FFFFFF", MAIN, "#00263D"]
).with_extremes(bad=ABSENT)
STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a class's name may contain $
}
MAX_TICKS = 40  # class names on an axis
MAX_NUMBERS = 12  # classes up to which cells hold a number
MAX_NAME = 16  # characters on an axis


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a training run."""

    history: list[Epoch]
    parts: dict[
        str, Metrics
    ]  # after calibration; validation, and train and test if any
    before: dict[str, Metrics]  # the same parts with temperature 1


def write(folder: Path, metadata: Metadata, report: Report) -> None:
    """Write the six files into an existing folder."""
    part = "test" if "test" in report.parts else "validation"
    after, before = report.parts[part], report.before[part]
    unit = card.UNITS[metadata.task]
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        # Characters of class names that the font lacks become boxes.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figures = {
            "history": _history(report.history, metadata.training.best_epoch),
            "confusion": _confusion(after, metadata.classes, f"{part} part, {unit}s"),
            "reliability": _reliability(before, after, f"{part} part", unit),
            "length": _length(after, f"{part} part", unit),
        }
        for name, figure in figures.items():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            # 256 colours make the file a third as large.
            image.quantize(256, dither=Image.Dither.NONE).save(folder / f"{name}.png")
    text = json.dumps(_metrics(metadata, report))
    strict = json.loads(text, parse_constant=lambda name: None)
    (folder / "metrics.json").write_text(json.dumps(strict) + "\n", encoding="utf-8")
    text = card.text(metadata, report.parts, report.before, shown=part)
    (folder / "card.md").write_text(text, encoding="utf-8")


def _metrics(metadata: Metadata, report: Report) -> dict[str, Any]:
    parts = {name: dataclasses.asdict(part) for name, part in report.parts.items()}
    for name, before in report.before.items():
        for key in ("calibration_error", "reliability"):
            parts[name][key] = {
                "before": getattr(before, key),
                "after": parts[name][key],
            }
    return {
        "name": metadata.name,
        "version": metadata.version,
        "task": metadata.task,
        "unit": card.UNITS[metadata.task],
        "classes": metadata.classes,
        "temperature": metadata.temperature,
        "history": [dataclasses.asdict(epoch) for epoch in report.history],
        "parts": parts,
    }


def _history(history: list[Epoch], best: int) -> Figure:
    figure = Figure(figsize=(7.5, 3.2))
    epochs = [entry.epoch for entry in history]
    dot = "." if len(history) < 60 else ""
    units = {"cost": "nats", "error": "%"}
    for axes, kind in zip(figure.subplots(1, 2), units, strict=True):
        train = [getattr(entry, kind) for entry in history]
        valid = [getattr(entry, f"validation_{kind}") for entry in history]
        mark = axes.axvline(best, color=QUIET, ls=":", label=f"best: epoch {best}")
        lines = [
            *axes.plot(epochs, train, "--", marker=dot, color=OTHER, label="training"),
            *axes.plot(epochs, valid, marker=dot, color=MAIN, label="validation"),
        ]
        values = np.array([train, valid])
        top = values[np.isfinite(values)].max(initial=0)
        axes.set(xlim=(0.5, max(epochs, default=1) + 0.5), ylim=(0, 1.06 * top or 1))
        axes.set(xlabel="epoch", ylabel=f"{kind} ({units[kind]})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(handles=[*lines, mark], loc="outside lower center", ncols=3)
    return figure


def _confusion(figures: Metrics, classes: tuple[str, ...], title: str) -> Figure:
    counts = np.array(figures.confusion, float)
    actual = counts.sum(1, keepdims=True)
    shares = np.where(actual, 100 * counts / np.maximum(actual, 1), np.nan)
    size = len(classes)
    side = min(max(0.24 * size + 2.6, 4.6), 9)
    figure = Figure(figsize=(side + 0.6, side))
    axes = figure.subplots()
    # The power scale makes rare confusions visible.
    image = axes.imshow(shares, SHARES, PowerNorm(0.35, 0, 100), interpolation="none")
    step = -(-size // MAX_TICKS)
    shown = range(0, size, step)
    ticks = [_short(classes[index]) for index in shown]
    room = 14 * (side - 1.5) * step / size  # characters for each label
    rotation = 0 if max(map(len, ticks)) < room else 90
    axes.set_xticks(shown, ticks, rotation=rotation, fontsize=8)
    axes.set_yticks(shown, ticks, fontsize=8)
    grey = "; grey: none in this part" if not actual.all() else ""
    axes.set(xlabel="predicted class", ylabel=f"true class{grey}", title=title)
    axes.spines[["top", "right"]].set_visible(True)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("share of the true class (%)")
    middle = {"fontsize": 8, "ha": "center", "va": "center"}
    if size <= MAX_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            share = shares[row, column]
            colour = "white" if share > 12 else "black"
            axes.text(column, row, _percent(share), middle, color=colour)
    return figure


def _reliability(before: Metrics, after: Metrics, title: str, unit: str) -> Figure:
    figure = Figure(figsize=(5.2, 6))
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curve.plot([0, 100], [0, 100], color=QUIET, lw=0.8, ls=":", label="perfect")
    for place, (name, figures, colour, line) in enumerate(
        (("before", before, OTHER, "s--"), ("after", after, MAIN, "o-"))
    ):
        bins = figures.reliability
        label = f"{name} calibration: ECE {figures.calibration_error:.2f} %"
        confidence = [100 * entry["confidence"] for entry in bins]
        accuracy = [100 * entry["accuracy"] for entry in bins]
        drawn = curve.plot(confidence, accuracy, line, color=colour, label=label)
        drawn[0].set(linewidth=0.8, markersize=4, clip_on=False)
        wide = 100 / calibration.BINS
        left = [100 * entry["from"] + wide * (0.1 + 0.4 * place) for entry in bins]
        counts = [entry["count"] for entry in bins]
        bars.bar(left, counts, 0.4 * wide, align="edge", color=colour)
    curve.set(ylabel="accuracy (%)", ylim=(0, 100), xlim=(0, 100), title=title)
    figure.legend(loc="outside lower center")
    bars.set(xlabel="confidence (%)", ylabel=f"{unit}s (log)", yscale="log")
    bars.set_ylim(0.7)
    bars.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    bars.minorticks_off()
    return figure


def _length(figures: Metrics, title: str, unit: str) -> Figure:
    groups = figures.by_length
    accuracy = [group["accuracy"] for group in groups]
    figure = Figure(figsize=(7.5, 3.4))
    axes = figure.subplots()
    axes.plot(accuracy, "o-", color=MAIN)
    axes.axhline(figures.accuracy, color=QUIET, lw=0.8, ls=":", zorder=0)
    for place, value in enumerate(accuracy):
        around = accuracy[max(place - 1, 0) : place + 2]
        # In a valley the number goes below the line.
        offset = 8 if 2 * value >= min(around) + max(around) else -15
        text = axes.annotate(
            f"{value:.1f}", (place, value), (0, offset), textcoords="offset points"
        )
        text.set(ha="center", bbox={"fc": "white", "ec": "none", "pad": 0.5})
    ticks = [f"{_span(group)}\n{group['count']:,}" for group in groups]
    axes.set_xticks(range(len(groups)), ticks, fontsize=8)
    room = max(0.2 * (max(accuracy) - min(accuracy)), 1)
    low, high = min(accuracy) - room, max(accuracy) + room
    axes.set(xlim=(-0.6, len(groups) - 0.4), ylim=(low, high), ylabel="accuracy (%)")
    axes.set_yticks([y for y in axes.get_yticks() if max(low, 0) <= y <= 100])
    axes.set_ylim(low, high)
    axes.set_title(f"{title}; dotted: all lengths together")
    axes.set_xlabel(f"length of the sequence (steps); below it, number of {unit}s")
    return figure


def _span(group: dict[str, float]) -> str:
    shortest, longest = group["shortest"], group["longest"]
    return f"{shortest}" if shortest == longest else f"{shortest}–{longest}"


def _short(name: str) -> str:
    name = card.line(name)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _percent(share: float) -> str:
    """Format with one decimal; 0 and 100 only for exact values."""
    if 0 < share < 0.05:
        return "<0.1"
    if 99.95 <= share < 100:
        return ">99.9"
    return f"{share:.1f}".removesuffix(".0")
