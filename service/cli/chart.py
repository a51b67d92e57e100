"""The command `stream`: a live bar chart of a stream's probabilities, or JSON lines."""

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.cli import files, model_choice
from service.cli.files import ReadError
from service.client import Client, InvalidAnswer, ModelInfo, Stream
from service.client.results import Labelling
from service.client.stream_session import SWITCHING_PROTOCOLS, Answer

LIKELIEST, OTHER, QUIET = "#0072B2", "#767676", "dim"  # colours of the reports' plots
MAX_BARS = 30
OTHER_ROWS = 7  # of the terminal, around the bars
EIGHTHS = " ▏▎▍▌▋▊▉"


INPUTS = {"frames": "frames", "text": "characters", "tokens": "tokens"}  # of models


def choose_model(
    client: Client, name: str | None, features: int, reads: str = "frames"
) -> ModelInfo:
    """The named model, or the only streamable one with such an input.

    Args:
        features: of frames; other inputs have any number.

    Raises:
        ReadError: there is no such model, or several; lists the streamable ones.
    """
    models = {model.name: model for model in client.models()}
    if name in models:
        return models[name]
    streamable = [model for model in models.values() if model.streamable]
    fitting = [
        m
        for m in streamable
        if m.input == reads and (m.feature_count == features or reads != "frames")
    ]
    if name is None and len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{m.name} ({m.feature_count})" for m in streamable)
    kind = f"{features} features" if reads == "frames" else reads
    raise ReadError(f"name a model for {kind}; streamable: {known or 'none'}")


def read_lines(file: TextIO) -> Iterator[tuple[str, Any]]:
    """Yield the field of a stream's message for each line, and its value: frames [t, F] of
    a frame or a list of frames, or an object with frames, text, tokens or records.

    Raises:
        ReadError: a line is none of these; names the line.
    """
    for number, line in enumerate(iter(file.readline, ""), 1):
        if not line.strip():
            continue
        try:
            field, value = "frames", orjson.loads(line)
            if isinstance(value, dict):
                fields = [name for name in (*INPUTS, "records") if name in value]
                if len(fields) != 1:
                    raise ValueError("expected one of frames, text, tokens, records")
                (field,) = fields
                value = value[field]
            if field != "frames":
                yield field, value
                continue
            with np.errstate(over="ignore"):  # the service refuses infinite values
                frames = np.atleast_2d(np.array(value, np.float32))
            if frames.ndim != 2:
                raise ValueError("expected a frame, or a list of frames")
        except (ValueError, TypeError, KeyError) as error:
            raise ReadError(f"line {number}: {error}") from None
        yield "frames", frames


class Chart:
    """A bar for each of the likeliest classes, in the model's order."""

    def __init__(self, model: ModelInfo, console: Console):
        self._model, self._console = model, console
        self._labels: list[str] = []

    def draw(self, answer: Answer) -> Group:
        """The chart after an answer.

        Raises:
            InvalidAnswer: the answer does not have a probability for each class.
        """
        probabilities, classes = answer.probabilities, self._model.classes
        if probabilities is None or probabilities.shape[-1] != len(classes):
            raise InvalidAnswer(
                SWITCHING_PROTOCOLS, "Expected a probability for each class"
            )
        last = np.atleast_2d(probabilities)[-1]
        if isinstance(answer, Labelling):
            self._labels += answer.labels
        rows = max(3, min(MAX_BARS, self._console.height - OTHER_ROWS))
        shown = np.sort(np.argsort(-last, kind="stable")[:rows])
        table = Table.grid(padding=(0, 1))
        width = max(10, self._console.width - 40)
        best = int(last.argmax())
        for place in shown.tolist():
            style = LIKELIEST if place == best else OTHER
            mark = "●" if place == best else " "  # not marked by colour alone
            table.add_row(
                Text(f"{mark} {classes[place]}", style),
                Text(_bar(float(last[place]), width), style, no_wrap=True),
                Text(f"{100 * last[place]:5.1f} %", style, justify="right"),
            )
        head = Text(f"{self._model.name}  step {answer.steps}", QUIET)
        gap = "" if max(map(len, classes)) == 1 else " "
        labels = gap.join(self._labels)[-width:]
        return Group(head, table, *([Text(f"so far: {labels}")] if labels else []))


def _bar(probability: float, width: int) -> str:
    eighths = round(8 * probability * width)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip().ljust(width)


def show(stream: Stream, model: ModelInfo, parts: Iterable[Any], out: TextIO) -> None:
    """Send each part, frames [t, F] or records, and show the answer: a chart on a
    terminal, else a JSON line.

    Raises:
        ClientError: see `Stream.send`.
    """
    console = Console(file=out, highlight=False, markup=False)
    if not console.is_terminal:
        for frames in parts:
            members = asdict(stream.send(frames)).items()
            answer = {k: v for k, v in members if v is not None and k != "state"}
            out.write(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY).decode())
            out.write("\n")
            out.flush()
        return
    chart = Chart(model, console)
    with Live(console=console, auto_refresh=False) as live:
        for frames in parts:
            live.update(chart.draw(stream.send(frames)), refresh=True)


def run(
    url: str,
    file: Path | None,
    name: str | None,
    rate: float,
    headers: dict[str, str],
) -> None:
    """Stream sequences step by step at a rate per second; None: lines of standard input.

    Raises:
        ValueError: a line holds no frames, or no model takes them.
        ClientError: see `Stream.send`.
    """
    with Client(url, headers=headers) as client:
        streams: list[Iterator[Any]]
        if file is None:
            lines = read_lines(sys.stdin)
            first = next(lines, None)
            if first is None:
                return
            field, value = first
            features = value.shape[1] if field == "frames" else 0
            model = choose_model(client, name, features, INPUTS.get(field, field))
            streams = [(value for _, value in itertools.chain([first], lines))]
        else:
            model, sequences = _read(client, file, name)
            streams = [_paced(frames, rate) for frames in sequences]
        for parts in streams:
            with client.stream(model.name) as stream:
                show(stream, model, parts, sys.stdout)
                stream.end()


def _read(
    client: Client, file: Path, name: str | None
) -> tuple[ModelInfo, Sequence[Any]]:
    """The sequences of a file, frames or records, and the model for them."""
    if files.is_table(file) or file.suffix.lower() == ".txt":
        candidates = model_choice.of_service(client, name, lambda m: m.streamable)
        chosen, data = model_choice.read(file, candidates)
        for line in model_choice.notes(chosen, data):
            print(line, file=sys.stderr)
        model = client.model(chosen.reference)
        return replace(model, name=chosen.reference), data.inputs
    sequences, file_name, _ = files.read(file)
    if not sequences:
        raise ReadError("the file holds no sequence")
    if not isinstance(sequences[0], np.ndarray):
        raise ReadError("the file holds no sequences of numbers")
    features = sequences[0].shape[1]
    return choose_model(client, name or file_name, features), sequences


def _paced(frames: Any, rate: float) -> Iterator[Any]:
    for index in range(len(frames)):
        yield frames[index : index + 1]
        time.sleep(1 / rate)
