"""`python -m service stream`: what it sends of a file or of lines, and what it shows."""

import fcntl
import io
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

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from service import __main__ as main
from service.cli import chart as live
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
# `python -m service`, deaf to no Ctrl-C: a shell's background jobs are.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("service", run_name="__main__", alter_sys=True)
"""


def invoke(*arguments, **options):
    """The command in this process."""
    given = ["stream", *map(str, arguments)]
    return CliRunner().invoke(main.app, given, **options)


@contextmanager
def started(*arguments, **streams):
    """The command as a process, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, "stream", *map(str, arguments)],
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


def answered(output):
    """The answers that were written, a JSON object a line."""
    return [json.loads(line) for line in output.splitlines()]


def assert_fails(result, said):
    """It says why in one line, with exit code 1."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


@pytest.fixture
def write(tmp_path):
    """Writes a file of that name; gives its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_text(content, encoding="utf-8")
        return path

    return write


class TestSteps:
    @pytest.mark.parametrize(
        ("line", "shape"),
        [
            ("[0.5, 1, -2]", [[0.5, 1, -2]]),
            ("[[0.5, 1], [2, 3]]", [[0.5, 1], [2, 3]]),
            ('{"frames": [[0.5], [2]]}', [[0.5], [2]]),
            ('{"frames": [0.5, 2], "label": "x"}', [[0.5, 2]]),
            ("  [1]\r", [[1]]),
        ],
    )
    def test_line(self, line, shape):
        """A line is a step, several, or an object that has several."""
        (made,) = live.steps(io.StringIO(line + "\n"))
        np.testing.assert_array_equal(made, np.array(shape, np.float32), strict=True)

    def test_lines(self):
        """Each line is one message; empty ones are none; the last needs no break."""
        parts = list(live.steps(io.StringIO("[1]\n\n  \n[[2], [3]]\n[4]")))
        assert [part[:, 0].tolist() for part in parts] == [[1], [2, 3], [4]]
        assert list(live.steps(io.StringIO(""))) == []

    @pytest.mark.parametrize(
        "line", ["x", "[1, 2", '["a"]', "[[1, 2], [3]]", "[[[1]]]", '{"x": 1}', "[{}]"]
    )
    def test_no_frames(self, line):
        """A line that holds no frames is named by its number; those before it are
        not lost."""
        made = live.steps(io.StringIO(f"[1]\n\n{line}\n[2]\n"))
        assert next(made).tolist() == [[1]]
        with pytest.raises(ReadError, match=r"^line 3: "):
            next(made)

    def test_too_large_a_number(self):
        """A number beyond float32 makes no noise; the service refuses it."""
        (made,) = live.steps(io.StringIO("[1e39]\n"))
        assert np.isinf(made).all()

    def test_waits_for_nothing(self):
        """A line is there as soon as it was written, whatever comes later."""
        reading, writing = os.pipe()
        with open(reading) as file, open(writing, "w") as other:
            made = live.steps(file)
            for number in range(3):
                print(f"[{number}]", file=other, flush=True)
                assert next(made).tolist() == [[number]]


@pytest.fixture(scope="module")
def mixed(bundles, tmp_path_factory):
    """The service with `both`, `walks` (3 features) and `made` (1 feature)."""
    folder = tmp_path_factory.mktemp("mixed")
    write_bundle(folder / "made" / "1")
    for name in ("both", "walks"):
        (folder / name).symlink_to(bundles / name)

    def load(found, settings):
        if found.metadata.name == "made":
            return FakeEngine()
        return OnnxEngine(found, settings)

    own = Settings(port=0, bundles=folder, workers=1, state_key=KEY)
    with running(own, load_engine=load) as made:
        yield made


class TestChoose:
    @pytest.fixture
    def client(self, mixed):
        with Client(mixed.url) as made:
            yield made

    def test_only_one(self, client):
        """Without a name it is the only one of so many features that can be stepped."""
        assert live.choose(client, None, 3)["name"] == "walks"
        assert live.choose(client, None, 1)["name"] == "made"

    @pytest.mark.parametrize("name", ["walks", "made", "both"])
    def test_named(self, client, name):
        """A name is taken at its word, whatever the features: the service says what
        is wrong."""
        assert live.choose(client, name, 7)["name"] == name

    @pytest.mark.parametrize(("name", "features"), [(None, 2), ("nobody", 3)])
    def test_none(self, client, name, features):
        """Where there is none, those that there are are named, with their
        features."""
        with pytest.raises(ReadError) as caught:
            live.choose(client, name, features)
        assert str(caught.value) == (
            f"name a model for {features} features; streamable: made (1), walks (3)"
        )

    def test_several(self, server):
        """Where there are several, too."""
        with Client(server) as client, pytest.raises(ReadError) as caught:
            live.choose(client, None, 3)
        assert str(caught.value) == (
            "name a model for 3 features; streamable: tags (3), walks (3)"
        )

    def test_nothing_at_all(self, bundles):
        """Where none can be stepped it says so."""
        own = Settings(port=0, bundles=bundles / "both", workers=1)
        with (
            running(own, load_engine=OnnxEngine) as made,
            Client(made.url) as client,
            pytest.raises(ReadError, match=r"streamable: none$"),
        ):
            live.choose(client, None, 3)


