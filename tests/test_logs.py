"""What is logged of requests: one record each, and nothing that a caller sent."""

import io
import json
import logging
import re
import socket
import sys
import threading

import httpx
import pytest
from conftest import SECONDS, OnnxEngine, running, send, value, wait

from service import logs
from service.settings import Settings

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
            "service.crowd",
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
    made = logging.makeLogRecord({"msg": message, "levelname": "ERROR", "name": "x"})
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
