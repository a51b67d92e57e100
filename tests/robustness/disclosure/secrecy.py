"""What callers send stays out of logs, metrics and refusals."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import websockets.exceptions
import websockets.sync.client as web_sockets

from tests.robustness.disclosure.secrets import FORGED, MARK, numbers, payloads
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import DOORS, HTTP, STREAMS, Door
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import Answer, Closed, Malformed, Wire
from tests.robustness.inputs.malformed_bodies import member

# Headers that something reads, or might log.
HEADERS = (
    "X-Request-ID", "traceparent", "tracestate", "User-Agent", "Referer", "Origin", "Cookie", "X-Forwarded-For",
    "Forwarded", "Content-Type", "Content-Encoding", "Accept-Encoding", "Inference-Header-Content-Length",
    "X-Request-Timeout-Ms", "Authorization", "X-API-Key", "Host", "Expect", "Connection", "Transfer-Encoding",
)  # fmt: skip


def sent(payload: str, key: str) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Requests that hold it, wherever one can: method, target, body, headers."""
    text, quoted = json.dumps(payload).encode(), quote(payload, safe="")
    auth = {"X-API-Key": key}
    for path in ("/{}", "/models/{}", "/models/digits/report/{}", "/v1/{}", "/v1/models/{}", "/v2/models/{}",
                 "/v1/models/{}/metadata", "/v2/models/digits/versions/{}", "/v2/models/digits/{}",
                 "/models/digits?a={}", "/livez?{}=1", "/stream?model={}"):  # fmt: skip
        yield "GET", path.format(quoted), b"", auth
    for path in ("/{}", "/stream?model={}", "/stream?model=digits&top_k={}", "/stream?{}=1", "/classify?model={}",
                 "/v1/models/{}:predict", "/v1/models/digits:{}", "/v1/models/digits/labels/{}:predict",
                 "/v2/models/{}/infer", "/v2/repository/models/{}/load"):  # fmt: skip
        yield "POST", path.format(quoted), b"{}", auth
    for door in HTTP:
        good = door.good()
        yield "POST", door.path, member(good, door.text, text), auth
        yield "POST", door.path, member(good, text[1:-1], b"1"), auth
        yield "POST", door.path, door.cell(text), auth
        yield "POST", door.path, door.body(text), auth
        yield "POST", door.path, text, auth
        yield "POST", door.path, payload.encode() + good, auth
        given = b'{"sequence_id": %b, "sequence_start": true}' % text
        yield "POST", door.path, member(good, b"parameters", given), auth
        yield "POST", door.path, member(good, b"states", b"[%b]" % text), auth
    plain = payload.encode().decode("latin-1").replace("\r", "").replace("\n", "")
    plain = plain.replace("\x00", "")[:8000]
    for header in HEADERS:
        door = HTTP[len(header) % len(HTTP)]
        yield "POST", door.path, door.good(), auth | {header: plain}
        yield "GET", "/models/nobody", b"", auth | {header: plain}
    yield "POST", "/classify", HTTP[0].good(), {"X-API-Key": plain}
    yield "POST", "/classify", HTTP[0].good(), {"Authorization": f"Bearer {plain}"}
    yield plain.replace(" ", "")[:50], "/classify", b"", auth


