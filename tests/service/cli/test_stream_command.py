"""The command `stream`: the files and lines that it sends, and its output."""

import fcntl
import io
import itertools
import json
import logging
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from service import __main__ as main
from service.cli import chart
from service.cli.files import ReadError
from service.client import Client
from service.client import stream as client_stream
from service.client.results import Choice, Classification, InvalidAnswer, Labelling
from service.settings import Settings
from tests.support.bundles import OnnxEngine, random_frames
from tests.support.processes import environment, free_port
from tests.support.scheduler import FakeEngine, expected, frames, write_bundle
from tests.support.servers import ROOT, SECONDS, running, value, wait
from tests.support.streams import KEY, counting, wait_closed

FRAMES = random_frames(np.random.default_rng(0), 5)
FIRST = FRAMES.tolist()
FAST = ("--rate", "10000")
# Background jobs of a shell ignore Ctrl-C; this process does not.
COMMAND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("service", run_name="__main__", alter_sys=True)
"""


def invoke(*arguments, **options):
    """Run the command in this process."""
    command = ["stream", *map(str, arguments)]
    return CliRunner().invoke(main.app, command, **options)


@contextmanager
def started(*arguments, **streams):
    """Run the command as a process, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "stream", *map(str, arguments)],
        cwd=ROOT,
        env=environment(TERM="xterm-256color", PYTHONUNBUFFERED=""),
        **streams,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(SECONDS)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def answers_in(output):
    """The answers in the output, a JSON object per line."""
    return [json.loads(line) for line in output.splitlines()]


def assert_fails(result, message):
    """The command failed with one line on stderr and exit code 1."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


@pytest.fixture
def write(tmp_path):
    """A function that writes a file, and returns its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_text(content, encoding="utf-8")
        return path

    return write


class TestReadLines:
    def test_lines(self):
        """Each line is one message: a frame, several, or an object with several. Empty
        lines are skipped, and the last line needs no line break."""
        text = '[0.5, 1, -2]\n\n  \n[[0.5], [2]]\n{"frames": [[1]]}\n'
        text += '{"frames": [0.5, 2], "label": "x"}\n  [1]\r\n[4]'
        parts = list(chart.read_lines(io.StringIO(text)))
        expected_parts = [[[0.5, 1, -2]], [[0.5], [2]], [[1]], [[0.5, 2]], [[1]], [[4]]]
        for frames_read, right in zip(parts, expected_parts, strict=True):
            right = np.array(right, np.float32)
            np.testing.assert_array_equal(frames_read, right, strict=True)
        assert list(chart.read_lines(io.StringIO(""))) == []

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
        ):
            parts = chart.read_lines(io.StringIO(f"[1]\n\n{line}\n[2]\n"))
            assert next(parts).tolist() == [[1]]
            with pytest.raises(ReadError, match=r"^line 3: "):
                next(parts)

    def test_overflow(self):
        """A number beyond float32 raises no warning; the service refuses it."""
        (frames_read,) = chart.read_lines(io.StringIO("[1e39]\n"))
        assert np.isinf(frames_read).all()

    def test_does_not_wait(self):
        """A line is yielded as soon as it was written."""
        reading, writing = os.pipe()
        with open(reading) as file, open(writing, "w") as pipe:
            parts = chart.read_lines(file)
            for number in range(3):
                print(f"[{number}]", file=pipe, flush=True)
                assert next(parts).tolist() == [[number]]


@pytest.fixture(scope="module")
def mixed(bundles, tmp_path_factory):
    """A service with `both`, `walks` (3 features) and `made` (1 feature)."""
    folder = tmp_path_factory.mktemp("mixed")
    write_bundle(folder / "made" / "1")
    for name in ("both", "walks"):
        (folder / name).symlink_to(bundles / name)

    def load(bundle, settings):
        if bundle.metadata.name == "made":
            return FakeEngine()
        return OnnxEngine(bundle, settings)

    settings = Settings(port=0, bundles=folder, workers=1, state_key=KEY)
    with running(settings, load_engine=load) as server:
        yield server


