"""Row E1: what clients send stays out of logs, metrics and refusals."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import websockets.exceptions
import websockets.sync.client

from tests.robustness.disclosure.secrets import FORGED, MARK, numbers, texts
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import ENDPOINTS, HTTP, STREAMS, Endpoint
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import (
    ConnectionClosed,
    MalformedResponse,
    Response,
    StrictConnection,
)
from tests.robustness.inputs.malformed_bodies import member

# Headers that something reads, or might log.
HEADERS = (
    "X-Request-ID", "traceparent", "tracestate", "User-Agent", "Referer", "Origin", "Cookie", "X-Forwarded-For",
    "Forwarded", "Content-Type", "Content-Encoding", "Accept-Encoding", "Inference-Header-Content-Length",
    "X-Request-Timeout-Ms", "Authorization", "X-API-Key", "Host", "Expect", "Connection", "Transfer-Encoding",
)  # fmt: skip
GET_PATHS = (
    "/{}", "/models/{}", "/models/digits/report/{}", "/v1/{}", "/v1/models/{}", "/v2/models/{}",
    "/v1/models/{}/metadata", "/v2/models/digits/versions/{}", "/v2/models/digits/{}",
    "/models/digits?a={}", "/livez?{}=1", "/stream?model={}",
)  # fmt: skip
POST_PATHS = (
    "/{}", "/stream?model={}", "/stream?model=digits&top_k={}", "/stream?{}=1", "/classify?model={}",
    "/v1/models/{}:predict", "/v1/models/digits:{}", "/v1/models/digits/labels/{}:predict",
    "/v2/models/{}/infer", "/v2/repository/models/{}/load",
)  # fmt: skip


class Request(NamedTuple):
    """The arguments of `StrictConnection.request`."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


def requests_with(secret: str, key: str) -> Iterator[Request]:
    """Requests that contain a secret in every place."""
    text, quoted = json.dumps(secret).encode(), quote(secret, safe="")
    auth = {"X-API-Key": key}
    for path in GET_PATHS:
        yield Request("GET", path.format(quoted), b"", auth)
    for path in POST_PATHS:
        yield Request("POST", path.format(quoted), b"{}", auth)
    for endpoint in HTTP:
        valid = endpoint.valid_body()
        parameters = b'{"sequence_id": %b, "sequence_start": true}' % text
        for body in (
            member(valid, endpoint.text_field, text),
            member(valid, text[1:-1], b"1"),
            endpoint.body_with_number(text),
            endpoint.body(text),
            text,
            secret.encode() + valid,
            member(valid, b"parameters", parameters),
            member(valid, b"states", b"[%b]" % text),
        ):
            yield Request("POST", endpoint.path, body, auth)
    plain = secret.encode().decode("latin-1").replace("\r", "").replace("\n", "")
    plain = plain.replace("\x00", "")[:8000]
    for header in HEADERS:
        endpoint, headers = HTTP[len(header) % len(HTTP)], auth | {header: plain}
        yield Request("POST", endpoint.path, endpoint.valid_body(), headers)
        yield Request("GET", "/models/nobody", b"", headers)
    valid = HTTP[0].valid_body()
    for headers in ({"X-API-Key": plain}, {"Authorization": f"Bearer {plain}"}):
        yield Request("POST", "/classify", valid, headers)
    yield Request(plain.replace(" ", "")[:50], "/classify", b"", auth)


