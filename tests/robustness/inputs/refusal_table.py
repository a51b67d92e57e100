"""Every way to be refused: the request, and what the response must contain.

Each entry names the stage of the service that refuses it; `refusing_services` has the
settings of each. Entries that close their connection, or are refused only after a
timeout, are tried fewer times within the time limit.
"""

import gzip
import json
from collections.abc import Iterator
from functools import partial

from service import errors
from service.registry import state_tokens
from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.endpoints import (
    CLASSIFY,
    ENDPOINTS,
    HTTP,
    INFER,
    LABEL,
    LINES,
    SOCKET,
    STREAMS,
    Endpoint,
)
from tests.robustness.harness.raw_connection import websocket_frame
from tests.robustness.harness.refusal import (
    UPGRADE,
    Refusal,
    at_connection,
    at_endpoint,
    at_path,
    handshake,
    http,
)
from tests.robustness.inputs.raw_requests import BAD_UPGRADES, websocket_upgrade

# Stages of services; those in a line are one process, one after another.
OPEN, KEYS, LIMITED, LOADING = "open", "keys", "limited", "loading"
TIMED, DRAINING = "timed", "draining"
BUFFERED, BUFFERED_NUMBERS = "buffered", 30_000
FAILING, FULL, CROWDED, STOPPING = "failing", "full", "crowded", "stopping"
RETIRED, RETIRED_ID = "retired", b'"sequence_id": 5'
STATE_KEY = "k" * 32
STEPS, MESSAGE_BYTES, BODY_BYTES = 20, 4096, 8192  # the limits of `LIMITED`
NATIVE = (CLASSIFY, LABEL)
STATEFUL = (*NATIVE, *STREAMS)  # take a state token
GZIP = b"Content-Encoding: gzip"
LENGTH = "Inference-Header-Content-Length"
BAD_TIMEOUT = b"X-Request-Timeout-Ms: soon"
# Of each API a known path and an unknown one.
PATHS = ("/models", "/metrics", "/nowhere", "/v1/models", "/v1/nowhere", "/v2", "/v2/nowhere")  # fmt: skip
UNKNOWN = {
    "classify": "/classify", "label": "/label", "predict": "/v1/models/none:predict",
    "examples": "/v1/models/none:classify", "infer": "/v2/models/none/infer",
    "lines": "/stream?model=none", "socket": "/stream?model=none",
}  # fmt: skip
SEQUENCE = (
    b'{"parameters": {%b}, "inputs": [{"name": "frames", "datatype": "FP32",'
    b' "shape": [%d, 1, %d], "data": [%b]}]}'
)


def table() -> list[Refusal]:
    """All entries."""
    parts = (by_endpoints, by_streams, by_connections, by_keys, by_limits, by_timeouts, by_buffers, by_failures, by_retired, while_loading, while_draining)  # fmt: skip
    return [refusal for part in parts for refusal in part()]


def sequence(parameters: bytes, batch: int = 1, features: int = 28) -> bytes:
    """A `/v2` request that continues a sequence."""
    numbers = b",".join([b"0.5"] * batch * features)
    return SEQUENCE % (parameters, batch, features, numbers)


def with_state(endpoint: Endpoint, token: str) -> bytes:
    """A body that continues from a state token."""
    if endpoint in STREAMS:
        return b'{"frames": [%b], "state": "%b"}' % (endpoint.frame(), token.encode())
    more = b', "states": ["%b"]}' % token.encode()
    return endpoint.valid_body()[:-1] + more


def foreign_state() -> str:
    """A state token of a model that is not served."""
    metadata = reference.model("vowels").metadata
    keys = state_tokens.SigningKeys([STATE_KEY.encode()])
    tokens = state_tokens.TokenSigner(keys, metadata, "00" * 32, "float32")
    return tokens.sign(state_tokens.State(1, bytes(1024)))