@row("E1", "What callers send is told nowhere", full=40, fast=4)
def secrecy(tally: Tally, amount: int) -> None:
    """No text, number, name, id, header or key that a caller sends comes out in a log
    line, a metric or a refusal, and none passes for a line of the log."""
    key = f"{MARK}-{secrets.token_hex(16)}"
    keys = f"someone:{hashlib.sha256(key.encode()).hexdigest()}"
    settings = {"log_level": "debug", "header_seconds": 2, "body_seconds": 2}
    with serving(tally, api_keys=keys, **settings) as service:
        told, count = [], 0
        every = payloads()
        tally.check(len(every) == 40, f"{len(every)} payloads")
        with Wire(service.port) as wire:
            for payload in every[:: max(1, len(every) // amount)][:amount]:
                for method, target, body, headers in sent(payload, key):
                    count += 1
                    where = f"{method} {target[:40]} {payload[:20]!r}"
                    answer = _ask(wire, method, target, body, headers)
                    _refused(tally, where, answer)
                _streams(tally, service, payload, key)
        data, told = numbers(50)
        for door in DOORS:
            _data(tally, service, door, data, told, key)
        tally.figure("requests", count)
        time.sleep(0.3)  # log lines may wait a moment
        _logged(tally, service, told)
        metrics = service.get("/metrics", headers={"X-API-Key": key}).text
        tally.check("http_server" in metrics, "no metrics")
        tally.check(MARK not in metrics, "a text in the metrics")
        tally.check(not any(one in metrics for one in told), "data in the metrics")


def _ask(wire: Wire, *given: Any) -> Answer | None:
    """The answer, if there is one."""
    try:
        return wire.request(*given)
    except (Closed, Malformed, TimeoutError, OSError):
        wire.close()  # an odd coding or length leaves it without an end
        return None


def _refused(tally: Tally, where: str, answer: Answer | None) -> None:
    if answer is None or answer.status < 400:
        return
    # What is in force stands among the headers: none of it was sent.
    text = answer.text + str(dict(answer.headers))
    tally.check(MARK not in text and "forged" not in text, f"{where}: {text[:200]}")
    tally.check(answer.status < 500, f"{where}: {answer.status}")


def _streams(tally: Tally, service: Service, payload: str, key: str) -> None:
    text = json.dumps(payload).encode()
    url = f"ws://127.0.0.1:{service.port}/stream?model="
    auth = {"X-API-Key": key}
    try:
        with web_sockets.connect(f"{url}digits", additional_headers=auth, proxy=None) as socket:  # fmt: skip
            for body in (text, b'{"state": %b}' % text, b'{%b: 1}' % text, b'{"frames": %b}' % text):  # fmt: skip
                socket.send(body)
                line = str(socket.recv(5))
                tally.check(MARK not in line, f"a stream tells {line[:100]}")
        nobody = url + quote(payload, safe="")
        with web_sockets.connect(nobody, additional_headers=auth, proxy=None):
            tally.check(False, "a stream of no model is open")
    except websockets.exceptions.InvalidStatus as error:
        body = (error.response.body or b"").decode()
        tally.check(MARK not in body, f"a handshake is refused with {body[:100]}")


def _data(
    tally: Tally,
    service: Service,
    door: Door,
    data: list[float],
    told: list[str],
    key: str,
) -> None:
    """Good and bad bodies of numbers that can be found again."""
    row = (data * door.features)[: door.features]
    frame = json.dumps(row).encode()
    bodies = [
        door.body(b"[%b,%b]" % (frame, frame)),
        door.body(b"[%b,%b" % (frame, frame)),
        door.body(b"[%b,%b]" % (frame, frame[:-1] + b",1]")),
        door.body(b"[%b,%b]" % (frame, frame.replace(b".5,", b".5e99,", 1))),
    ]
    if door in STREAMS:
        url = f"ws://127.0.0.1:{service.port}{door.path}"
        with web_sockets.connect(url, additional_headers={"X-API-Key": key}, proxy=None) as socket:  # fmt: skip
            for body in bodies:
                socket.send(body)
                line = str(socket.recv(5))
                found = "error" in line and any(one in line for one in told)
                tally.check(not found, f"{door.name}: {line[:100]}")
        return
    with Wire(service.port) as wire:
        for body in bodies:
            answer = wire.request("POST", door.path, body, {"X-API-Key": key})
            found = answer.status >= 400 and any(one in answer.text for one in told)
            tally.check(not found, f"{door.name}: {answer.text[:200]}")


def _logged(tally: Tally, service: Service, told: list[str]) -> None:
    lines = service.log.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
    tally.figure("log lines", len(lines))
    tally.check(len(lines) > 20, "nothing is logged")
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        whole = isinstance(record, dict) and {"time", "level", "logger"} <= set(record)
        tally.check(whole, f"no record: {line[:200]}")
        if whole:
            tally.check(record["message"] != "forged", f"forged: {line[:200]}")
        secret = MARK in line or FORGED in line or any(one in line for one in told)
        tally.check(not secret, f"logged: {line[:250]}")