def drawn(model, answers, width=80, height=24):
    """The lines of a chart after these answers."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True
    )
    chart = live.Chart(model, console)
    for answer in answers:
        group = chart.draw(answer)
    with console.capture() as capture:
        console.print(group)
    return plain(capture.get()).splitlines()


def plain(output):
    """What a terminal shows, without what steers it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def classified(*probabilities, steps=1):
    return Classification("", 0, np.array(probabilities, np.float32), None, steps)


WALKS = {"name": "walks", "task": "classify", "classes": ["run", "sit", "wälk"]}
WORDS = {"name": "words", "task": "label", "classes": ["a", "b", "c"]}


class TestChart:
    def test_bars(self):
        """Each class has a bar as long as it is likely, with its per cent; the
        likeliest is marked, not by colour alone."""
        lines = drawn(WALKS, [classified(0.25, 0.7, 0.05, steps=12)])
        assert lines[0].split() == ["walks", "step", "12"]
        rows = {line[2:].split()[0]: line for line in lines[1:]}
        assert list(rows) == ["run", "sit", "wälk"]
        for name, percent in (("run", "25.0"), ("sit", "70.0"), ("wälk", "5.0")):
            assert f"{percent} %" in rows[name]
            assert rows[name].startswith("● " if name == "sit" else "  ")
        lengths = {name: line.count("█") for name, line in rows.items()}
        assert lengths == {"run": 10, "sit": 28, "wälk": 2}  # of 40

    @pytest.mark.parametrize("width", [30, 40, 80, 200])
    def test_width(self, width):
        """It fits the terminal's width."""
        for share in (0, 1e-9, 0.5, 0.999, 1):
            lines = drawn(WALKS, [classified(share, 1 - share, 0)], width)
            assert max(map(len, lines)) <= width
            assert len(lines) == 4

    def test_many_classes(self):
        """Of many classes the likeliest are shown, as many as fit, in the order of
        the model."""
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
        """Of a model that labels, the last step's bars are shown, and all labels so
        far; letters as a word."""
        rows = np.array([[0.6, 0.4, 0], [0.1, 0.2, 0.7]], np.float32)
        one = Labelling(["a", "c"], rows, None, 2)
        other = Labelling(["b"], np.array([[0, 1, 0]], np.float32), None, 3)
        lines = drawn(WORDS, [one])
        assert "70.0 %" in lines[3]
        assert lines[4] == "so far: ac"
        lines = drawn(WORDS, [one, other])
        assert lines[0].split() == ["words", "step", "3"]
        assert lines[2].startswith("● b")
        assert lines[4] == "so far: acb"
        model = WORDS | {"classes": ["noun", "verb", "other"]}
        one = Labelling(["noun", "other"], rows, None, 2)
        assert drawn(model, [one])[4] == "so far: noun other"

    def test_long_label(self):
        """Of what has been said so far the end is shown, in one line."""
        labels = [str(number % 10) for number in range(500)]
        answer = Labelling(labels, np.ones((1, 3), np.float32), None, 500)
        *_, last = drawn(WORDS, [answer])
        assert last.endswith("6789")
        assert len(last) <= 80

    def test_other_answer(self):
        """An answer that has not a probability for each class is not the service's."""
        top = Classification("run", 1, None, [Choice("run", 1)], 1)
        for answer in (classified(0.5, 0.5), classified(0.2, 0.2, 0.2, 0.4), top):
            with pytest.raises(InvalidAnswer):
                drawn(WALKS, [answer])


FILES = [
    pytest.param("a.json", json.dumps(FIRST), [5], id="json"),
    pytest.param(
        "a.json", json.dumps({"sequences": [FIRST, FIRST[:2]]}), [5, 2], id="request"
    ),
    pytest.param(
        "a.csv", "\n".join(f"{a},{b},{c}" for a, b, c in FIRST), [5], id="csv"
    ),
    pytest.param(
        "a.csv",
        "x,y,z\n" + "\n".join(f"{a},{b},{c}" for a, b, c in FIRST),
        [5],
        id="head",
    ),
    pytest.param("a.npy", FRAMES, [5], id="npy"),
    pytest.param(
        "a.jsonl",
        "\n".join(json.dumps({"frames": FIRST[:n]}) for n in (3, 1, 5)),
        [3, 1, 5],
        id="jsonl",
    ),
]