def by_endpoints() -> Iterator[Refusal]:
    """Refused by endpoints of a service with default settings."""
    refuse = partial(at_endpoint, OPEN)
    refuse_path = partial(at_path, OPEN)
    for endpoint in ENDPOINTS:
        half = endpoint.valid_body()[:-1]
        yield refuse(errors.InvalidJson, endpoint, half, note="half")
        yield refuse(errors.InvalidJson, endpoint, b"\xff{", note="no UTF-8")
        large = endpoint.valid_body()[:-2].ljust(70_000)
        yield refuse(errors.InvalidJson, endpoint, large, note="large")
        for note, body in (
            ("a text", endpoint.body_with_number(b'"a"')),
            ("no float32", endpoint.body_with_number(b"1e39")),
            ("empty", b"{}"),
        ):
            if endpoint in STREAMS or note != "empty":
                yield refuse(errors.InvalidRequest, endpoint, body, note=note)
        width = endpoint.body(b"[%b]" % endpoint.frame(features=3))
        yield refuse(errors.WrongFeatureCount, endpoint, width, note="another width")
        early, path = endpoint in STREAMS, UNKNOWN[endpoint.name]
        body = endpoint.valid_body()
        if endpoint in NATIVE:
            named = json.loads(body) | {"model": "none"}
            body = json.dumps(named).encode()
        yield refuse(errors.UnknownModel, endpoint, body, path=path, early=early)
        if endpoint is not SOCKET:
            zipped = b"no gzip"
            yield refuse(errors.BadEncoding, endpoint, zipped, GZIP, note="none")
            zipped = gzip.compress(endpoint.valid_body())[:-9]
            yield refuse(errors.BadEncoding, endpoint, zipped, GZIP, note="half")
            coding = b"Content-Encoding: br"
            error = errors.UnsupportedMedia
            yield refuse(error, endpoint, b"", coding, early=True, note="a coding")
    for endpoint in HTTP:
        yield refuse(errors.InvalidHeader, endpoint, b"", BAD_TIMEOUT)
        yield refuse_path(errors.MethodNotAllowed, "GET", endpoint.path)
    for endpoint in (*NATIVE, LINES):
        text, error = b"text/plain", errors.UnsupportedMedia
        yield refuse(error, endpoint, media_type=text, early=True, note="text")
    for endpoint in STATEFUL:
        yield refuse(errors.InvalidState, endpoint, with_state(endpoint, "none"))
    other = b'{"sequences": [[[0.5]]], "model": "letters"}'
    yield refuse(errors.InvalidRequest, CLASSIFY, other, note="another task")
    for method, target in (("GET", "/nowhere"), ("POST", "/nowhere"), ("PUT", "/classify/"),
                           ("GET", "/models/digits/report/none"), ("GET", "/playground/none"),
                           ("GET", "/v2/nowhere"), ("POST", "/v2/models/digits/nowhere")):  # fmt: skip
        yield refuse_path(errors.NotFound, method, target)
    for method, target in (("POST", "/models"), ("DELETE", "/stream"), ("GET", "/stream"), ("PATCH", "/v1/models"),
                           ("POST", "/livez"), ("POST", "/v2"), ("GET", "/v2/repository/index"), ("PROPFIND", "/classify")):  # fmt: skip
        yield refuse_path(errors.MethodNotAllowed, method, target)
    for target in ("/models/none", "/models/none/report/card.md", "/v1/models/none", "/v1/models/none/metadata",
                   "/v1/models/digits/versions/9", "/v1/models/digits/labels/none", "/v2/models/none",
                   "/v2/models/none/ready", "/v2/models/none/config", "/v2/models/none/stats",
                   "/v2/models/digits/versions/9"):  # fmt: skip
        yield refuse_path(errors.UnknownModel, "GET", target)
    for target in ("/v1/models", "/v2/health/ready"):
        yield refuse_path(errors.InvalidHeader, "GET", target, b"", BAD_TIMEOUT)
    for method, target in (("GET", "/v1/nowhere"), ("POST", "/v1/nowhere"), ("GET", "/v1"),
                           ("POST", "/v1/models/digits:regress"), ("POST", "/v1/models/letters-live:classify")):  # fmt: skip
        yield refuse_path(errors.InvalidRequest, method, target)
    for note, body in (
        ("not begun", sequence(b'"sequence_id": 1')),
        ("two at a time", sequence(b'"sequence_id": 1, "sequence_start": true', 2)),
        ("an id", sequence(b'"sequence_id": 1.5')),
        ("a timeout", sequence(b'"timeout": -1')),
    ):
        yield refuse(errors.InvalidRequest, INFER, body, note=note)
    for value in ("many", "999999"):
        note, field = f"a length of {value}", f"{LENGTH}: {value}".encode()
        yield refuse(errors.InvalidRequest, INFER, b"", field, note=note)
    for action in ("index", "models/digits/load", "models/digits/unload"):
        yield refuse_path(errors.Forbidden, "POST", f"/v2/repository/{action}", b"{}")
    # Bidirectional models keep no state.
    start = sequence(b'"sequence_id": 1, "sequence_start": true', 1, 128)
    path = "/v2/models/letters/infer"
    yield refuse(errors.NotStreamable, INFER, start, path=path)
    for endpoint, name, features in ((CLASSIFY, "vowels", 12), (LABEL, "letters", 128)):
        row = endpoint.frame(features=features)
        body = b'{"sequences": [[%b]], "model": "%b", "return_state": true}'
        body %= (row, name.encode())
        yield refuse(errors.NotStreamable, endpoint, body)


