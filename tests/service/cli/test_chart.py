"""The chart of a stream, and the lines and the model that it is drawn from."""

import io
import itertools
import json
import os
from dataclasses import asdict, replace

import httpx
import numpy as np
import pytest
from rich.console import Console

from service.cli import chart
from service.cli.files import ReadError
from service.client import Client, InvalidAnswer, ModelInfo
from service.client.results import Choice, Classification, Labelling
from tests.service.cli.commands import plain

WALKS = ModelInfo(
    name="walks",
    version="1",
    task="classify",
    classes=["run", "sit", "wälk"],
    feature_count=3,
    streamable=True,
)
WORDS = replace(WALKS, name="words", task="label", classes=["a", "b", "c"])


class TestReadLines:
    def test_lines(self):
        """Each line is one message: a frame, several, or an object with several. Empty
        lines are skipped, and the last line needs no line break."""
        text = '[0.5, 1, -2]\n\n  \n[[0.5], [2]]\n{"frames": [[1]]}\n'
        text += '{"frames": [0.5, 2], "label": "x"}\n  [1]\r\n[4]'
        parts = list(chart.read_lines(io.StringIO(text)))
        expected_parts = [[[0.5, 1, -2]], [[0.5], [2]], [[1]], [[0.5, 2]], [[1]], [[4]]]
        for (field, frames_read), right in zip(parts, expected_parts, strict=True):
            assert field == "frames"
            right = np.array(right, np.float32)
            np.testing.assert_array_equal(frames_read, right, strict=True)
        assert list(chart.read_lines(io.StringIO(""))) == []
        lines = [{"text": "on"}, {"tokens": ["Bob"]}, {"records": [{"event": "a"}]}]
        file = io.StringIO("".join(json.dumps(line) + "\n" for line in lines))
        assert [dict([part]) for part in chart.read_lines(file)] == lines

    def test_no_frames(self):
        """A line without frames is named by its number, after the lines before it."""
        for line in (
            "x",
            "[1, 2",
            '["a"]',
            "[[1, 2], [3]]",
            "[[[1]]]",
            '{"x": 1}',
            "[{}]",
            '{"text": "a", "tokens": ["a"]}',
        ):
            parts = chart.read_lines(io.StringIO(f"[1]\n\n{line}\n[2]\n"))
            assert next(parts)[1].tolist() == [[1]]
            with pytest.raises(ReadError, match=r"^line 3: "):
                next(parts)

    def test_overflow(self):
        """A number beyond float32 raises no warning; the service refuses it."""
        ((_, frames_read),) = chart.read_lines(io.StringIO("[1e39]\n"))
        assert np.isinf(frames_read).all()

    def test_does_not_wait(self):
        """A line is yielded as soon as it was written."""
        reading, writing = os.pipe()
        with open(reading) as file, open(writing, "w") as pipe:
            parts = chart.read_lines(file)
            for number in range(3):
                print(f"[{number}]", file=pipe, flush=True)
                assert next(parts)[1].tolist() == [[number]]


class TestChooseModel:
    def test_choice(self, mixed):
        """A name is taken as it is. Without one it is the only streamable model with this
        number of features; if there is none or several, all are listed."""
        with Client(mixed.url) as client:
            assert chart.choose_model(client, None, 3).name == "walks"
            assert chart.choose_model(client, None, 1).name == "made"
            for name in ("walks", "made", "both"):
                assert chart.choose_model(client, name, 7).name == name
            for name, features in ((None, 2), ("nobody", 3)):
                with pytest.raises(ReadError) as caught:
                    chart.choose_model(client, name, features)
                assert str(caught.value) == (
                    f"name a model for {features} features; streamable: made (1), walks (3)"
                )

    def test_none(self):
        """If no model is streamable it says so."""
        models = {"models": [asdict(replace(WALKS, streamable=False))]}
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json=models))
        client = Client(transport=transport)
        with client, pytest.raises(ReadError, match=r"streamable: none$"):
            chart.choose_model(client, None, 3)


