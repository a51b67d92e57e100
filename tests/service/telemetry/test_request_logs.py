"""The log of requests: one record for each, and nothing that a client sent."""

import io
import json
import logging
import re
import socket
import threading

import httpx
import pytest

from service.settings import Settings
from service.telemetry import logs
from tests.support.servers import SECONDS, GatedEngine, running, send, value, wait

SECRET, NUMBER = "s3cr3t", 73910.4242
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


@pytest.fixture(scope="module")
def service(bundles):
    # One worker, which a single request can occupy.
    settings = Settings(port=0, bundles=bundles, workers=1)
    with running(settings, load_engine=GatedEngine) as running_service:
        yield running_service


@pytest.fixture
def engine():
    """The engine's class, which is reset afterwards."""
    GatedEngine.reset()
    yield GatedEngine
    GatedEngine.reset()


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
        # The service is ready a moment before it says so.
        own = ("ready", "serving on")
        records = [r for r in lines.records() if not r["message"].startswith(own)]
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

    def test_formatters(self):
        """Any text stays within its line; JSON keeps it, and in text it can't control
        the terminal."""
        level = {"levelno": logging.ERROR, "levelname": "ERROR"}
        for payload in PAYLOADS:
            fields = {"name": "x", "msg": payload, "reason": payload}
            record = logging.makeLogRecord(fields | level)
            line = logs.JsonFormatter().format(record)
            assert "\n" not in line
            assert "\r" not in line
            assert json.loads(line)["message"] == payload
            assert json.loads(line)["reason"] == payload
            line = logs.TextFormatter().format(record)
            assert len(line.splitlines()) == 1
            assert "\x1b" not in line
            assert re.match(r"\d\d:\d\d:\d\d error ", line)