def by_streams() -> Iterator[Refusal]:
    """Streams that cannot be opened, and refused messages; default settings."""
    refuse = partial(at_endpoint, OPEN)
    refuse_connection = partial(at_connection, OPEN)
    for endpoint in STREAMS:
        for note, path in (
            ("no model", "/stream"),
            ("a parameter", "/stream?model=digits&a=b"),
            ("no number", "/stream?model=digits&top_k=0"),
        ):
            error = errors.InvalidRequest
            yield refuse(error, endpoint, path=path, early=True, note=note)
        path, error = "/stream?model=letters", errors.NotStreamable
        yield refuse(error, endpoint, path=path, early=True)
    other_origin = b"Origin: https://elsewhere.example"
    yield refuse(errors.Forbidden, SOCKET, b"", other_origin, early=True)
    for target in ("/nowhere", "/classify", "/v1/stream", "/v2"):
        name, error = f"not-found: socket {target}", errors.NotFound
        expected = (b"HTTP/1.1 404 ", b"urn:unrolled:error:not-found")
        yield Refusal(name, OPEN, error, handshake(target), expected)
    version, key = UPGRADE[2:]
    for note, upgrade in (
        ("no version", (*UPGRADE[:2], key)),
        ("another version", (*UPGRADE[:2], b"Sec-WebSocket-Version: 12", key)),
        ("no key", (*UPGRADE[:2], version)),
        ("a bad key", (*UPGRADE[:2], version, b"Sec-WebSocket-Key: a")),
        ("two keys", (*UPGRADE, key)),
    ):
        request = handshake(SOCKET.path, upgrade=upgrade)
        yield refuse_connection(errors.BadHandshake, request, note)
    # Errors of the WebSocket protocol: a code in the close frame.
    opens = handshake(SOCKET.path)
    for note, code, sent in (
        ("a message too long", 1009, websocket_frame(b" " * (2**20 + 1))),
        ("no mask", 1002, websocket_frame(b"{}", masked=False)),
        ("no UTF-8", 1007, websocket_frame(b"\xff\xfe")),
        ("an unknown opcode", 1002, websocket_frame(b"{}", 0x83)),
        ("reserved bits", 1002, websocket_frame(b"{}", 0xF1)),
    ):
        expected = (b"HTTP/1.1 101 ", b"\x88", code.to_bytes(2))
        yield Refusal(f"{code}: socket, {note}", OPEN, None, opens, expected, sent)


def by_connections() -> Iterator[Refusal]:
    """Refused by the HTTP connection, whatever the path; default settings."""
    refuse_connection = partial(at_connection, OPEN)
    error, livez = errors.MalformedHttp, http("GET", "/livez")
    chunks = http("POST", "/classify", b"").replace(
        b"Content-Length: 0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\ng\r\n"
    )
    host = b"Host: here\r\n"
    for note, request in (
        ("no host", livez.replace(host, b"")),
        ("two hosts", livez.replace(host, host * 2)),
        ("a bad host", livez.replace(b"here", b"a/b")),
        ("another version", livez.replace(b"/1.1", b"/1.2")),
        ("a bad field", livez.replace(host, host + b"A b: c\r\n")),
        ("two lengths", http("POST", "/classify", b"{}", b"Content-Length: 3")),
        ("a bad chunk", chunks),
        ("a bad chunk for v2", chunks.replace(b"/classify", b"/v2/models/digits/infer")),
        ("TLS", bytes.fromhex("16030100c8010000c40303") + bytes(200)),
        ("zeros", bytes(100)),
        ("a socket without host", websocket_upgrade(*BAD_UPGRADES["no host"])),
        ("a socket of two hosts", websocket_upgrade(*BAD_UPGRADES["two hosts"])),
    ):  # fmt: skip
        yield refuse_connection(error, request, note)
    for note, request in (
        ("a long value", http("GET", "/livez", b"", b"A: " + b"b" * 17_000)),
        ("many fields", http("GET", "/livez", b"", *[b"A: b"] * 101)),
        ("a long target", http("GET", "/livez?" + 17_000 * "a")),
        ("a long target of v1", http("GET", "/v1/" + 17_000 * "a")),
        ("a socket with a long head", websocket_upgrade(*BAD_UPGRADES["a long head"])),
        ("a socket of many fields", websocket_upgrade(*BAD_UPGRADES["many fields"])),
    ):
        yield refuse_connection(errors.HeadTooLarge, request, note)


