"""The plots of the report, in colours that colour-blind readers can tell apart."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm, LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from model.evaluation import calibration, intervals
from model.evaluation.evaluation import Metrics
from model.report import markdown
from model.report.palette import ABSENT, MAIN, OTHER, QUIET
from model.training.runs import Epoch

RIGHT = LinearSegmentedColormap.from_list("right", ["#E8F2F9", MAIN, "#00263D"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#FFFFFF", OTHER, "#5C2800"])
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
MAX_NUMBERS = 20  # classes up to which cells hold a number
MAX_DECIMALS = 12  # classes up to which the number has a decimal
LOW_SHARES = 0.4  # exponent of the scale: a share of 1 % has a sixth of the full colour
MAX_NAME = 16  # characters on an axis
MIN_BINS, MIN_COUNT = 3, 5  # of a reliability curve, and of predictions in each bin
LOG_FROM = 20  # predictions in a bin: fewer show one number on a log scale
_CELL = {"fontsize": 7.5, "ha": "center", "va": "center"}


def history(run: list[Epoch], best: int) -> Figure:
    """Cost and error by epoch; with a validation part a line marks the best epoch."""
    figure = Figure(figsize=(7.5, 3.2))
    epochs = [entry.epoch for entry in run]
    dot = "." if len(run) < 60 else ""
    units = {"cost": "nats", "error": "%"}
    for axes, kind in zip(figure.subplots(1, 2), units, strict=True):
        train = [getattr(entry, kind) for entry in run]
        valid = [getattr(entry, f"validation_{kind}") for entry in run]
        lines = axes.plot(
            epochs, train, "--", marker=dot, color=OTHER, label="training"
        )
        if any(value is not None for value in valid):
            mark = axes.axvline(best, color=QUIET, ls=":", label=f"best: epoch {best}")
            lines += axes.plot(
                epochs, valid, marker=dot, color=MAIN, label="validation"
            )
            lines.append(mark)
        values = np.array([train, valid], float)  # None becomes NaN
        top = values[np.isfinite(values)].max(initial=0)
        axes.set(xlim=(0.5, max(epochs, default=1) + 0.5), ylim=(0, 1.06 * top or 1))
        axes.set(xlabel="epoch", ylabel=f"{kind} ({units[kind]})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(handles=lines, loc="outside lower center", ncols=3)
    return figure


def confusion(figures: Metrics, classes: tuple[str, ...], title: str) -> Figure:
    """Confusion matrix in shares of the true class. Right answers have a colour of their
    own, whose scale tells 98 % from 100 %; the scale of wrong ones shows 0.1 %."""
    counts = np.array(figures.confusion, float)
    actual = counts.sum(1, keepdims=True)
    shares = np.where(actual, 100 * counts / np.maximum(actual, 1), np.nan)
    size = len(classes)
    inches = 0.36 if size <= MAX_NUMBERS else 0.24  # of a cell, where that is possible
    side = min(max(inches * size + 2.4, 4.6), 9)
    figure = Figure(figsize=(side + 0.9, side))
    parts = figure.subplot_mosaic("mr;mw", width_ratios=[24, 1])
    axes = parts["m"]
    axes.set_facecolor(ABSENT)  # where a class has no share
    diagonal = np.eye(size, dtype=bool)
    rightness = np.where(diagonal, shares, np.nan)
    wrongness = np.where(diagonal, np.nan, shares)
    images = {
        "right": axes.imshow(rightness, RIGHT, _HighShares(), interpolation="none"),
        "wrong": axes.imshow(
            wrongness, WRONG, PowerNorm(LOW_SHARES, 0, 100), interpolation="none"
        ),
    }
    _label_classes(axes, classes, side)
    grey = "; grey: none in this part" if not actual.all() else ""
    axes.set(xlabel="predicted class", ylabel=f"true class{grey}", title=title)
    axes.spines[["top", "right"]].set_visible(True)
    ticks = {"right": [0, 50, 80, 90, 95, 99, 100], "wrong": [0, 1, 5, 20, 50, 100]}
    for name, image in images.items():
        bar = figure.colorbar(image, cax=parts[name[0]], ticks=ticks[name])
        bar.set_label(f"{name} (% of the true class)")
        bar.minorticks_off()
    if size <= MAX_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            image = images["right" if row == column else "wrong"]
            share = shares[row, column]
            text = _percent(share, 1 if size <= MAX_DECIMALS else 0)
            axes.text(column, row, text, _CELL, color=_readable(image, share))
    return figure


class _HighShares(FuncNorm):
    """A scale from 0 to 100 % with most room near 100 %: by the root of the rest."""

    def __init__(self) -> None:
        functions = (_near_all, lambda share: 100 * (1 - (1 - np.asarray(share)) ** 2))
        super().__init__(functions, 0, 100)


def _near_all(share: Any) -> Any:
    return 1 - np.sqrt(np.clip(1 - np.asarray(share) / 100, 0, 1))


def _readable(image: AxesImage, share: float) -> str:
    """Return the colour of text in a cell: the one with more contrast."""
    red, green, blue, _ = image.to_rgba(np.array([share]))[0]
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else "black"


def _label_classes(axes: Axes, classes: tuple[str, ...], side: float) -> None:
    size = len(classes)
    step = -(-size // MAX_TICKS)
    shown = range(0, size, step)
    ticks = [_short(classes[index]) for index in shown]
    room = 14 * (side - 1.8) * step / size  # characters for each label
    rotation = 0 if max(map(len, ticks)) < room else 90
    axes.set_xticks(shown, ticks, rotation=rotation, fontsize=8)
    axes.set_yticks(shown, ticks, fontsize=8)


def reliability(before: Metrics, after: Metrics, title: str, unit: str) -> Figure:
    """Reliability diagram. Bins of few predictions have no point, and few points make no
    curve: then the plot says so."""
    figure = Figure(figsize=(5.2, 6))
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curve.plot([0, 100], [0, 100], color=QUIET, lw=0.8, ls=":", label="perfect")
    most, largest = 0, 1.0  # points of a curve, predictions in a bin
    for place, (name, figures, colour, line) in enumerate(
        (("before", before, OTHER, "s--"), ("after", after, MAIN, "o-"))
    ):
        bins = figures.reliability
        points = [entry for entry in bins if entry["count"] >= MIN_COUNT]
        most = max(most, len(points))
        label = f"{name} calibration: ECE {figures.calibration_error:.2f} %"
        if len(points) < MIN_BINS:
            points, label = [], f"{label}; too few for a curve"
        confidence = [100 * entry["confidence"] for entry in points]
        accuracy = [100 * entry["accuracy"] for entry in points]
        drawn = curve.plot(confidence, accuracy, line, color=colour, label=label)
        drawn[0].set(linewidth=1, markersize=4, clip_on=False, in_layout=False)
        ends = [intervals.wilson(e["accuracy"], e["count"]) for e in points]
        low, high = 100 * np.array(ends).reshape(-1, 2).T
        curve.vlines(confidence, low, high, color=colour, lw=3, alpha=0.25)
        wide = 100 / calibration.BINS
        left = [100 * entry["from"] + wide * (0.1 + 0.4 * place) for entry in bins]
        counts = [entry["count"] for entry in bins]
        largest = max(largest, *counts)
        bars.bar(left, counts, 0.4 * wide, align="edge", color=colour)
    curve.set(ylabel="accuracy (%)", ylim=(0, 100), xlim=(0, 100))
    curve.set_title(f"{title}; bars: 95 % intervals" if most >= MIN_BINS else title)
    if most < MIN_BINS:
        reason = (
            f"Too few {unit}s for a curve.\nIt needs {MIN_BINS} bins of confidence with"
            f"\nat least {MIN_COUNT} {unit}s in each; there {_are(most)}."
        )
        box = {"fc": "white", "ec": QUIET, "lw": 0.8, "boxstyle": "round,pad=0.6"}
        text = curve.text(50, 50, reason, ha="center", va="center", bbox=box)
        text.set_in_layout(False)
    figure.legend(loc="outside lower center")
    scale = "log" if largest >= LOG_FROM else "linear"
    bars.set(xlabel="confidence (%)", ylabel=f"{unit}s{' (log)' * (scale == 'log')}")
    bars.set(yscale=scale, ylim=(0.7 * (scale == "log"), 1.3 * largest))
    bars.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if scale == "linear":
        bars.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    bars.minorticks_off()
    return figure


def _are(number: int) -> str:
    return "is 1" if number == 1 else f"are {number or 'none'}"


def length(figures: Metrics, title: str, unit: str) -> Figure:
    """Accuracy by length of the sequence."""
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
    name = markdown.line(name)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _percent(share: float, decimals: int) -> str:
    """Format a percentage; 0 and 100 only for exact values."""
    least = 10.0**-decimals
    if 0 < share < least / 2:
        return f"<{least:.{decimals}f}"
    if 100 - least / 2 <= share < 100:
        return f">{100 - least:.{decimals}f}"
    return f"{share:.{decimals}f}".removesuffix(".0")
