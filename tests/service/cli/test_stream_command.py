"""The command `stream`: the files and lines that it sends, its output and failures."""

import fcntl
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

from service.client import Client
from service.client import stream as client_stream
from tests.service.cli.commands import assert_fails, invoke, plain
from tests.support.bundles import random_frames
from tests.support.processes import environment, free_port
from tests.support.scheduler import expected, frames
from tests.support.servers import ROOT, SECONDS, value, wait
from tests.support.streams import counting, wait_closed
from tests.support.tables import make_table, sequences_of, shuffle

FRAMES = random_frames(np.random.default_rng(0), 5)
FIRST = FRAMES.tolist()
FAST = ("--rate", "10000")
# Background jobs of a shell ignore Ctrl-C; this process does not.
COMMAND = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("service", run_name="__main__", alter_sys=True)
"""


def stream(*arguments, **options):
    """Run the command in this process."""
    return invoke("stream", *arguments, **options)


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
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def answers_in(output):
    """The answers in the output, a JSON object per line."""
    return [json.loads(line) for line in output.splitlines()]


FILES = [
    ("a.json", json.dumps({"sequences": [FIRST, FIRST[:2]]}), [5, 2]),
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
            result = stream(path, "--url", running_server.url, "--model", model, *FAST)
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
        stream(path, "--url", running_server.url, "--model", "walks", *FAST)

        def ended():
            records = (r for r in caplog.records if hasattr(r, "ended"))
            return [(record.steps, record.ended) for record in records]

        wait(lambda: len(ended()) == 2, "both are logged")
        assert ended() == [(5, "done")] * 2

    def test_chooses_model(self, mixed, running_server, write):
        """The model is that of `--model`, of the request in the file, or the only one
        with this number of features."""
        path = write("a.npy", FRAMES)
        (answer, *_) = answers_in(stream(path, "--url", mixed.url, *FAST).stdout)
        assert len(answer["probabilities"]) == 4
        path = write("b.npy", frames(3, 7))
        answers = answers_in(stream(path, "--url", mixed.url, *FAST).stdout)
        rows = [answer["probabilities"] for answer in answers]
        np.testing.assert_array_equal(rows, expected(3, 7))
        path = write("a.json", json.dumps({"sequences": [FIRST], "model": "tags"}))
        command = (path, "--url", running_server.url, *FAST)
        assert "labels" in answers_in(stream(*command).stdout)[0]
        assert "label" in answers_in(stream(*command, "--model", "walks").stdout)[0]

    def test_tables(self, service, tmp_path):
        """Of a table the columns are found by the model's features, and each sequence is
        streamed on its own."""
        table = make_table(lengths=(3, 2))
        path = tmp_path / "a.csv"
        shuffle(table, 1).to_csv(path, index=False)
        result = stream(path, "--url", service, "--model", "machines", *FAST)
        assert (result.exit_code, result.stderr) == (0, "")
        answers = answers_in(result.stdout)
        assert sorted(answer["steps"] for answer in answers) == [1, 1, 2, 2, 3]
        with Client(service) as client:
            right = client.classify([*sequences_of(table).values()], model="machines")
        lasts = [
            a
            for a, b in zip(answers, answers[1:] + [{"steps": 1}], strict=True)
            if b["steps"] == 1
        ]
        rows = sorted(last["probabilities"] for last in lasts)
        expected = sorted(p.probabilities.tolist() for p in right.predictions)
        np.testing.assert_allclose(rows, expected, atol=1e-6)
        assert stream(path, "--url", service, *FAST).stdout == result.stdout

    def test_nothing_to_send(self, running_server, write):
        """A sequence without steps shows nothing. A file without sequences is an error."""
        url = running_server.url
        path = write("a.npy", np.zeros((0, 3), np.float32))
        result = stream(path, "--url", url, "--model", "walks")
        assert (result.exit_code, result.output) == (0, "")
        for name, content, message in (
            ("a.json", '{"sequences": []}', "the file holds no sequence"),
            ("a.jsonl", "", "no sequences in the file"),
        ):
            assert_fails(stream(write(name, content), "--url", url), message)


class TestFails:
    def test_file(self, server, write, tmp_path):
        """A file that is missing or holds no sequence is an error of one line."""
        for name, content, message in (
            ("a.json", "{", "a.json: "),
            ("a.jsonl", '{"frames": [["a"]]}', "a.jsonl, line 1: "),
        ):
            assert_fails(stream(write(name, content), "--url", server), message)
        assert_fails(stream(tmp_path / "none.json", "--url", server), "none.json")

    def test_model(self, server, write):
        """So is a model that can't be chosen, or can't be streamed."""
        path = write("a.npy", FRAMES)
        choices = "streamable: tags (3), walks (3)"
        for model in ((), ("--model", "nobody")):
            result = stream(path, "--url", server, *model, *FAST)
            assert_fails(result, f"name a model for 3 features; {choices}")
        result = stream(path, "--url", server, "--model", "both", *FAST)
        assert_fails(result, "422 The model can't be streamed")

    def test_refused(self, running_server, write):
        """So is a message that the service refuses, after the answers before it."""
        url = running_server.url
        path = write("a.npy", FRAMES[:, :2])
        result = stream(path, "--url", url, "--model", "walks", *FAST)
        assert_fails(result, "frames[0]: has 2 features, the model takes 3")
        lines = "[1, 2, 3]\n[1, 2]\n[1, 2, 3]\n"
        result = stream("-", "--url", url, "--model", "walks", input=lines)
        assert_fails(result, "frames[0]: has 2 features")
        assert len(answers_in(result.stdout)) == 1
        wait_closed(running_server, "walks")

    def test_line(self, server):
        """So is a line without frames, named by its number, after the answers before it."""
        lines = "[1, 2, 3]\n\n[4, 5, 6]\nx\n"
        result = stream("-", "--url", server, "--model", "walks", input=lines)
        assert_fails(result, "line 4: ")
        assert [a["steps"] for a in answers_in(result.stdout)] == [1, 2]

    def test_no_service(self, write):
        """So is a service that can't be reached."""
        path = write("a.npy", FRAMES)
        url = f"http://127.0.0.1:{free_port()}"
        assert_fails(stream(path, "--url", url), "Connection refused")
        assert_fails(stream(path, "--url", "nonsense"), "http://HOST:PORT")

    def test_too_long(self, tmp_path, monkeypatch):
        """So is a line that is too long for the service."""
        monkeypatch.setattr(client_stream, "DELAYS", [0.001] * 9)
        lines = json.dumps([[1]] * 1000) + "\n"
        with counting(tmp_path / "made", stream_message_bytes=1000) as service:
            result = stream("-", "--url", service.url, input=lines)
        assert_fails(result)

    def test_rate(self, server, write):
        """An invalid rate is refused with exit code 2."""
        path = write("a.npy", FRAMES)
        for rate in ("0", "-1", "x"):
            result = stream(path, "--url", server, "--rate", rate)
            assert result.exit_code == 2
            assert "--rate" in result.stderr


class TestStandardInput:
    def test_lines(self, running_server):
        """Each line is a message of one sequence."""
        lines = f"{FIRST[0]}\n\n{FIRST[1:3]}\n" + json.dumps({"frames": FIRST[3:]})
        result = stream(
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
            result = stream("-", "--url", url, input=lines)
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
