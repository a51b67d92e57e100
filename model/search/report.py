"""Write the results of a search: a page to look at, and the same as JSON.

    report.html    self-contained: the best settings, plots, a table of all trials
    search.json    the numbers

`search.json` holds:

    name, data     of the bundle and its data
    best           number of the best trial
    command        that trains a network with its settings; null for DataFrames
    settings       of the best trial, by their names in `model.config`
    importance     of each setting that was searched, 1 in all; empty for few trials
    trials         an object for each, see `results.Trial`
"""

import base64
import dataclasses
import html
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from model.report import plots
from model.report.palette import MAIN, OTHER, QUIET
from model.search import space
from model.search.results import Search, Trial

STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; }}
h1, h2 {{ line-height: 1.2; }}
img {{ max-width: 100%; }}
pre {{ background: #F4F4F4; padding: .7rem 1rem; white-space: pre-wrap; }}
table {{ border-collapse: collapse; font-size: .9em; }}
th, td {{ text-align: right; padding: .15rem .6rem; border-bottom: 1px solid #E4E4E4; }}
th:last-child, td:last-child {{ text-align: left; }}
.best td {{ font-weight: bold; color: {MAIN}; }}
.pruned td, .failed td {{ color: {QUIET}; }}
"""


def write(search: Search, command: str | None) -> Path:
    """Write both files into the study's folder; return the page.

    Args:
        command: that trains a network with the best settings.
    """
    text = json.dumps(_values(search, command), indent=1, allow_nan=False)
    _replace(search.folder / "search.json", text + "\n")
    page = search.folder / "report.html"
    _replace(page, _page(search, command))
    return page


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _values(search: Search, command: str | None) -> dict[str, Any]:
    config = search.config if search.best else search.space.config
    return {
        "name": config.name,
        "data": config.data.source,
        "best": search.best.number if search.best else None,
        "command": command,
        "settings": config.model_dump(mode="json", exclude_unset=True),
        "importance": search.importance,
        "trials": [dataclasses.asdict(trial) for trial in search.trials],
    }


def _page(search: Search, command: str | None) -> str:
    name = html.escape(search.space.config.name)
    parts = [f"<h1>Search: {name}</h1>", f"<p>{html.escape(summary(search))}</p>"]
    if search.best:
        settings = html.escape(space.describe(search.best.settings))
        parts += ["<h2>Best settings</h2>", f"<p>{settings}</p>"]
        if command:
            parts += [
                "<p>This command trains a network with them:</p>",
                f"<pre>{html.escape(command)}</pre>",
            ]
    for title, text, figure in _figures(search):
        parts += [f"<h2>{title}</h2>", f"<p>{text}</p>", _image(title, figure)]
    parts += ["<h2>All trials</h2>", _table(search)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Search: {name}</title>\n<style>{STYLE}</style>\n{body}\n</html>\n"
    )


def summary(search: Search) -> str:
    """Say in a line how many trials there were, and which is the best."""
    count = len(search.trials)
    text = f"{count} trial{'' if count == 1 else 's'} in {_time(search.seconds)}"
    for state, words in (("pruned", "stopped early"), ("failed", "failed")):
        if number := sum(trial.state == state for trial in search.trials):
            text += f", {number} {words}"
    if best := search.best:
        text += (
            f"; best: trial {best.number}, cost {best.cost:.4f},"
            f" error {best.error:.2f} % of sequences that its networks had not seen"
        )
    return text


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _figures(search: Search) -> list[tuple[str, str, Figure]]:
    """Return the plots with their titles and explanations."""
    complete = [trial for trial in search.trials if trial.state == "complete"]
    if not complete:
        return []
    with matplotlib.style.context(["default", plots.STYLE]):
        figures = [
            (
                "Cost and error",
                "Each point is a complete trial. The best has the lowest cost: with few"
                " sequences many have the same error, and the cost tells more.",
                _cost_and_error(complete, search.best),
            ),
            (
                "Progress",
                "Points are the trials in the order in which they ended; the line is the"
                " lowest cost so far.",
                _progress(search.trials),
            ),
        ]
        if search.importance:
            figures.append(
                (
                    "Importance",
                    "How far the settings of the best quarter of all trials differ from"
                    " those of the rest (PED-ANOVA), 100 % in all.",
                    _importance(search.importance),
                )
            )
    return figures


def _cost_and_error(complete: list[Trial], best: Trial | None) -> Figure:
    figure = Figure(figsize=(7.5, 3.4))
    axes = figure.subplots()
    for trial in complete:
        if trial.error is not None and trial.cost is not None:
            size, colour = (60, OTHER) if trial is best else (20, MAIN)
            axes.scatter(trial.error, trial.cost, size, colour, alpha=0.8, zorder=size)
    axes.annotate(
        f"trial {best.number}" if best else "",
        (best.error, best.cost) if best else (0, 0),
        (8, 8),
        textcoords="offset points",
    )
    axes.set(xlabel="error (%)", ylabel="cost (nats)")
    return figure


def _progress(trials: tuple[Trial, ...]) -> Figure:
    figure = Figure(figsize=(7.5, 3.4))
    axes = figure.subplots()
    seconds, lowest = 0.0, float("inf")
    line: list[tuple[float, float]] = []
    for trial in trials:
        seconds += trial.seconds
        if trial.cost is None:
            continue
        complete = trial.state == "complete"
        axes.scatter(seconds / 60, trial.cost, 16, MAIN if complete else QUIET)
        if complete:
            lowest = min(lowest, trial.cost)
            line.append((seconds / 60, lowest))
    axes.step(*zip(*line, strict=True), where="post", color=OTHER)
    axes.set(xlabel="minutes", ylabel="cost (nats); grey: stopped early")
    return figure


def _importance(importance: dict[str, float]) -> Figure:
    names = sorted(importance, key=lambda name: importance[name])
    figure = Figure(figsize=(7.5, 0.8 + 0.25 * len(names)))
    axes = figure.subplots()
    shares = [100 * importance[name] for name in names]
    bars = axes.barh([name.replace("_", " ") for name in names], shares, color=MAIN)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="%")
    return figure


def _image(title: str, figure: Figure) -> str:
    with matplotlib.style.context(["default", plots.STYLE]), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        data = base64.b64encode(file.getvalue()).decode()
    return f'<p><img alt="{title}" src="data:image/svg+xml;base64,{data}"></p>'


def _table(search: Search) -> str:
    names = ("trial", "cost", "error %", "seconds", "settings")
    rows = ["<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"]
    for trial in search.trials:
        kind = "best" if trial == search.best else trial.state
        text = space.describe(trial.settings)
        note = {"pruned": "stopped early: ", "failed": f"failed ({trial.reason}): "}
        cells = (
            str(trial.number),
            "" if trial.cost is None else f"{trial.cost:.4f}",
            "" if trial.error is None else f"{trial.error:.2f}",
            f"{trial.seconds:.0f}",
            note.get(trial.state, "") + text,
        )
        row = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{kind}">{row}</tr>')
    return "<table>\n" + "\n".join(rows) + "\n</table>"
