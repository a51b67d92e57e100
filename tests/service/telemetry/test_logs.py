"""Logs: one record for each request, nothing that a client sent, and no failure of the
log stops the service."""

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
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import httpx
import pytest

from service.settings import Settings
from service.telemetry import logs
from tests.support.bundles import OnnxEngine
from tests.support.processes import Started, environment, free_port
from tests.support.servers import ROOT, SECONDS, running, send, value, wait

SECRET, NUMBER = "s3cr3t", 73910.4242
# Settings of `logging` itself that `setup` changes.
PROCESS_SETTINGS = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing")
PAYLOADS = [
    '\n{"level":"error","message":"s3cr3t"}',
    '\r{"level":"error","message":"s3cr3t"}',
    "\r\n\r\ns3cr3t",
    "\x1b[2J\x1b[31ms3cr3t",
    "\u2028s3cr3t",
    "\u2029s3cr3t",
    "\x85s3cr3t",
    "\x0bs3cr3t\x0c",
    "\0s3cr3t",
    '","level":"error","s3cr3t":"',
    "\\n\\u000as3cr3t",
    "%0a%0ds3cr3t",
    "%(message)s {s3cr3t} %s %d",
    "${jndi:ldap://s3cr3t}",
    "<script>s3cr3t</script>",
    "\u202es3cr3t",
    SECRET * 1707,
]


class LogFile(io.StringIO):
    """A log file in memory."""

    def records(self):
        """Its records; each line must be one."""
        text = self.getvalue()
        assert text == "" or text.endswith("\n")
        records = [json.loads(line) for line in text.split("\n")[:-1]]
        assert all(isinstance(record, dict) for record in records)
        assert len(text.splitlines()) == len(records)
        return records

    def requests(self):
        return [record for record in self.records() if record["message"] == "request"]


