"""What is logged of requests: one record each, and nothing that a caller sent; and
that the log stops nothing, whatever becomes of it."""

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

CANARY, NUMBER = "c4n4ry", 73910.4242
# What `logging` itself finds out for every record of the process.
OF_ALL_RECORDS = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing")
PAYLOADS = [
    pytest.param('\n{"level":"error","message":"c4n4ry"}', id="line-feed"),
    pytest.param('\r{"level":"error","message":"c4n4ry"}', id="carriage-return"),
    pytest.param("\r\n\r\nc4n4ry", id="both-twice"),
    pytest.param("\x1b[2J\x1b[31mc4n4ry", id="escape"),
    pytest.param("\u2028c4n4ry", id="line-separator"),
    pytest.param("\u2029c4n4ry", id="paragraph-separator"),
    pytest.param("\x85c4n4ry", id="next-line"),
    pytest.param("\x0bc4n4ry\x0c", id="vertical-tab"),
    pytest.param("\0c4n4ry", id="nul"),
    pytest.param('","level":"error","c4n4ry":"', id="quotes"),
    pytest.param("\\n\\u000ac4n4ry", id="backslashes"),
    pytest.param("%0a%0dc4n4ry", id="percent"),
    pytest.param("%(message)s {c4n4ry} %s %d", id="format"),
    pytest.param("${jndi:ldap://c4n4ry}", id="lookup"),
    pytest.param("<script>c4n4ry</script>", id="html"),
    pytest.param("\u202ec4n4ry", id="right-to-left"),
    pytest.param(CANARY * 1707, id="10-KiB"),
]