class TestChooseModel:
    def test_choice(self, mixed, server):
        """A name is taken as it is. Without one it is the only streamable model with this
        number of features; if there is none or several, all are listed."""
        with Client(mixed.url) as client:
            assert chart.choose_model(client, None, 3)["name"] == "walks"
            assert chart.choose_model(client, None, 1)["name"] == "made"
            for name in ("walks", "made", "both"):
                assert chart.choose_model(client, name, 7)["name"] == name
            for name, features in ((None, 2), ("nobody", 3)):
                with pytest.raises(ReadError) as caught:
                    chart.choose_model(client, name, features)
                assert str(caught.value) == (
                    f"name a model for {features} features; streamable: made (1), walks (3)"
                )
        with Client(server) as client, pytest.raises(ReadError) as caught:
            chart.choose_model(client, None, 3)
        assert str(caught.value) == (
            "name a model for 3 features; streamable: tags (3), walks (3)"
        )

    def test_none(self):
        """If no model is streamable it says so."""
        models = {"models": [{**WALKS, "streamable": False, "feature_count": 3}]}
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


def plain(output):
    """The output of a terminal without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def classified(*probabilities, steps=1):
    return Classification("", 0, np.array(probabilities, np.float32), None, steps)


WALKS = {"name": "walks", "task": "classify", "classes": ["run", "sit", "wälk"]}
WORDS = {"name": "words", "task": "label", "classes": ["a", "b", "c"]}


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
        model = {"name": "many", "task": "classify", "classes": names}
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
        model = WORDS | {"classes": ["noun", "verb", "other"]}
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


CSV = "\n".join(f"{a},{b},{c}" for a, b, c in FIRST)
FILES = [
    ("a.json", json.dumps(FIRST), [5]),
    ("a.json", json.dumps({"sequences": [FIRST, FIRST[:2]]}), [5, 2]),
    ("a.csv", "x,y,z\n" + CSV, [5]),
    ("a.npy", FRAMES, [5]),
    ("a.jsonl", "\n".join(json.dumps({"frames": FIRST[:n]}) for n in (3, 1)), [3, 1]),
]


class TestFile:
    @pytest.mark.parametrize("model", ["walks", "tags"])
    def test_formats(self, running_server, write, model):
        """Each sequence of a file is streamed step by step; if the output is no terminal,
        each answer is a JSON line."""
        with Client(running_server.url) as client:
            if model == "tags":
                (whole,) = client.label([FRAMES], model=model).predictions
                members = {"labels", "probabilities", "steps"}
                rows = whole.probabilities[:, None]
            else:
                parts = [FRAMES[:n] for n in range(1, 6)]
                members = {"label", "probability", "probabilities", "steps"}
                predictions = client.classify(parts, model=model).predictions
                rows = np.array([p.probabilities for p in predictions])
        for name, content, lengths in FILES:
            path = write(name, content)
            result = invoke(path, "--url", running_server.url, "--model", model, *FAST)
            assert (result.exit_code, result.stderr) == (0, "")
            answers = answers_in(result.stdout)
            assert [answer["steps"] for answer in answers] == [
                step for length in lengths for step in range(1, length + 1)
            ]
            for answer in answers:
                assert set(answer) == members
                right = rows[answer["steps"] - 1]
                np.testing.assert_allclose(answer["probabilities"], right, atol=1e-5)
        wait_closed(running_server, model)

    def test_ends(self, running_server, write, caplog):
        """Each stream is ended, and not just closed."""
        caplog.set_level(logging.INFO, "service.request")
        path = write("a.json", json.dumps({"sequences": [FIRST, FIRST]}))
        invoke(path, "--url", running_server.url, "--model", "walks", *FAST)

        def ended():
            records = (r for r in caplog.records if hasattr(r, "ended"))
            return [(record.steps, record.ended) for record in records]

        wait(lambda: len(ended()) == 2, "both are logged")
        assert ended() == [(5, "done")] * 2

    def test_chooses_model(self, mixed, running_server, write):
        """The model is that of `--model`, of the request in the file, or the only one
        with this number of features."""
        path = write("a.npy", FRAMES)
        (answer, *_) = answers_in(invoke(path, "--url", mixed.url, *FAST).stdout)
        assert len(answer["probabilities"]) == 4
        path = write("b.npy", frames(3, 7))
        answers = answers_in(invoke(path, "--url", mixed.url, *FAST).stdout)
        rows = [answer["probabilities"] for answer in answers]
        np.testing.assert_array_equal(rows, expected(3, 7))
        path = write("a.json", json.dumps({"sequences": [FIRST], "model": "tags"}))
        command = (path, "--url", running_server.url, *FAST)
        assert "labels" in answers_in(invoke(*command).stdout)[0]
        assert "label" in answers_in(invoke(*command, "--model", "walks").stdout)[0]

    def test_nothing_to_send(self, running_server, write):
        """A sequence without steps shows nothing. A file without sequences is an error."""
        url = running_server.url
        path = write("a.npy", np.zeros((0, 3), np.float32))
        result = invoke(path, "--url", url, "--model", "walks")
        assert (result.exit_code, result.output) == (0, "")
        for name, content in (("a.json", '{"sequences": []}'), ("a.jsonl", "")):
            result = invoke(write(name, content), "--url", url)
            assert_fails(result, "the file holds no sequence")


class TestFails:
    def test_file(self, server, write, tmp_path):
        """A file that is missing or holds no sequence is an error of one line."""
        for name, content, message in (
            ("a.json", "{", "a.json: "),
            ("a.json", "[1, 2]", "a list of steps"),
            ("a.csv", "1,2\nx,y\n", "a.csv: "),
            ("a.npy", "", "a.npy: "),
            ("a.jsonl", '{"frames": [["a"]]}', "a.jsonl: "),
        ):
            assert_fails(invoke(write(name, content), "--url", server), message)
        assert_fails(invoke(tmp_path / "none.json", "--url", server), "none.json")

    def test_model(self, server, write):
        """So is a model that can't be chosen, or can't be streamed."""
        path = write("a.npy", FRAMES)
        choices = "streamable: tags (3), walks (3)"
        for model in ((), ("--model", "nobody")):
            result = invoke(path, "--url", server, *model, *FAST)
            assert_fails(result, f"name a model for 3 features; {choices}")
        result = invoke(path, "--url", server, "--model", "both", *FAST)
        assert_fails(result, "422 The model can't be streamed")

    def test_refused(self, running_server, write):
        """So is a message that the service refuses, after the answers before it."""
        url = running_server.url
        path = write("a.npy", FRAMES[:, :2])
        result = invoke(path, "--url", url, "--model", "walks", *FAST)
        assert_fails(result, "frames[0]: has 2 features, the model takes 3")
        lines = "[1, 2, 3]\n[1, 2]\n[1, 2, 3]\n"
        result = invoke("-", "--url", url, "--model", "walks", input=lines)
        assert_fails(result, "frames[0]: has 2 features")
        assert len(answers_in(result.stdout)) == 1
        wait_closed(running_server, "walks")

    def test_line(self, server):
        """So is a line without frames, named by its number, after the answers before it."""
        lines = "[1, 2, 3]\n\n[4, 5, 6]\nx\n"
        result = invoke("-", "--url", server, "--model", "walks", input=lines)
        assert_fails(result, "line 4: ")
        assert [a["steps"] for a in answers_in(result.stdout)] == [1, 2]

    def test_no_service(self, write):
        """So is a service that can't be reached."""
        path = write("a.npy", FRAMES)
        url = f"http://127.0.0.1:{free_port()}"
        assert_fails(invoke(path, "--url", url), "Connection refused")
        assert_fails(invoke(path, "--url", "nonsense"), "protocol")

    def test_too_long(self, tmp_path, monkeypatch):
        """So is a line that is too long for the service."""
        monkeypatch.setattr(client_stream, "DELAYS", [0.001] * 9)
        lines = json.dumps([[1]] * 1000) + "\n"
        with counting(tmp_path / "made", stream_message_bytes=1000) as service:
            result = invoke("-", "--url", service.url, input=lines)
        assert_fails(result, "")

    def test_rate(self, server, write):
        """An invalid rate is refused with exit code 2."""
        path = write("a.npy", FRAMES)
        for rate in ("0", "-1", "x"):
            result = invoke(path, "--url", server, "--rate", rate)
            assert result.exit_code == 2
            assert "--rate" in result.stderr