@row("E1", "What clients send is disclosed nowhere", full=40, fast=4)
def secrecy(tally: Tally, amount: int) -> None:
    """No text, number, name, id, header or key of a request appears in a log line, a
    metric or a refusal, and none forges a log line."""
    key = f"{MARK}-{secrets.token_hex(16)}"
    keys = f"someone:{hashlib.sha256(key.encode()).hexdigest()}"
    settings = {"log_level": "debug", "header_seconds": 2, "body_seconds": 2}
    with serving(tally, api_keys=keys, **settings) as service:
        count = 0
        all_texts = texts()
        tally.check(len(all_texts) == 40, f"{len(all_texts)} texts")
        with StrictConnection(service.port) as connection:
            for secret in all_texts[:: max(1, len(all_texts) // amount)][:amount]:
                for request in requests_with(secret, key):
                    count += 1
                    where = f"{request.method} {request.path[:40]} {secret[:20]!r}"
                    _check_refusal(tally, where, _send(connection, request))
                _check_streams(tally, service, secret, key)
        values, written = numbers(50)
        for endpoint in ENDPOINTS:
            _check_numbers(tally, service, endpoint, values, written, key)
        tally.figure("requests", count)
        time.sleep(0.3)  # log lines may be buffered
        _check_log(tally, service, written)
        metrics = service.get("/metrics", headers={"X-API-Key": key}).text
        tally.check("http_server" in metrics, "no metrics")
        tally.check(MARK not in metrics, "a text in the metrics")
        tally.check(not any(n in metrics for n in written), "data in the metrics")


def _send(connection: StrictConnection, request: Request) -> Response | None:
    """The response, if there is one."""
    try:
        return connection.request(*request)
    except (ConnectionClosed, MalformedResponse, TimeoutError, OSError):
        connection.close()  # a wrong coding or length leaves it without an end
        return None


def _check_refusal(tally: Tally, where: str, response: Response | None) -> None:
    if response is None or response.status < 400:
        return
    text = response.text + str(dict(response.headers))
    tally.check(MARK not in text and "forged" not in text, f"{where}: {text[:200]}")
    tally.check(response.status < 500, f"{where}: {response.status}")


def _check_streams(tally: Tally, service: Service, secret: str, key: str) -> None:
    """Messages of a stream, and the name of its model."""
    text = json.dumps(secret).encode()
    path = "/stream?model="
    try:
        with _websocket(service, f"{path}digits", key) as connection:
            for body in (text, b'{"state": %b}' % text, b"{%b: 1}" % text, b'{"frames": %b}' % text):  # fmt: skip
                connection.send(body)
                line = str(connection.recv(5))
                tally.check(MARK not in line, f"a stream discloses {line[:100]}")
        with _websocket(service, path + quote(secret, safe=""), key):
            tally.check(False, "a stream of no model is open")
    except websockets.exceptions.InvalidStatus as error:
        body = (error.response.body or b"").decode()
        tally.check(MARK not in body, f"a handshake is refused with {body[:100]}")


def _websocket(
    service: Service, path: str, key: str
) -> websockets.sync.client.ClientConnection:
    url = f"ws://127.0.0.1:{service.port}{path}"
    headers: dict[str, Any] = {"X-API-Key": key}
    return websockets.sync.client.connect(url, additional_headers=headers, proxy=None)


def _check_numbers(
    tally: Tally,
    service: Service,
    endpoint: Endpoint,
    values: list[float],
    written: list[str],
    key: str,
) -> None:
    """Valid and invalid bodies with numbers that can be found again."""

    def discloses(text: str) -> bool:
        return any(number in text for number in written)

    row = (values * endpoint.features)[: endpoint.features]
    frame = json.dumps(row).encode()
    bodies = [
        endpoint.body(b"[%b,%b]" % (frame, frame)),
        endpoint.body(b"[%b,%b" % (frame, frame)),
        endpoint.body(b"[%b,%b]" % (frame, frame[:-1] + b",1]")),
        endpoint.body(b"[%b,%b]" % (frame, frame.replace(b".5,", b".5e99,", 1))),
    ]
    if endpoint in STREAMS:
        with _websocket(service, endpoint.path, key) as connection:
            for body in bodies:
                connection.send(body)
                line = str(connection.recv(5))
                disclosed = "error" in line and discloses(line)
                tally.check(not disclosed, f"{endpoint.name}: {line[:100]}")
        return
    with StrictConnection(service.port) as http:
        for body in bodies:
            response = http.request("POST", endpoint.path, body, {"X-API-Key": key})
            disclosed = response.status >= 400 and discloses(response.text)
            tally.check(not disclosed, f"{endpoint.name}: {response.text[:200]}")


def _check_log(tally: Tally, service: Service, written: list[str]) -> None:
    lines = service.log.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
    tally.figure("log lines", len(lines))
    tally.check(len(lines) > 20, "nothing is logged")
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        valid = isinstance(record, dict) and {"time", "level", "logger"} <= set(record)
        tally.check(valid, f"no record: {line[:200]}")
        if valid:
            tally.check(record["message"] != "forged", f"forged: {line[:200]}")
        secret = MARK in line or FORGED in line or any(n in line for n in written)
        tally.check(not secret, f"logged: {line[:250]}")