@pytest.fixture
def lines():
    """The log of the service, with its own formatter, at level info."""
    file = LogFile()
    handler = logging.StreamHandler(file)
    handler.setFormatter(logs.JsonFormatter())
    # Not the root logger: the tests' client logs too.
    loggers = [logging.getLogger(name) for name in ("service", "uvicorn", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield file
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


class GatedEngine(OnnxEngine):
    """An engine that waits for an event, and may fail, once it serves."""

    gate: threading.Event
    entered: threading.Semaphore
    error: Exception | None = None

    def step(self, frames, lengths, state):
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if self.error is not None:
            raise self.error
        return super().step(frames, lengths, state)


@pytest.fixture(scope="module")
def service(bundles):
    GatedEngine.gate, GatedEngine.entered = threading.Event(), threading.Semaphore(0)
    GatedEngine.gate.set()
    # One worker, which a single request can occupy.
    settings = Settings(port=0, bundles=bundles, workers=1)
    with running(settings, load_engine=GatedEngine) as running_service:
        yield running_service


@pytest.fixture
def engine():
    """The engine's class, which is reset afterwards."""
    while GatedEngine.entered.acquire(blocking=False):
        pass
    yield GatedEngine
    GatedEngine.error = None
    GatedEngine.gate.set()


def ask(service, path="/classify", body=None, **headers):
    body = {"sequences": [[[1, 2, 3]]]} if body is None else body
    return service.http.post(path, json=body, headers=headers)


def wait_for_requests(lines, count):
    """The request records, once there are so many."""
    wait(lambda: len(lines.requests()) >= count, f"{count} records", 10)
    return lines.requests()


class TestRecords:
    def test_fields(self, service, lines):
        """A request's record has its id, method, route, status, duration and size; the
        time has a zone."""
        response = ask(service, **{"X-Request-ID": "my-id"})
        (record,) = wait_for_requests(lines, 1)
        assert record["request_id"] == "my-id"
        assert record["method"] == "POST"
        assert record["route"] == "/classify"
        assert record["status"] == 200
        assert 0 < record["duration_ms"] < 1000 * SECONDS
        assert record["bytes_in"] == len(response.request.content)
        assert record["bytes_out"] == len(response.content)
        assert record["level"] == "info"
        assert record["logger"] == "service.request"
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record["time"]
        )

    def test_one_each(self, service, lines):
        """Every request has one record, with the id of its response."""
        responses = [ask(service) for _ in range(10)]
        responses += [ask(service, body={"sequences": 1}) for _ in range(10)]
        responses += [service.http.get("/models/walks") for _ in range(10)]
        records = wait_for_requests(lines, 30)
        ids = [response.headers["x-request-id"] for response in responses]
        assert [record["request_id"] for record in records] == ids
        statuses = [response.status_code for response in responses]
        assert [record["status"] for record in records] == statuses

    def test_route(self, service, lines):
        """The record has the route's pattern, not the path that the client sent."""
        service.http.get(f"/models/{SECRET}")
        service.http.get(f"/{SECRET}")
        service.http.put(f"/models/{SECRET}")
        records = wait_for_requests(lines, 3)
        routes = [(record["route"], record["status"]) for record in records]
        assert routes == [
            ("/models/{name}", 404),
            ("unmatched", 404),
            ("/models/{name}", 405),
        ]
        assert SECRET not in lines.getvalue()

    def test_probes_are_quiet(self, service, lines):
        """Successful probes log nothing at level info."""
        for path in ("/livez", "/healthz", "/readyz", "/metrics"):
            assert service.http.get(path).status_code == 200
        ask(service)
        assert [record["route"] for record in wait_for_requests(lines, 1)] == [
            "/classify"
        ]

    def test_client_errors(self, service, lines):
        """A client's error logs no error and no traceback."""
        for body in (None, 1, {}, {"sequences": [[["x"]]]}, {"sequences": []}):
            service.http.post("/classify", json=body)
        wait_for_requests(lines, 5)
        assert {record["level"] for record in lines.records()} == {"info"}
        assert "exception" not in lines.getvalue()

    def test_internal_error(self, service, lines, engine):
        """If the engine fails the client gets a bare 500, and the log has the cause with
        the request's id."""
        engine.error = RuntimeError("no such op")
        response = ask(service, **{"X-Request-ID": "failing"})
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["request_id"] == "failing"
        assert problem["type"] == "urn:unrolled:error:internal-error"
        for leak in ("no such op", "RuntimeError", "Traceback", "onnx"):
            assert leak not in response.text
        wait_for_requests(lines, 1)
        causes = [r for r in lines.records() if "no such op" in r.get("exception", "")]
        assert causes
        assert all(record["level"] == "error" for record in causes)
        assert "failing" in [record.get("request_id") for record in causes]
        engine.error = None
        assert ask(service).status_code == 200

    def test_disconnect(self, service, lines, engine):
        """A client that disconnects before its response is logged as 499; its waiting
        work is dropped, and others are answered."""
        before = service.metrics()
        engine.gate.clear()
        body = json.dumps({"sequences": [[[1, 2, 3]]] * 3}).encode()
        head = (
            "POST /classify HTTP/1.1\r\nHost: here\r\nContent-Type: application/json"
            f"\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        url = httpx.URL(service.url)
        staying = threading.Thread(target=ask, args=(service,))
        staying.start()  # occupies the engine
        assert engine.entered.acquire(timeout=SECONDS)
        for _ in range(5):
            with socket.create_connection((url.host, url.port)) as connection:
                connection.sendall(head.encode() + body)

                def waiting():
                    text = httpx.get(f"{service.url}/metrics").text
                    return value(text, "unrolled_waiting_steps", model="walks")

                wait(lambda: waiting() > 3, "it waits", 10)
        records = wait_for_requests(lines, 5)
        assert [record["status"] for record in records] == [499] * 5
        engine.gate.set()
        staying.join(SECONDS)
        assert not staying.is_alive()
        wait(lambda: waiting() == 0, "nothing waits", 10)
        name = "unrolled_dropped_sequences_total"
        dropped = value(service.metrics(), name, model="walks")
        assert dropped - value(before, name, model="walks") == 15
        assert ask(service).status_code == 200


class TestInjection:
    """No text of a client makes a record, or is in one."""

    def test_headers(self, service, lines):
        names = ("X-Request-ID", "traceparent", "User-Agent", "Content-Type", "Host")
        for payload in PAYLOADS:
            for name in names:
                request = (
                    f"POST /classify HTTP/1.1\r\n{name}: a{payload}\r\n"
                    "Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
                status, _, _ = send(service.url, request.encode())
                assert 400 <= status < 500
        self.assert_clean(service, lines)

    def test_paths(self, service, lines):
        for payload in PAYLOADS:
            plain = payload.encode()
            percents = "".join(f"%{byte:02x}" for byte in plain).encode()
            for text in (plain, percents):
                for target in (b"/" + text, b"/models/" + text, b"/livez?q=" + text):
                    request = b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n"
                    status, _, _ = send(service.url, request)
                    assert status in (200, 307, 400, 404, 431)
        self.assert_clean(service, lines)

    def test_bodies(self, service, lines):
        """Neither as a value nor as a key; nor is it in the response."""
        good = {"sequences": [[[1, 2, 3]]]}
        count = 0
        for payload in PAYLOADS:
            for body in (
                good | {"model": payload},
                {"sequences": [[[1, 2, payload]]]},
                {"sequences": [[[1, 2, NUMBER, 4]]]},
                {"sequences": [[[1, 2, NUMBER]]], "top_k": payload},
                {"sequences": payload},
                [payload],
                payload,
                {payload: 1},
                good | {payload: 1},
            ):
                response = ask(service, body=body)
                assert response.is_client_error
                assert SECRET not in response.text
                assert str(NUMBER) not in response.text
                assert len(response.content) < 8192
                count += 1
            service.http.post("/classify", content=payload.encode())
            count += 1
        assert len(wait_for_requests(lines, count)) == count
        self.assert_clean(service, lines)

    def assert_clean(self, service, lines):
        assert ask(service).status_code == 200
        records = lines.records()
        assert {record["level"] for record in records} <= {"info", "warning"}
        assert {record["logger"] for record in records} <= {
            "service.request",
            "service.http.limits",
            "uvicorn.error",
        }
        for text in (lines.getvalue(), service.metrics()):
            assert SECRET not in text
            assert str(NUMBER) not in text

    def test_answered(self, service, lines):
        """The data of answered requests is in no log and no metric."""
        body = {"sequences": [[[1, 2, NUMBER]] * 3]}
        assert ask(service, body=body).status_code == 200
        self.assert_clean(service, lines)


def record(message, **extras):
    level = {"levelno": logging.ERROR, "levelname": "ERROR"}
    result = logging.makeLogRecord({"msg": message, "name": "x", **level})
    vars(result).update(extras)
    return result


class TestFormats:
    def test_payloads(self):
        """Any text stays within its line; JSON keeps it, and in text it can't control
        the terminal."""
        for payload in PAYLOADS:
            line = logs.JsonFormatter().format(record(payload, reason=payload))
            assert "\n" not in line
            assert "\r" not in line
            assert json.loads(line)["message"] == payload
            assert json.loads(line)["reason"] == payload
            line = logs.TextFormatter().format(record(payload, reason=payload))
            assert len(line.splitlines()) == 1
            assert "\x1b" not in line
            assert re.match(r"\d\d:\d\d:\d\d error ", line)

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
        file = LogFile()
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
        file = LogFile()
        handler = logs.BufferedHandler(file)
        handler.setFormatter(logs.JsonFormatter())
        handler.handle(record("%d steps", args=("no number",)))
        handler.close()
        (entry,) = file.records()
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
