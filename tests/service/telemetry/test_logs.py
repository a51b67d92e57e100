"""The log's formats and its writing: no failure of the log stops the service."""

import errno
import fcntl
import io
import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
from contextlib import closing, contextmanager

import httpx
import pytest

from service.telemetry import logs
from tests.support.processes import Started, environment, free_port
from tests.support.servers import ROOT, SECONDS, wait

# Settings of `logging` itself that `setup` changes.
PROCESS_SETTINGS = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing")


def record(message, **extras):
    level = {"levelno": logging.ERROR, "levelname": "ERROR"}
    result = logging.makeLogRecord({"msg": message, "name": "x", **level})
    vars(result).update(extras)
    return result


class TestFormats:
    def test_not_json(self):
        """Values that JSON does not have become text, and no record is lost."""
        unusual = record(
            "bundle \udcff is broken", path="\udcff", big=2**70, what=object
        )
        entry = json.loads(logs.JsonFormatter().format(unusual))
        assert "is broken" in entry["message"]
        assert {"path", "big", "what"} <= set(entry)

    def test_exception(self):
        """A traceback is one field of the record."""
        try:
            raise ValueError("two\nlines")
        except ValueError:
            failed = record("failed", exc_info=sys.exc_info())
        line = logs.JsonFormatter().format(failed)
        assert "\n" not in line
        assert json.loads(line)["exception"].endswith("ValueError: two\nlines")
        assert "ValueError: two\nlines" in logs.TextFormatter().format(failed)

    @pytest.mark.parametrize(
        ("form", "terminal", "is_json"),
        [
            ("auto", False, True),
            ("auto", True, False),
            ("json", True, True),
            ("text", False, False),
        ],
    )
    def test_setup(self, monkeypatch, form, terminal, is_json):
        """`auto` is text on a terminal and JSON elsewhere; each can be chosen."""
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        before = {name: getattr(logging, name) for name in PROCESS_SETTINGS}
        file = io.StringIO()
        file.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdout", file)
        root.handlers[:] = []
        try:
            logs.setup(form, "warning")
            logging.getLogger("service").info("not this")
            logging.getLogger("service").warning("hello", extra={"model": "walks"})
            logging.getLogger().handlers[0].flush()
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            for name, value in before.items():
                setattr(logging, name, value)
        (line,) = file.getvalue().splitlines()
        if is_json:
            assert json.loads(line)["model"] == "walks"
        else:
            assert re.fullmatch(r"\d\d:\d\d:\d\d warning hello  model=walks", line)


@contextmanager
def serving_into(descriptor, bundles, folder):
    """A `serve` process that is ready, with a descriptor as its standard output."""
    port, errors = free_port(), folder / "errors"
    flags = ("--port", str(port), "--bundles", str(bundles / "walks"), "--workers", "1")
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", *flags],
            cwd=ROOT,
            env=environment(),
            stdout=descriptor,
            stderr=file,
        )
    try:
        service = Started(process, f"http://127.0.0.1:{port}", errors)
        wait(lambda: service.answers("/readyz"), "it is ready")
        yield service
    finally:
        process.kill()
        process.wait(SECONDS)


def ask_often(service, count=300):
    """Send so many requests that their lines fill any pipe; all are answered."""
    with httpx.Client(base_url=service.url, timeout=10) as http:
        for _ in range(count):
            body = {"sequences": [[[1, 2, 3]]]}
            assert http.post("/classify", json=body).status_code == 200


def small_pipe():
    """The ends of a pipe with a small buffer."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, logs.BLOCK)
    return open(reading, "rb", buffering=0), open(writing, "w")


@pytest.mark.slow
class TestOutput:
    """The log's file can't be written."""

    @pytest.mark.parametrize("output", ["unread", "closed", "full"])
    def test_unwritable(self, bundles, tmp_path, output):
        """With an unread pipe, a closed one, or a full disk every request is answered,
        and the process ends on SIGTERM."""
        reading, writing = small_pipe()
        if output == "closed":
            reading.close()
        elif output == "full":
            writing.close()
            writing = open("/dev/full", "w")  # noqa: SIM115
        with (
            closing(reading),
            writing,
            serving_into(writing, bundles, tmp_path) as service,
        ):
            ask_often(service)
            assert service.answers("/livez")
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(SECONDS / 4) == 0
        for word in ("Traceback", "Fatal", "Logging error"):
            assert word not in service.output.read_text()

    def test_recovers(self, bundles, tmp_path):
        """Lines logged while a file can't grow are written once it can, each whole."""
        log = tmp_path / "log"
        with log.open("w") as file, serving_into(file, bundles, tmp_path) as service:
            number, kind = service.process.pid, resource.RLIMIT_FSIZE
            soft, hard = resource.prlimit(number, kind)
            full = log.stat().st_size + 100
            resource.prlimit(number, kind, (full, hard))
            ask_often(service)
            wait(lambda: log.stat().st_size == full, "a line is cut off")
            resource.prlimit(number, kind, (soft, hard))
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(SECONDS) == 0
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert [record.get("route") for record in records].count("/classify") == 300