def by_keys() -> Iterator[Refusal]:
    """Refused by a service that requires keys, with a tiny rate for each."""
    refuse = partial(at_endpoint, KEYS)
    refuse_path = partial(at_path, KEYS)
    refuse_connection = partial(at_connection, KEYS)
    for error, fields in ((errors.Unauthorized, ()), (errors.RateLimited, (b"X-API-Key: first",))):  # fmt: skip
        for endpoint in ENDPOINTS:
            yield refuse(error, endpoint, b"", *fields, early=True)
        for target in PATHS:
            yield refuse_path(error, "GET", target, b"", *fields)
            yield refuse_path(error, "POST", target, b"{}", *fields)
        request = handshake("/nowhere", *fields)
        yield refuse_connection(error, request, "socket /nowhere")
    error, wrong = errors.Unauthorized, b"Authorization: Bearer second"
    for endpoint in ENDPOINTS:
        yield refuse(error, endpoint, b"", wrong, early=True, note="a wrong key")


def by_limits() -> Iterator[Refusal]:
    """Refused by a service with tight limits and a deadline that always expires."""
    refuse = partial(at_endpoint, LIMITED)
    for endpoint in ENDPOINTS:
        long = endpoint.body(b"[%b]" % b",".join([endpoint.frame()] * (STEPS + 1)))
        if endpoint is INFER:
            long = long.replace(b"[1, 2, 28]", b"[1, %d, 28]" % (STEPS + 1))
        yield refuse(errors.TooLarge, endpoint, long, note="steps")
        limit = MESSAGE_BYTES if endpoint is LINES else BODY_BYTES
        large = endpoint.valid_body().ljust(limit + 1)
        if endpoint is not SOCKET:
            yield refuse(errors.TooLarge, endpoint, large, note="bytes")
        if endpoint in HTTP:
            large = gzip.compress(large)
            yield refuse(errors.TooLarge, endpoint, large, GZIP, note="inflated")
        yield refuse(errors.DeadlineExceeded, endpoint)
    two = b'{"sequences": [[[0.5]],[[0.5]],[[0.5]]]}'
    yield refuse(errors.TooLarge, CLASSIFY, two, note="sequences")
    asks = (b"Origin: https://elsewhere.example", b"Access-Control-Request-Method: POST")  # fmt: skip
    preflight = http("OPTIONS", "/classify", b"", *asks)
    expected = (b"HTTP/1.1 400 ", b"Disallowed CORS origin")
    yield Refusal("400: a page's preflight", LIMITED, None, preflight, expected)