class TestFile:
    @pytest.mark.parametrize(("name", "content", "lengths"), FILES)
    @pytest.mark.parametrize("model", ["walks", "tags"])
    def test_file(self, running_server, write, model, name, content, lengths):
        """Each sequence of a file, of whatever kind, is a stream, sent step by step;
        elsewhere than on a terminal each answer is a JSON object on a line."""
        path = write(name, content)
        result = invoke(path, "--url", running_server.url, "--model", model, *FAST)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        told = answered(result.stdout)
        assert [one["steps"] for one in told] == [
            step for length in lengths for step in range(1, length + 1)
        ]
        with Client(running_server.url) as client:
            if model == "tags":
                (whole,) = client.label([FRAMES], model=model).predictions
                names = {"labels", "probabilities", "steps"}
                rows = whole.probabilities[:, None]
            else:
                parts = [FRAMES[:n] for n in range(1, 6)]
                made = client.classify(parts, model=model).predictions
                names = {"label", "probability", "probabilities", "steps"}
                rows = np.array([one.probabilities for one in made])
        for one in told:
            assert set(one) == names
            right = rows[one["steps"] - 1]
            np.testing.assert_allclose(one["probabilities"], right, atol=1e-5)
        wait_closed(running_server, model)

    def test_ends(self, running_server, write, caplog):
        """Each of its streams is ended properly."""
        caplog.set_level(logging.INFO, "service.request")
        path = write("a.json", json.dumps({"sequences": [FIRST, FIRST]}))
        invoke(path, "--url", running_server.url, "--model", "walks", *FAST)

        def ended():
            records = (r for r in caplog.records if hasattr(r, "ended"))
            return [(record.steps, record.ended) for record in records]

        wait(lambda: len(ended()) == 2, "both are logged")
        assert ended() == [(5, "done")] * 2

    def test_chooses(self, mixed, write):
        """Without a model it is the only one for so many features; or the file's own
        word."""
        path = write("a.npy", FRAMES)
        told = answered(invoke(path, "--url", mixed.url, *FAST).stdout)
        assert len(told[0]["probabilities"]) == 4
        path = write("b.npy", frames(3, 7))
        told = answered(invoke(path, "--url", mixed.url, *FAST).stdout)
        rows = [one["probabilities"] for one in told]
        np.testing.assert_array_equal(rows, expected(3, 7))

    def test_named_by_the_file(self, running_server, write):
        """A request's own model counts, unless another is named."""
        path = write("a.json", json.dumps({"sequences": [FIRST], "model": "tags"}))
        url = running_server.url
        told = answered(invoke(path, "--url", url, *FAST).stdout)
        assert "labels" in told[0]
        told = answered(invoke(path, "--url", url, "--model", "walks", *FAST).stdout)
        assert "label" in told[0]

    def test_no_steps(self, running_server, write):
        """A sequence without steps shows nothing, and is no error."""
        path = write("a.npy", np.zeros((0, 3), np.float32))
        result = invoke(path, "--url", running_server.url, "--model", "walks")
        assert (result.exit_code, result.output) == (0, "")

    @pytest.mark.parametrize(
        ("name", "content"), [("a.json", '{"sequences": []}'), ("a.jsonl", "")]
    )
    def test_no_sequence(self, running_server, write, name, content):
        """A file without any sequence is told in one line, or shows nothing."""
        result = invoke(write(name, content), "--url", running_server.url)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.exit_code in (0, 1)
        assert len(result.output.splitlines()) <= 1