class TestBufferedHandler:
    @pytest.fixture
    def blocked(self):
        """A handler of a full pipe, and the pipe's other end."""
        reading, writing = small_pipe()
        os.set_blocking(writing.fileno(), False)  # writing fails instead of blocking
        os.write(writing.fileno(), b" " * (logs.BLOCK - 1) + b"\n")
        handler = logs.BufferedHandler(writing, limit=20_000)
        handler.setFormatter(logs.JsonFormatter())
        with reading, writing:
            yield handler, reading
            handler.close()

    def read(self, reading, last):
        """The records up to a message."""
        text = b""
        while f'"{last}"'.encode() not in text or not text.endswith(b"\n"):
            text += reading.read(65536)
        return [json.loads(line) for line in text.decode().splitlines() if line.strip()]

    def test_dropped(self, blocked):
        """Lines beyond the limit are dropped; the others keep their order, and a record
        in the place of the missing ones counts them."""
        handler, reading = blocked
        for number in range(300):
            handler.handle(record(number))
        handler.handle(record("long", text="x" * 30_000))
        *written, dropped = self.read(reading, "log lines were dropped")
        messages = [entry["message"] for entry in written]
        assert messages == [str(n) for n in range(len(written))]
        assert len(written) > 100
        assert dropped["lines"] == 301 - len(written)
        assert dropped["level"] == "warning"
        # Lines longer than a pipe's atomic writes.
        handler.handle(record("long", text="x" * 15_000))
        handler.handle(record("last"))
        assert [r["message"] for r in self.read(reading, "last")] == ["long", "last"]

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), []),
            (ValueError("I/O operation on closed file"), []),
            (MemoryError(), ["the log's writer thread failed; a new one will start"]),
        ],
        ids=["full", "closed", "unexpected"],
    )
    def test_write_error(self, tmp_path, monkeypatch, error, expected):
        """A failing write loses no line; if the thread ends, a record says so, and a new
        one starts."""
        write, failures = os.write, [error] * 3

        def failing(descriptor, data):
            if descriptor == file.fileno() and failures:
                raise failures.pop()
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", failing)
        with (tmp_path / "log").open("w") as file:
            handler = logs.BufferedHandler(file)
            handler.setFormatter(logs.JsonFormatter())
            for number in range(3):  # each record starts a thread that has ended
                handler.handle(record(number))
                wait(lambda left=3 - number: len(failures) < left, "it is tried")
                wait(
                    lambda: not expected or handler._writer is None, "the thread ended"
                )
            handler.handle(record(3))
            handler.close()
        lines = (tmp_path / "log").read_text().splitlines()
        messages = [json.loads(line)["message"] for line in lines]
        assert [m for m in messages if m.isdigit()] == ["0", "1", "2", "3"]
        assert [m for m in messages if not m.isdigit()] == expected * 3

    def test_unformattable(self, capsys):
        """A record that can't be formatted is reported in the log, and nowhere else."""
        file = io.StringIO()
        handler = logs.BufferedHandler(file)
        handler.setFormatter(logs.JsonFormatter())
        handler.handle(record("%d steps", args=("no number",)))
        handler.close()
        entry = json.loads(file.getvalue())
        assert entry["message"] == "a log record could not be formatted"
        assert "TypeError" in entry["exception"]
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(
        "child",
        [
            "if not os.fork():\n log.info('child')\n logging.shutdown()\n os._exit(0)",
            # Like a worker, with the module imported by the fork server.
            "import multiprocessing\n"
            "context = multiprocessing.get_context('forkserver')\n"
            "context.set_forkserver_preload(['service.telemetry.logs'])\n"
            "code = 'from service.telemetry import logs; import logging;'\n"
            'code += \'logs.setup("json", "info"); logging.info("child")\'\n'
            "child = context.Process(target=exec, args=(code,))\n"
            "child.start(); child.join()",
        ],
        ids=["fork", "worker"],
    )
    def test_processes(self, child):
        """Each process writes all its own lines, once."""
        script = (
            "import logging, os\nfrom service.telemetry import logs\n"
            "logs.setup('json', 'info')\nlog = logging.getLogger()\n"
            f"log.info('before')\n{child}\nlog.info('after')\n"
        )
        result = self.python(script, stdout=subprocess.PIPE)
        text = result.communicate(timeout=SECONDS)[0]
        messages = [json.loads(line)["message"] for line in text.splitlines()]
        assert sorted(messages) == ["after", "before", "child"]

    def test_shutdown_in_a_signal_handler(self):
        """Shutting down in a signal handler, which may interrupt logging, does not block,
        even if nobody reads."""
        script = (
            "import logging, os, signal\nfrom service.telemetry import logs\n"
            "def stop(*_):\n logging.shutdown()\n os._exit(7)\n"
            "signal.signal(signal.SIGTERM, stop)\nlogs.setup('json', 'info')\n"
            "while True:\n logging.info('again')\n"
        )
        reading, writing = small_pipe()
        with reading, writing:
            process = self.python(script, stdout=writing)
            try:
                wait(lambda: not select.select([], [writing], [], 0)[1], "it is full")
                process.send_signal(signal.SIGTERM)
                assert process.wait(SECONDS / 4) == 7
            finally:
                process.kill()
                process.wait(SECONDS)

    def python(self, script, **options):
        command = [sys.executable, "-W", "ignore", "-c", script]
        return subprocess.Popen(command, cwd=ROOT, **options)