def by_timeouts() -> Iterator[Refusal]:
    """Refused by a service with short timeouts, no room for streams, a broken bundle,
    and an open repository."""
    refuse = partial(at_endpoint, TIMED)
    refuse_path = partial(at_path, TIMED)
    refuse_connection = partial(at_connection, TIMED)
    line = b"GET /livez HTTP/1.1\r\nHost: here\r\n"
    for note, request in (
        ("half a line", b"GET /livez HT"),
        ("half a head", line),
        ("half a socket's head", websocket_upgrade(b"Host: here")[:-2]),
        *((f"half a body, {endpoint.name}", refuse(errors.RequestTimeout, endpoint).request[:-1]) for endpoint in HTTP),
    ):  # fmt: skip
        yield refuse_connection(errors.RequestTimeout, request, note, slow=True)
    for endpoint in STREAMS:
        yield refuse(errors.TooManyStreams, endpoint, early=True)
    start = sequence(b'"sequence_id": 1, "sequence_start": true')
    yield refuse(errors.TooManyStreams, INFER, start)
    for target, error in (
        ("none/load", errors.UnknownModel),
        ("none/unload", errors.UnknownModel),
        ("vowels/load", errors.NotReady),
    ):
        yield refuse_path(error, "POST", f"/v2/repository/models/{target}", b"{}")
    target = "/v2/repository/models/digits/load"
    page = b"Origin: https://elsewhere.example"
    yield refuse_path(errors.Forbidden, "POST", target, b"{}", page)
    yield refuse_path(errors.InvalidJson, "POST", target, b"{")
    body = b'{"parameters": {"other": 1}}'
    yield refuse_path(errors.InvalidRequest, "POST", target, body)
    config = json.dumps({"parameters": {"config": '{"sequence_batching": {}}'}})
    letters = target.replace("digits", "letters")
    yield refuse_path(errors.NotStreamable, "POST", letters, config.encode())
    for target in ("/models/vowels", "/v1/models/vowels", "/v2/models/vowels/ready"):
        yield refuse_path(errors.NotReady, "GET", target)


def by_failures() -> Iterator[Refusal]:
    """Refused by a service whose engine fails, then hangs; then by its connections."""
    refuse = partial(at_endpoint, FAILING)
    for endpoint in ENDPOINTS:
        body = endpoint.body_with_number(b"%d" % fault_injection.RAISES)
        yield refuse(errors.InternalError, endpoint, body)
    for endpoint in STATEFUL:
        body = with_state(endpoint, foreign_state())
        yield refuse(errors.StateConflict, endpoint, body)
    for endpoint in ENDPOINTS:
        yield at_endpoint(FULL, errors.Overloaded, endpoint)
    for note, request in (
        ("GET", http("GET", "/livez")),
        ("POST", http("POST", "/v2/models/digits/infer", b"{}")),
        ("socket", handshake(SOCKET.path)),
    ):
        yield at_connection(CROWDED, errors.TooManyConnections, request, note)
    for endpoint in STREAMS:
        yield at_endpoint(STOPPING, errors.Stopping, endpoint, early=True)
    for note, request in (
        ("half a head", b"GET /livez HTTP/1.1\r\nHost: here\r\n"),
        ("half a body", http("POST", "/classify", b"{}")[:-1]),
        ("half a body of v2", http("POST", INFER.path, b"{}")[:-1]),
    ):
        yield at_connection(STOPPING, errors.Stopping, request, note, slow=True)


def by_retired() -> Iterator[Refusal]:
    """Refused by a service that has lost the version of a kept sequence."""
    yield at_endpoint(RETIRED, errors.VersionGone, INFER, sequence(RETIRED_ID))


def by_buffers() -> Iterator[Refusal]:
    """Refused by a service with a tiny buffer budget: parsed frames exceed it."""
    refuse = partial(at_endpoint, BUFFERED)
    for endpoint in ENDPOINTS:
        steps = BUFFERED_NUMBERS // endpoint.features + 1
        body = endpoint.body(b"[%b]" % b",".join([endpoint.frame()] * steps))
        body = body.replace(b"[1, 2, 28]", b"[1, %d, 28]" % steps)
        yield refuse(errors.BufferFull, endpoint, body)


def while_loading() -> Iterator[Refusal]:
    """Refused by a service that still loads."""
    refuse = partial(at_endpoint, LOADING)
    refuse_path = partial(at_path, LOADING)
    for endpoint in ENDPOINTS:
        yield refuse(errors.NotReady, endpoint, early=True)
    for target in ("/models/digits", "/v1/models/digits", "/v2/models/digits", "/v2/models/digits/ready",
                   "/v2/health/ready"):  # fmt: skip
        yield refuse_path(errors.NotReady, "GET", target)
    expected = (b"HTTP/1.1 503 ", b'"not ready"')
    request = http("GET", "/readyz")
    yield Refusal("503: /readyz, loading", LOADING, None, request, expected)


def while_draining() -> Iterator[Refusal]:
    """Refused by a service that drains after SIGTERM."""
    refuse_path = partial(at_path, DRAINING)
    target = "/v2/health/ready"
    yield refuse_path(errors.NotReady, "GET", target)
    expected = (b"HTTP/1.1 503 ", b'"stopping"')
    request = http("GET", "/readyz")
    yield Refusal("503: /readyz, stopping", DRAINING, None, request, expected)