class TestFails:
    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.json", "{", "a.json: "),
            ("a.json", "[1, 2]", "a list of steps"),
            ("a.csv", "1,2\nx,y\n", "a.csv: "),
            ("a.npy", "", "a.npy: "),
            ("a.jsonl", '{"frames": [["a"]]}', "a.jsonl: "),
        ],
    )
    def test_file(self, server, write, name, content, said):
        """A file that holds no sequence is told in one line, with exit code 1."""
        assert_fails(invoke(write(name, content), "--url", server), said)

    def test_no_file(self, server, tmp_path):
        """So is one that isn't there."""
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
        """So is what the service refuses, after the answers before it."""
        url = running_server.url
        path = write("a.npy", FRAMES[:, :2])
        result = invoke(path, "--url", url, "--model", "walks", *FAST)
        assert_fails(result, "frames[0]: has 2 features, the model takes 3")
        lines = "[1, 2, 3]\n[1, 2]\n[1, 2, 3]\n"
        result = invoke("-", "--url", url, "--model", "walks", input=lines)
        assert_fails(result, "frames[0]: has 2 features")
        assert len(answered(result.stdout)) == 1
        wait_closed(running_server, "walks")

    def test_line(self, server):
        """So is a line that holds no frames, by its number, after the answers of
        those before it."""
        lines = "[1, 2, 3]\n\n[4, 5, 6]\nx\n"
        result = invoke("-", "--url", server, "--model", "walks", input=lines)
        assert_fails(result, "line 4: ")
        assert [one["steps"] for one in answered(result.stdout)] == [1, 2]

    @pytest.mark.parametrize(
        ("url", "said"),
        [("http://127.0.0.1:{}", "Connection refused"), ("nonsense", "protocol")],
    )
    def test_nobody_there(self, write, url, said):
        """So is a service that isn't there."""
        path = write("a.npy", FRAMES)
        assert_fails(invoke(path, "--url", url.format(free_port())), said)

    def test_too_long(self, tmp_path, monkeypatch):
        """So is a line that is too long for the service."""
        monkeypatch.setattr(client_stream, "DELAYS", [0.001] * 9)
        lines = json.dumps([[1]] * 1000) + "\n"
        with counting(tmp_path / "made", stream_message_bytes=1000) as service:
            result = invoke("-", "--url", service.url, input=lines)
        assert_fails(result, "")

    @pytest.mark.parametrize("rate", ["0", "-1", "x"])
    def test_rate(self, server, write, rate):
        """A rate that is none is refused with exit code 2."""
        result = invoke(write("a.npy", FRAMES), "--url", server, "--rate", rate)
        assert result.exit_code == 2
        assert "--rate" in result.stderr


class TestStandardInput:
    def test_lines(self, running_server):
        """Lines are sent as they stand, a message each, as one sequence."""
        lines = f"{FIRST[0]}\n\n{FIRST[1:3]}\n" + json.dumps({"frames": FIRST[3:]})
        result = invoke(
            "-", "--url", running_server.url, "--model", "walks", input=lines
        )
        assert result.exit_code == 0, result.output
        told = answered(result.stdout)
        assert [one["steps"] for one in told] == [1, 3, 5]
        with Client(running_server.url) as client:
            parts = [FRAMES[:n] for n in (1, 3, 5)]
            made = client.classify(parts, model="walks").predictions
        for one, right in zip(told, made, strict=True):
            np.testing.assert_allclose(
                one["probabilities"], right.probabilities, atol=1e-5
            )
        wait_closed(running_server, "walks")

    @pytest.mark.parametrize("lines", ["", "\n\n"])
    def test_nothing(self, server, lines):
        """Nothing is no error, and asks no service."""
        result = invoke("-", "--url", f"http://127.0.0.1:{free_port()}", input=lines)
        assert (result.exit_code, result.output) == (0, "")

    def test_interrupted(self, running_server):
        """As a process it answers each line before the next is there; Ctrl-C ends it
        with exit code 130 and without a word, and its stream."""
        before = value(
            running_server.metrics(),
            "unrolled_stream_message_seconds_count",
            model="tags",
        )
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
        after = value(
            running_server.metrics(),
            "unrolled_stream_message_seconds_count",
            model="tags",
        )
        assert after - before == 5


@contextmanager
def shown_on_a_terminal(*arguments, width=80, height=24):
    """The command as a process on a pseudo terminal, and what shows it."""
    ours, theirs = pty.openpty()
    try:
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        with started(*arguments, **streams) as process:
            os.close(theirs)
            yield process, ours
    finally:
        os.close(ours)


def read_until(file, done):
    """What comes to a terminal until that is in it, or until its end."""
    text, end = "", time.monotonic() + SECONDS
    while not done(text):
        assert time.monotonic() < end, text
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
        """On a terminal the probabilities are bars, drawn anew with each answer: the
        last frame stays, with labels and per cent, and what was said so far."""
        path = write("a.npy", FRAMES)
        flags = ("--url", running_server.url, "--model", "tags", *FAST)
        with shown_on_a_terminal(path, *flags) as (process, ours):
            shown = read_until(ours, lambda text: False)
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
        """Ctrl-C there ends it with exit code 130, and its cursor is back again."""
        path = write("a.npy", np.zeros((1000, 3), np.float32))
        flags = ("--url", running_server.url, "--model", "walks", "--rate", "1000")
        with shown_on_a_terminal(path, *flags) as (process, ours):
            read_until(ours, lambda text: "step 3" in plain(text))
            process.send_signal(signal.SIGINT)
            rest = read_until(ours, lambda text: False)
            assert process.wait(SECONDS) == 130
        assert "Traceback" not in rest
        assert "\x1b[?25h" in rest
        wait_closed(running_server, "walks")