def drawn(model, answers, width=80, height=24):
    """The lines of the chart after these answers."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True
    )
    bars = chart.Chart(model, console)
    for answer in answers:
        group = bars.draw(answer)
    with console.capture() as capture:
        console.print(group)
    return plain(capture.get()).splitlines()


def classified(*probabilities, steps=1):
    return Classification("", 0, np.array(probabilities, np.float32), None, steps)


class TestChart:
    def test_bars(self):
        """Each class has a bar and its probability; the likeliest is marked with a dot."""
        lines = drawn(WALKS, [classified(0.25, 0.7, 0.05, steps=12)])
        assert lines[0].split() == ["walks", "step", "12"]
        rows = {line[2:].split()[0]: line for line in lines[1:]}
        assert list(rows) == ["run", "sit", "wälk"]
        for name, percent in (("run", "25.0"), ("sit", "70.0"), ("wälk", "5.0")):
            assert f"{percent} %" in rows[name]
            assert rows[name].startswith("● " if name == "sit" else "  ")
        lengths = {name: line.count("█") for name, line in rows.items()}
        assert lengths == {"run": 10, "sit": 28, "wälk": 2}  # of 40

    def test_width(self):
        """The chart fits the terminal's width."""
        for width, share in itertools.product((30, 80, 200), (0, 1e-9, 0.5, 0.999, 1)):
            lines = drawn(WALKS, [classified(share, 1 - share, 0)], width)
            assert max(map(len, lines)) <= width
            assert len(lines) == 4

    def test_many_classes(self):
        """Of many classes as many of the likeliest are shown as fit, in the model's
        order."""
        names = [f"c{number:03}" for number in range(200)]
        model = replace(WALKS, name="many", classes=names)
        rng = np.random.default_rng(0)
        shares = rng.dirichlet(np.ones(200)).astype(np.float32)
        for height in (5, 24, 100):
            lines = drawn(model, [classified(*shares)], height=height)
            shown = [line[2:].split()[0] for line in lines[1:]]
            assert 3 <= len(shown) <= max(3, height - 2)
            best = np.argsort(-shares)[: len(shown)]
            assert shown == [names[place] for place in sorted(best)]

    def test_labels(self):
        """For a labelling model it shows the last step's bars, and all labels so far,
        letters joined to a word."""
        rows = np.array([[0.6, 0.4, 0], [0.1, 0.2, 0.7]], np.float32)
        first = Labelling(["a", "c"], rows, None, 2)
        second = Labelling(["b"], np.array([[0, 1, 0]], np.float32), None, 3)
        lines = drawn(WORDS, [first])
        assert "70.0 %" in lines[3]
        assert lines[4] == "so far: ac"
        lines = drawn(WORDS, [first, second])
        assert lines[0].split() == ["words", "step", "3"]
        assert lines[2].startswith("● b")
        assert lines[4] == "so far: acb"
        model = replace(WORDS, classes=["noun", "verb", "other"])
        nouns = Labelling(["noun", "other"], rows, None, 2)
        assert drawn(model, [nouns])[4] == "so far: noun other"

    def test_many_labels(self):
        """Of many labels the last ones are shown, on one line."""
        labels = [str(number % 10) for number in range(500)]
        answer = Labelling(labels, np.ones((1, 3), np.float32), None, 500)
        *_, last = drawn(WORDS, [answer])
        assert last.endswith("6789")
        assert len(last) <= 80

    def test_invalid_answer(self):
        """An answer without a probability for each class is refused."""
        top = Classification("run", 1, None, [Choice("run", 1)], 1)
        for answer in (classified(0.5, 0.5), classified(0.2, 0.2, 0.2, 0.4), top):
            with pytest.raises(InvalidAnswer):
                drawn(WALKS, [answer])