class TestStandardInput:
    def test_lines(self, running_server):
        """Each line is a message of one sequence."""
        lines = f"{FIRST[0]}\n\n{FIRST[1:3]}\n" + json.dumps({"frames": FIRST[3:]})
        result = invoke(
            "-", "--url", running_server.url, "--model", "walks", input=lines
        )
        assert result.exit_code == 0, result.output
        answers = answers_in(result.stdout)
        assert [answer["steps"] for answer in answers] == [1, 3, 5]
        with Client(running_server.url) as client:
            parts = [FRAMES[:n] for n in (1, 3, 5)]
            predictions = client.classify(parts, model="walks").predictions
        for answer, right in zip(answers, predictions, strict=True):
            np.testing.assert_allclose(
                answer["probabilities"], right.probabilities, atol=1e-5
            )
        wait_closed(running_server, "walks")

    def test_nothing(self):
        """Empty input is no error, and opens no connection."""
        url = f"http://127.0.0.1:{free_port()}"
        for lines in ("", "\n\n"):
            result = invoke("-", "--url", url, input=lines)
            assert (result.exit_code, result.output) == (0, "")

    def test_interrupted(self, running_server):
        """As a process it answers each line before the next one comes. Ctrl-C ends it
        silently with exit code 130, and closes its stream."""

        def messages():
            name = "unrolled_stream_message_seconds_count"
            return value(running_server.metrics(), name, model="tags")

        before = messages()
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        flags = ("--url", running_server.url, "--model", "tags")
        with started("-", *flags, text=True, **pipes) as process:
            for number, frame in enumerate(FIRST, 1):
                print(frame, file=process.stdin, flush=True)
                assert json.loads(process.stdout.readline())["steps"] == number
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 130
            assert (process.stdout.read(), process.stderr.read()) == ("", "")
        wait_closed(running_server, "tags")
        assert messages() - before == 5


