"""A stream's probabilities as bars on a terminal that move with each answer."""

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.cli.files import ReadError
from service.client import Client, Stream
from service.client.results import InvalidAnswer, Labelling
from service.client.stream import SWITCHING_PROTOCOLS, Answer

LIKELIEST, OTHER, QUIET = "#0072B2", "#767676", "dim"  # as in the reports' plots
MOST_BARS, EDGE = 30, 7  # classes shown; rows for what is around the bars
EIGHTHS = " ▏▎▍▌▋▊▉"


def choose(client: Client, name: str | None, features: int) -> dict[str, Any]:
    """The model that is named, or the only one that such a stream can be for.

    Raises:
        ReadError: there is not exactly one; names those that there are.
    """
    models = {model["name"]: model for model in client.models()}
    if name in models:
        return models[name]
    streamable = [model for model in models.values() if model["streamable"]]
    fitting = [m for m in streamable if m["feature_count"] == features]
    if name is None and len(fitting) == 1:
        return fitting[0]
    told = ", ".join(f"{m['name']} ({m['feature_count']})" for m in streamable)
    raise ReadError(
        f"name a model for {features} features; streamable: {told or 'none'}"
    )


def steps(file: TextIO) -> Iterator[np.ndarray]:
    """Frames [t, F] as lines come: a frame, several, or {"frames": several}.

    Raises:
        ReadError: a line that is none of these; says which.
    """
    for number, line in enumerate(iter(file.readline, ""), 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
            value = value["frames"] if isinstance(value, dict) else value
            with np.errstate(over="ignore"):  # the service refuses what is infinite
                frames = np.atleast_2d(np.array(value, np.float32))
            if frames.ndim != 2:
                raise ValueError("more than steps of numbers")
        except (ValueError, TypeError, KeyError) as error:
            raise ReadError(f"line {number}: {error}") from None
        yield frames


class Chart:
    """Bars for the likeliest classes, in the order of the model."""

    def __init__(self, model: dict[str, Any], console: Console):
        self._model, self._console = model, console
        self._labels: list[str] = []

    def draw(self, answer: Answer) -> Group:
        """What is shown after an answer.

        Raises:
            InvalidAnswer: it has not a probability for each class.
        """
        given = answer.probabilities
        if given is None or given.shape[-1] != len(self._model["classes"]):
            raise InvalidAnswer(
                SWITCHING_PROTOCOLS, "Expected a probability for each class"
            )
        last = np.atleast_2d(given)[-1]
        if isinstance(answer, Labelling):
            self._labels += answer.labels
        rows = max(3, min(MOST_BARS, self._console.height - EDGE))
        shown = np.sort(np.argsort(-last, kind="stable")[:rows])
        table = Table.grid(padding=(0, 1))
        width = max(10, self._console.width - 40)
        best = int(last.argmax())
        for place in shown.tolist():
            style = LIKELIEST if place == best else OTHER
            mark = "●" if place == best else " "  # not by colour alone
            table.add_row(
                Text(f"{mark} {self._model['classes'][place]}", style),
                Text(_bar(float(last[place]), width), style, no_wrap=True),
                Text(f"{100 * last[place]:5.1f} %", style, justify="right"),
            )
        head = Text(f"{self._model['name']}  step {answer.steps}", QUIET)
        gap = "" if max(map(len, self._model["classes"])) == 1 else " "
        said = gap.join(self._labels)[-width:]
        return Group(head, table, *([Text(f"so far: {said}")] if said else []))


def _bar(share: float, width: int) -> str:
    eighths = round(8 * share * width)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip().ljust(width)


def show(
    stream: Stream, model: dict[str, Any], parts: Iterable[np.ndarray], out: TextIO
) -> None:
    """Send frames [t, F] as they come, and show what is answered: bars on a
    terminal, else a JSON object a line.

    Raises:
        RequestError, StreamLost, OSError: as `Stream.send`.
        InvalidAnswer: it can't be drawn.
    """
    console = Console(file=out, highlight=False, markup=False)
    if not console.is_terminal:
        for frames in parts:
            told = asdict(stream.send(frames))
            told = {k: v for k, v in told.items() if v is not None and k != "state"}
            out.write(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY).decode())
            out.write("\n")
            out.flush()
        return
    chart = Chart(model, console)
    with Live(console=console, auto_refresh=False) as live:
        for frames in parts:
            live.update(chart.draw(stream.send(frames)), refresh=True)


def run(
    url: str,
    sequences: list[np.ndarray] | None,
    name: str | None,
    rate: float,
    headers: dict[str, str],
) -> None:
    """Stream sequences step by step, so many a second, or (None) what standard input
    brings.

    Raises:
        ReadError: a line that holds no frames, or no model for them.
        RequestError, StreamLost, OSError: as `Stream.send`.
    """
    with Client(url, headers=headers) as client:
        given: list[Iterator[np.ndarray]]
        if sequences is None:
            lines = steps(sys.stdin)
            first = next(lines, None)
            if first is None:
                return
            given, features = [itertools.chain([first], lines)], first.shape[1]
        elif not sequences:
            raise ReadError("there is no sequence in the file")
        else:
            given = [_paced(frames, rate) for frames in sequences]
            features = sequences[0].shape[1]
        model = choose(client, name, features)
        for parts in given:
            with client.stream(model["name"]) as stream:
                show(stream, model, parts, sys.stdout)
                stream.end()


def _paced(frames: np.ndarray, rate: float) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame[None]
        time.sleep(1 / rate)