class Lines(io.StringIO):
    """A log file."""

    def records(self):
        """Its records; fails where a line is none."""
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
    """What the service writes with its own formatter, at level info."""
    file = Lines()
    handler = logging.StreamHandler(file)
    handler.setFormatter(logs.JsonFormatter())
    # Not the root: the client that asks here would log too.
    loggers = [logging.getLogger(name) for name in ("service", "uvicorn", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield file
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


class Gated(OnnxEngine):
    """An engine that can be held, or told to fail, once it serves."""

    held: threading.Event
    entered: threading.Semaphore
    fault: Exception | None = None

    def step(self, frames, lengths, state):
        self.entered.release()
        assert self.held.wait(SECONDS)
        if self.fault is not None:
            raise self.fault
        return super().step(frames, lengths, state)


@pytest.fixture(scope="module")
def service(bundles):
    Gated.held, Gated.entered = threading.Event(), threading.Semaphore(0)
    Gated.held.set()
    # With one thread, which a single request occupies.
    settings = Settings(port=0, bundles=bundles, workers=1)
    with running(settings, load_engine=Gated) as made:
        yield made


@pytest.fixture
def gate():
    """The engine's own state, as it was before."""
    while Gated.entered.acquire(blocking=False):
        pass
    yield Gated
    Gated.fault = None
    Gated.held.set()


def ask(service, path="/classify", body=None, **headers):
    body = {"sequences": [[[1, 2, 3]]]} if body is None else body
    return service.http.post(path, json=body, headers=headers)


def settle(lines, count):
    """The request records, when there are so many of them."""
    wait(lambda: len(lines.requests()) >= count, f"{count} records", 10)
    return lines.requests()


class TestRecords:
    def test_members(self, service, lines):
        """A request's record tells its id, method, route, status, duration and size;
        the time has a zone."""
        response = ask(service, **{"X-Request-ID": "my-id"})
        (record,) = settle(lines, 1)
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
        """Every request has one record, under the id that its answer has."""
        responses = [ask(service) for _ in range(10)]
        responses += [ask(service, body={"sequences": 1}) for _ in range(10)]
        responses += [service.http.get("/models/walks") for _ in range(10)]
        records = settle(lines, 30)
        ids = [response.headers["x-request-id"] for response in responses]
        assert [record["request_id"] for record in records] == ids
        statuses = [response.status_code for response in responses]
        assert [record["status"] for record in records] == statuses

    def test_route_is_no_path(self, service, lines):
        """The record has the route's pattern; what the caller put there is not in
        it."""
        service.http.get(f"/models/{CANARY}")
        service.http.get(f"/{CANARY}")
        service.http.put(f"/models/{CANARY}")
        records = settle(lines, 3)
        routes = [(record["route"], record["status"]) for record in records]
        assert routes == [
            ("/models/{name}", 404),
            ("unmatched", 404),
            ("/models/{name}", 405),
        ]
        assert CANARY not in lines.getvalue()

    def test_probes_are_quiet(self, service, lines):
        """Probes that succeed write nothing at level info."""
        for path in ("/livez", "/healthz", "/readyz", "/metrics"):
            assert service.http.get(path).status_code == 200
        ask(service)
        assert [record["route"] for record in settle(lines, 1)] == ["/classify"]

    def test_refusals_are_no_errors(self, service, lines):
        """A caller's mistake makes no error record and no traceback."""
        for body in (None, 1, {}, {"sequences": [[["x"]]]}, {"sequences": []}):
            service.http.post("/classify", json=body)
        settle(lines, 5)
        assert {record["level"] for record in lines.records()} == {"info"}
        assert "exception" not in lines.getvalue()

    def test_our_mistake(self, service, lines, gate):
        """When the network fails the caller gets a bare 500, and the log has the
        cause under the request's id."""
        gate.fault = RuntimeError("no such op")
        response = ask(service, **{"X-Request-ID": "failing"})
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["request_id"] == "failing"
        assert problem["type"] == "urn:unrolled:error:internal-error"
        for leak in ("no such op", "RuntimeError", "Traceback", "onnx"):
            assert leak not in response.text
        settle(lines, 1)
        caused = [r for r in lines.records() if "no such op" in r.get("exception", "")]
        assert caused
        assert all(record["level"] == "error" for record in caused)
        assert "failing" in [record.get("request_id") for record in caused]
        gate.fault = None
        assert ask(service).status_code == 200

    def test_caller_goes(self, service, lines, gate):
        """A caller that goes before its answer is logged as 499, what waits of it
        is dropped, and others are answered."""
        before = service.metrics()
        gate.held.clear()
        body = json.dumps({"sequences": [[[1, 2, 3]]] * 3}).encode()
        head = (
            "POST /classify HTTP/1.1\r\nHost: here\r\nContent-Type: application/json"
            f"\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        at = httpx.URL(service.url)
        staying = threading.Thread(target=ask, args=(service,))
        staying.start()  # occupies the engine
        assert gate.entered.acquire(timeout=SECONDS)
        for _ in range(5):
            with socket.create_connection((at.host, at.port)) as connection:
                connection.sendall(head.encode() + body)

                def waiting():
                    text = httpx.get(f"{service.url}/metrics").text
                    return value(text, "unrolled_waiting_steps", model="walks")

                wait(lambda: waiting() > 3, "it waits", 10)
        records = settle(lines, 5)
        assert [record["status"] for record in records] == [499] * 5
        gate.held.set()
        staying.join(SECONDS)
        assert not staying.is_alive()
        wait(lambda: waiting() == 0, "nothing waits", 10)
        name = "unrolled_dropped_sequences_total"
        dropped = value(service.metrics(), name, model="walks")
        assert dropped - value(before, name, model="walks") == 15
        assert ask(service).status_code == 200


class TestInjection:
    @pytest.mark.parametrize("payload", PAYLOADS)
    def test_in_a_header(self, service, lines, payload):
        """Whatever a header says, it makes no record and is in none."""
        for name in (
            "X-Request-ID",
            "traceparent",
            "User-Agent",
            "Content-Type",
            "Host",
        ):
            request = (
                f"POST /classify HTTP/1.1\r\n{name}: a{payload}\r\n"
                "Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            status, _, _ = send(service.url, request.encode())
            assert 400 <= status < 500
        self.assert_clean(service, lines)

    @pytest.mark.parametrize("payload", PAYLOADS)
    def test_in_the_path(self, service, lines, payload):
        """Whatever the path or the query says, as it stands or in percents."""
        plain = payload.encode()
        percents = "".join(f"%{byte:02x}" for byte in plain).encode()
        for text in (plain, percents):
            for target in (b"/" + text, b"/models/" + text, b"/livez?q=" + text):
                request = b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n"
                status, _, _ = send(service.url, request)
                assert status in (200, 307, 400, 404, 431)
        self.assert_clean(service, lines)

    @pytest.mark.parametrize("payload", PAYLOADS)
    def test_in_the_body(self, service, lines, payload):
        """Whatever the body says, as data or as a name."""
        for body in (
            {"sequences": [[[1, 2, 3]]], "model": payload},
            {"sequences": [[[1, 2, payload]]]},
            {"sequences": [[[1, 2, NUMBER, 4]]]},
            {"sequences": [[[1, 2, NUMBER]]], "top_k": payload},
            {"sequences": payload},
            [payload],
            payload,
        ):
            response = ask(service, body=body)
            assert response.is_client_error
            assert CANARY not in response.text
            assert str(NUMBER) not in response.text
        service.http.post("/classify", content=payload.encode())
        assert len(settle(lines, 8)) == 8
        self.assert_clean(service, lines)

    @pytest.mark.parametrize("payload", PAYLOADS)
    def test_as_a_key(self, service, lines, payload):
        """Or as the name of a member; it isn't told back either."""
        for body in ({payload: 1}, {"sequences": [[[1, 2, 3]]], payload: 1}):
            response = ask(service, body=body)
            assert response.status_code == 422
            self.assert_clean(service, lines)
            assert CANARY not in response.text
            assert len(response.content) < 8192

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
            assert CANARY not in text
            assert str(NUMBER) not in text

    def test_numbers_of_answered_requests(self, service, lines):
        """The data of requests that are answered isn't logged or measured."""
        body = {"sequences": [[[1, 2, NUMBER]] * 3]}
        assert ask(service, body=body).status_code == 200
        self.assert_clean(service, lines)


def record(message, **extras):
    level = {"levelno": logging.ERROR, "levelname": "ERROR"}
    made = logging.makeLogRecord({"msg": message, "name": "x", **level})
    vars(made).update(extras)
    return made


class TestFormats:
    @pytest.mark.parametrize("payload", PAYLOADS)
    def test_json(self, payload):
        """Any text stays within its record, and can be read back."""
        line = logs.JsonFormatter().format(record(payload, reason=payload))
        assert "\n" not in line
        assert "\r" not in line
        assert json.loads(line)["message"] == payload
        assert json.loads(line)["reason"] == payload

    def test_json_without_a_form(self):
        """What JSON doesn't have is written in words, and no record gets lost: an
        odd file name, a large number, an object."""
        made = record("bundle \udcff is broken", path="\udcff", big=2**70, what=object)
        entry = json.loads(logs.JsonFormatter().format(made))
        assert "is broken" in entry["message"]
        assert {"path", "big", "what"} <= set(entry)

    def test_json_exception(self):
        """A traceback is one member of the record."""
        try:
            raise ValueError("two\nlines")
        except ValueError:
            made = record("failed", exc_info=sys.exc_info())
        line = logs.JsonFormatter().format(made)
        assert "\n" not in line
        assert json.loads(line)["exception"].endswith("ValueError: two\nlines")

    @pytest.mark.parametrize("payload", PAYLOADS)
    def test_text(self, payload):
        """In text, too, no value passes for another record or steers the terminal."""
        line = logs.TextFormatter().format(record(payload, reason=payload))
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
        assert re.match(r"\d\d:\d\d:\d\d error ", line)

    @pytest.mark.parametrize(
        ("form", "terminal", "is_json"),
        [
            ("auto", False, True),
            ("auto", True, False),
            ("json", True, True),
            ("text", False, False),
        ],
    )
    def test_on_demand(self, monkeypatch, form, terminal, is_json):
        """`auto` is text on a terminal and JSON elsewhere; each can be demanded."""
        root = logging.getLogger()
        kept, level = root.handlers[:], root.level
        told = {name: getattr(logging, name) for name in OF_ALL_RECORDS}
        file = Lines()
        file.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdout", file)
        root.handlers[:] = []
        try:
            logs.setup(form, "warning")
            logging.getLogger("service").info("not this")
            logging.getLogger("service").warning("hello", extra={"model": "walks"})
            logging.getLogger().handlers[0].flush()
        finally:
            root.handlers[:] = kept
            root.setLevel(level)
            for name, found in told.items():
                setattr(logging, name, found)
        (line,) = file.getvalue().splitlines()
        if is_json:
            assert json.loads(line)["model"] == "walks"
        else:
            assert re.fullmatch(r"\d\d:\d\d:\d\d warning hello  model=walks", line)


@contextmanager
def serving_into(descriptor, bundles, folder):
    """A `serve` process that is ready, with that as its standard output."""
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
        made = Started(process, f"http://127.0.0.1:{port}", errors)
        wait(lambda: made.answers("/readyz"), "it is ready")
        yield made
    finally:
        process.kill()
        process.wait(SECONDS)


def ask_often(made, count=300):
    """Ask for so much that its lines fill any pipe; all is answered."""
    with httpx.Client(base_url=made.url, timeout=10) as http:
        for _ in range(count):
            body = {"sequences": [[[1, 2, 3]]]}
            assert http.post("/classify", json=body).status_code == 200


def small_pipe():
    """The ends of a pipe that takes few bytes."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, logs.BLOCK)
    return open(reading, "rb", buffering=0), open(writing, "w")


class TestOutput:
    """The log's file fails or stands still."""

    @pytest.mark.parametrize("output", ["unread", "closed", "full"])
    def test_takes_nothing(self, bundles, tmp_path, output):
        """A pipe that nobody reads, one whose reader is gone, a full disk: every
        request is answered, and the process ends when it is told to."""
        reading, writing = small_pipe()
        if output == "closed":
            reading.close()
        elif output == "full":
            writing.close()
            writing = open("/dev/full", "w")  # noqa: SIM115
        with (
            closing(reading),
            writing,
            serving_into(writing, bundles, tmp_path) as made,
        ):
            ask_often(made)
            assert made.answers("/livez")
            made.process.send_signal(signal.SIGTERM)
            assert made.process.wait(SECONDS / 4) == 0
        for word in ("Traceback", "Fatal", "Logging error"):
            assert word not in made.output.read_text()

    def test_has_room_again(self, bundles, tmp_path):
        """What is logged while a file can't grow is written once it can, each line
        whole."""
        log = tmp_path / "log"
        with log.open("w") as file, serving_into(file, bundles, tmp_path) as made:
            number, kind = made.process.pid, resource.RLIMIT_FSIZE
            soft, hard = resource.prlimit(number, kind)
            full = log.stat().st_size + 100
            resource.prlimit(number, kind, (full, hard))
            ask_often(made)
            wait(lambda: log.stat().st_size == full, "a line is cut off")
            resource.prlimit(number, kind, (soft, hard))
            made.process.send_signal(signal.SIGTERM)
            assert made.process.wait(SECONDS) == 0
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert [record.get("route") for record in records].count("/classify") == 300


class TestLines:
    @pytest.fixture
    def made(self):
        """Lines into a full pipe, and its other end."""
        reading, writing = small_pipe()
        os.set_blocking(writing.fileno(), False)  # it refuses, where others wait
        os.write(writing.fileno(), b" " * (logs.BLOCK - 1) + b"\n")
        handler = logs.BufferedHandler(writing, limit=20_000)
        handler.setFormatter(logs.JsonFormatter())
        with reading, writing:
            yield handler, reading
            handler.close()

    def read(self, reading, last):
        """The records up to that message."""
        text = b""
        while f'"{last}"'.encode() not in text or not text.endswith(b"\n"):
            text += reading.read(65536)
        return [json.loads(line) for line in text.decode().splitlines() if line.strip()]

    def test_dropped(self, made):
        """More lines than may wait are dropped; those that aren't come in their
        order, and a record tells how many are missing where they are."""
        handler, reading = made
        for number in range(300):
            handler.handle(record(number))
        handler.handle(record("long", text="x" * 30_000))
        records = self.read(reading, "log lines were dropped")
        *kept, told = records
        assert [entry["message"] for entry in kept] == [
            str(n) for n in range(len(kept))
        ]
        assert len(kept) > 100
        assert told["lines"] == 301 - len(kept)
        assert told["level"] == "warning"
        # And lines longer than a pipe takes at once.
        handler.handle(record("long", text="x" * 15_000))
        handler.handle(record("last"))
        assert [r["message"] for r in self.read(reading, "last")] == ["long", "last"]

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), []),
            (ValueError("I/O operation on closed file"), []),
            (MemoryError(), ["the log's writer thread failed; a new one will start"]),
        ],
        ids=["full", "closed", "unexpected"],
    )
    def test_fault(self, tmp_path, monkeypatch, fault, said):
        """A write that fails loses no line; where the thread ends of it, another is
        started and a record says so."""
        write, faults = os.write, [fault] * 3

        def failing(descriptor, data):
            if descriptor == file.fileno() and faults:
                raise faults.pop()
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", failing)
        with (tmp_path / "log").open("w") as file:
            handler = logs.BufferedHandler(file)
            handler.setFormatter(logs.JsonFormatter())
            for number in range(3):  # a thread that has ended is seen by the next
                handler.handle(record(number))
                wait(lambda left=3 - number: len(faults) < left, "it is tried")
                wait(lambda: not said or handler._writer is None, "the thread ended")
            handler.handle(record(3))
            handler.close()
        lines = (tmp_path / "log").read_text().splitlines()
        messages = [json.loads(line)["message"] for line in lines]
        assert [m for m in messages if m.isdigit()] == ["0", "1", "2", "3"]
        assert [m for m in messages if not m.isdigit()] == said * 3

    def test_without_a_form(self, capsys):
        """A record that can't be formatted is told of in the log, and nowhere else."""
        file = Lines()
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
            # As workers are: with the module imported where they are forked from.
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
        """Each process writes its own lines, once, to the last."""
        script = (
            "import logging, os\nfrom service.telemetry import logs\n"
            "logs.setup('json', 'info')\nlog = logging.getLogger()\n"
            f"log.info('before')\n{child}\nlog.info('after')\n"
        )
        result = self.python(script, stdout=subprocess.PIPE)
        text = result.communicate(timeout=SECONDS)[0]
        messages = [json.loads(line)["message"] for line in text.splitlines()]
        assert sorted(messages) == ["after", "before", "child"]

    def test_shut_down_by_a_signal(self):
        """Shut down in a signal's handler, which may interrupt whoever logs, it ends
        though nobody reads."""
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

    def python(self, script, **given):
        command = [sys.executable, "-W", "ignore", "-c", script]
        return subprocess.Popen(command, cwd=ROOT, **given)