@contextmanager
def on_a_terminal(*arguments, width=80, height=24):
    """The command as a process on a pseudo terminal, and the terminal's other end."""
    terminal, end = pty.openpty()
    try:
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(end, termios.TIOCSWINSZ, size)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), end)
        with started(*arguments, **streams) as process:
            os.close(end)
            yield process, terminal
    finally:
        os.close(terminal)


def read_until(file, done):
    """The text that comes to a terminal, until `done` is true or the terminal closes."""
    text, deadline = "", time.monotonic() + SECONDS
    while not done(text):
        assert time.monotonic() < deadline, text
        if not select.select([file], [], [], 1)[0]:
            continue
        try:
            part = os.read(file, 65536)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            return text
        text += part.decode("utf-8", "replace")
    return text


class TestTerminal:
    def test_bars(self, running_server, write):
        """On a terminal a bar chart is redrawn with each answer, and the last one stays."""
        path = write("a.npy", FRAMES)
        flags = ("--url", running_server.url, "--model", "tags", *FAST)
        with on_a_terminal(path, *flags) as (process, terminal):
            shown = read_until(terminal, lambda text: False)
            assert process.wait(SECONDS) == 0, shown
        with Client(running_server.url) as client:
            (whole,) = client.label([FRAMES], model="tags").predictions
        for step in range(1, 6):
            assert f"tags  step {step}" in plain(shown)
        *_, last = plain(shown).split("tags  step ")
        assert last.startswith("5")
        lines = [line.strip() for line in last.splitlines() if line.strip()]
        for name, share in zip(
            ("noun", "verb", "other"), whole.probabilities[-1], strict=True
        ):
            (row,) = (line for line in lines if re.match(rf"(● )?{name} ", line))
            assert f"{100 * share:.1f} %" in row
            assert row.startswith("●") == (name == whole.labels[-1])
            assert ("█" in row) == (share > 0.05)
        assert lines[-1] == f"so far: {' '.join(whole.labels)}"
        assert "{" not in plain(shown)

    def test_interrupted(self, running_server, write):
        """Ctrl-C ends it with exit code 130, and shows the cursor again."""
        path = write("a.npy", np.zeros((1000, 3), np.float32))
        flags = ("--url", running_server.url, "--model", "walks", "--rate", "1000")
        with on_a_terminal(path, *flags) as (process, terminal):
            read_until(terminal, lambda text: "step 3" in plain(text))
            process.send_signal(signal.SIGINT)
            rest = read_until(terminal, lambda text: False)
            assert process.wait(SECONDS) == 130
        assert "Traceback" not in rest
        assert "\x1b[?25h" in rest
        wait_closed(running_server, "walks")
