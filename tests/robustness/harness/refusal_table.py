"""Every way to be refused, by whom and in which form.

By which service: `refusal_services` has its settings. Where an entry closes its
connection, or is refused only after a time, fewer are tried in the time that there is.
"""

import gzip
import json
from collections.abc import Iterator

from service import errors
from service.registry import state_tokens
from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.endpoints import DOORS, HTTP, STREAMS, Door
from tests.robustness.harness.raw_connection import frame
from tests.robustness.harness.refusal import (
    SOCKET,
    Refused,
    at_door,
    below,
    handshake,
    http,
    plain,
)
from tests.robustness.inputs.raw_requests import UPGRADES, ask_for

# The services; those in a line are one after another the same process.
OPEN, KEYS, LIMITED, LOADING = "open", "keys", "limited", "loading"
TIMED, DRAINING = "timed", "draining"
BUFFERED, BUFFERED_NUMBERS = "buffered", 30_000
FAILING, FULL, CROWDED, STOPPING = "failing", "full", "crowded", "stopping"
STATE_KEY = "k" * 32
STEPS, MESSAGE_BYTES, BODY_BYTES = 20, 4096, 8192  # the limits of `LIMITED`
CLASSIFY, LABEL, PREDICT, EXAMPLES, INFER, LINES, SOCKETS = DOORS
NATIVE, DIALECTS = (CLASSIFY, LABEL), (PREDICT, EXAMPLES, INFER)
TOKENS = (CLASSIFY, LABEL, *STREAMS)  # they take a state
GZIP = b"Content-Encoding: gzip"
LATE = b"X-Request-Timeout-Ms: soon"
# Of each protocol something that is there, and nothing.
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


def table() -> list[Refused]:
    """All of it."""
    parts = (opened, streamed, connected, keyed, limited, timed, buffered, failing, loading, ending)  # fmt: skip
    return [one for part in parts for one in part()]


def sequence(parameters: bytes, batch: int = 1, features: int = 28) -> bytes:
    """A request of v2 whose steps go on from the last ones."""
    numbers = b",".join([b"0.5"] * batch * features)
    return SEQUENCE % (parameters, batch, features, numbers)


def state(door: Door, token: str) -> bytes:
    """A body that goes on from a state."""
    if door in STREAMS:
        return b'{"frames": [%b], "state": "%b"}' % (door.frame(), token.encode())
    more = b', "states": ["%b"]}' % token.encode()
    return door.good()[:-1] + more


def foreign() -> str:
    """A token of a network that isn't there."""
    metadata = reference.alone("vowels").metadata
    keys = state_tokens.SigningKeys([STATE_KEY.encode()])
    tokens = state_tokens.TokenSigner(keys, metadata, "00" * 32, "float32")
    return tokens.sign(state_tokens.State(1, bytes(1024)))


def opened() -> Iterator[Refused]:
    """By the service as it is; what its doors are told."""
    for door in DOORS:
        half = door.good()[:-1]
        yield at_door(OPEN, errors.InvalidJson, door, half, note="half")
        yield at_door(OPEN, errors.InvalidJson, door, b"\xff{", note="no UTF-8")
        large = door.good()[:-2].ljust(70_000)
        yield at_door(OPEN, errors.InvalidJson, door, large, note="large")
        for note, body in (
            ("a text", door.cell(b'"a"')),
            ("no float32", door.cell(b"1e39")),
            ("another width", door.body(b"[%b]" % door.frame(features=3))),
            ("empty", b"{}"),
        ):
            if door in STREAMS or note != "empty":
                yield at_door(OPEN, errors.InvalidRequest, door, body, note=note)
        early, path = door in STREAMS, UNKNOWN[door.name]
        body = door.good()
        if door in NATIVE:
            named = json.loads(body) | {"model": "none"}
            body = json.dumps(named).encode()
        yield at_door(OPEN, errors.UnknownModel, door, body, path=path, early=early)
        if door is not SOCKETS:
            zipped = b"no gzip"
            yield at_door(OPEN, errors.BadEncoding, door, zipped, GZIP, note="none")
            zipped = gzip.compress(door.good())[:-9]
            yield at_door(OPEN, errors.BadEncoding, door, zipped, GZIP, note="half")
            coding = b"Content-Encoding: br"
            kind = errors.UnsupportedMedia
            yield at_door(OPEN, kind, door, b"", coding, early=True, note="a coding")
    for door in HTTP:
        yield at_door(OPEN, errors.InvalidHeader, door, b"", LATE)
        yield plain(OPEN, errors.MethodNotAllowed, http("GET", door.path), door.name)
    for door in (*NATIVE, LINES):
        kind = errors.UnsupportedMedia
        yield at_door(OPEN, kind, door, kind=b"text/plain", early=True, note="a kind")
    for door in TOKENS:
        yield at_door(OPEN, errors.InvalidState, door, state(door, "none"))
    other = b'{"sequences": [[[0.5]]], "model": "letters"}'
    yield at_door(OPEN, errors.InvalidRequest, CLASSIFY, other, note="another task")
    for method, target in (("GET", "/nowhere"), ("POST", "/nowhere"), ("PUT", "/classify/"),
                           ("GET", "/models/digits/report/none"), ("GET", "/playground/none"),
                           ("GET", "/v2/nowhere"), ("POST", "/v2/models/digits/nowhere")):  # fmt: skip
        yield plain(OPEN, errors.NotFound, http(method, target), f"{method} {target}")
    for method, target in (("POST", "/models"), ("DELETE", "/stream"), ("GET", "/stream"), ("PATCH", "/v1/models"),
                           ("POST", "/livez"), ("POST", "/v2"), ("GET", "/v2/repository/index"), ("PROPFIND", "/classify")):  # fmt: skip
        note = f"{method} {target}"
        yield plain(OPEN, errors.MethodNotAllowed, http(method, target), note)
    for target in ("/models/none", "/models/none/report/card.md", "/v1/models/none", "/v1/models/none/metadata",
                   "/v1/models/digits/versions/9", "/v1/models/digits/labels/none", "/v2/models/none",
                   "/v2/models/none/ready", "/v2/models/none/config", "/v2/models/none/stats",
                   "/v2/models/digits/versions/9"):  # fmt: skip
        yield plain(OPEN, errors.UnknownModel, http("GET", target), target)
    for target in ("/v1/models", "/v2/health/ready"):
        yield plain(OPEN, errors.InvalidHeader, http("GET", target, b"", LATE), target)
    for method, target in (("GET", "/v1/nowhere"), ("POST", "/v1/nowhere"), ("GET", "/v1"),
                           ("POST", "/v1/models/digits:regress"), ("POST", "/v1/models/letters-live:classify")):  # fmt: skip
        note = f"{method} {target}"
        yield plain(OPEN, errors.InvalidRequest, http(method, target), note)
    for note, body in (
        ("not begun", sequence(b'"sequence_id": 1')),
        ("two at a time", sequence(b'"sequence_id": 1, "sequence_start": true', 2)),
        ("an id", sequence(b'"sequence_id": 1.5')),
        ("a timeout", sequence(b'"timeout": -1')),
    ):
        yield at_door(OPEN, errors.InvalidRequest, INFER, body, note=note)
    length = b"Inference-Header-Content-Length: %b"
    for given in (b"many", b"999999"):
        note = f"a length of {given.decode()}"
        given = length % given
        yield at_door(OPEN, errors.InvalidRequest, INFER, b"", given, note=note)
    for action in ("index", "models/digits/load", "models/digits/unload"):
        target = f"/v2/repository/{action}"
        yield plain(OPEN, errors.Forbidden, http("POST", target, b"{}"), target)
    # Those that read in both directions keep no state.
    start = sequence(b'"sequence_id": 1, "sequence_start": true', 1, 128)
    path = "/v2/models/letters/infer"
    yield at_door(OPEN, errors.NotStreamable, INFER, start, path=path)
    for door, name, features in ((CLASSIFY, "vowels", 12), (LABEL, "letters", 128)):
        row = door.frame(features=features)
        body = b'{"sequences": [[%b]], "model": "%b", "return_state": true}'
        body %= (row, name.encode())
        yield at_door(OPEN, errors.NotStreamable, door, body)


def streamed() -> Iterator[Refused]:
    """By the service as it is; streams that can't be opened, and their messages."""
    for door in STREAMS:
        for note, path in (
            ("no model", "/stream"),
            ("a parameter", "/stream?model=digits&a=b"),
            ("no number", "/stream?model=digits&top_k=0"),
        ):
            kind = errors.InvalidRequest
            yield at_door(OPEN, kind, door, path=path, early=True, note=note)
        path = "/stream?model=letters"
        yield at_door(OPEN, errors.NotStreamable, door, path=path, early=True)
    elsewhere = b"Origin: https://elsewhere.example"
    yield at_door(OPEN, errors.Forbidden, SOCKETS, b"", elsewhere, early=True)
    for target in ("/nowhere", "/classify", "/v1/stream", "/v2"):
        name, kind = f"not-found: socket {target}", errors.NotFound
        says = (b"HTTP/1.1 404 ", b"urn:unrolled:error:not-found")
        yield Refused(name, OPEN, kind, handshake(target), says)
    version, key = SOCKET[2:]
    for note, upgrade in (
        ("no version", (*SOCKET[:2], key)),
        ("another version", (*SOCKET[:2], b"Sec-WebSocket-Version: 12", key)),
        ("no key", (*SOCKET[:2], version)),
        ("a bad key", (*SOCKET[:2], version, b"Sec-WebSocket-Key: a")),
        ("two keys", (*SOCKET, key)),
    ):
        request = handshake(SOCKETS.path, upgrade=upgrade)
        yield below(OPEN, errors.BadHandshake, request, note)
    # What the protocol of WebSockets has by itself: a code in the last frame.
    opens = handshake(SOCKETS.path)
    for note, code, sent in (
        ("a message too long", 1009, frame(b" " * (2**20 + 1))),
        ("no mask", 1002, frame(b"{}", masked=False)),
        ("no UTF-8", 1007, frame(b"\xff\xfe")),
        ("an unknown kind", 1002, frame(b"{}", 0x83)),
        ("reserved bits", 1002, frame(b"{}", 0xF1)),
    ):
        says = (b"HTTP/1.1 101 ", b"\x88", code.to_bytes(2))
        yield Refused(f"{code}: socket, {note}", OPEN, None, opens, says, sent)


def connected() -> Iterator[Refused]:
    """By a connection of the service as it is, whatever is asked."""
    kind, asked = errors.MalformedHttp, http("GET", "/livez")
    chunks = http("POST", "/classify", b"").replace(
        b"Content-Length: 0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\ng\r\n"
    )
    host = b"Host: here\r\n"
    for note, request in (
        ("no host", asked.replace(host, b"")),
        ("two hosts", asked.replace(host, host * 2)),
        ("a bad host", asked.replace(b"here", b"a/b")),
        ("another version", asked.replace(b"/1.1", b"/1.2")),
        ("a bad field", asked.replace(host, host + b"A b: c\r\n")),
        ("two lengths", http("POST", "/classify", b"{}", b"Content-Length: 3")),
        ("a bad chunk", chunks),
        ("a bad chunk for v2", chunks.replace(b"/classify", b"/v2/models/digits/infer")),
        ("TLS", bytes.fromhex("16030100c8010000c40303") + bytes(200)),
        ("zeros", bytes(100)),
        ("a socket without host", ask_for(*UPGRADES["no host"])),
        ("a socket of two hosts", ask_for(*UPGRADES["two hosts"])),
    ):  # fmt: skip
        yield below(OPEN, kind, request, note)
    for note, request in (
        ("a long value", http("GET", "/livez", b"", b"A: " + b"b" * 17_000)),
        ("many fields", http("GET", "/livez", b"", *[b"A: b"] * 101)),
        ("a long target", http("GET", "/livez?" + 17_000 * "a")),
        ("a long target of v1", http("GET", "/v1/" + 17_000 * "a")),
        ("a socket with a long head", ask_for(*UPGRADES["a long head"])),
        ("a socket of many fields", ask_for(*UPGRADES["many fields"])),
    ):
        yield below(OPEN, errors.HeadTooLarge, request, note)


def keyed() -> Iterator[Refused]:
    """By one that asks for keys, and lets each do next to nothing."""
    for error, fields in ((errors.Unauthorized, ()), (errors.RateLimited, (b"X-API-Key: first",))):  # fmt: skip
        for door in DOORS:
            yield at_door(KEYS, error, door, b"", *fields, early=True)
        for target in PATHS:
            yield plain(KEYS, error, http("GET", target, b"", *fields), target)
            request = http("POST", target, b"{}", *fields)
            yield plain(KEYS, error, request, f"POST {target}")
        yield below(KEYS, error, handshake("/nowhere", *fields), "socket /nowhere")
    error, wrong = errors.Unauthorized, b"Authorization: Bearer second"
    for door in DOORS:
        yield at_door(KEYS, error, door, b"", wrong, early=True, note="a wrong key")


def limited() -> Iterator[Refused]:
    """By one with tight limits, and no time for any answer."""
    for door in DOORS:
        long = door.body(b"[%b]" % b",".join([door.frame()] * (STEPS + 1)))
        if door is INFER:
            long = long.replace(b"[1, 2, 28]", b"[1, %d, 28]" % (STEPS + 1))
        yield at_door(LIMITED, errors.TooLarge, door, long, note="steps")
        large = door.good().ljust(1 + (MESSAGE_BYTES if door is LINES else BODY_BYTES))
        if door is not SOCKETS:
            yield at_door(LIMITED, errors.TooLarge, door, large, note="bytes")
        if door in HTTP:
            large = gzip.compress(large)
            yield at_door(LIMITED, errors.TooLarge, door, large, GZIP, note="inflated")
        yield at_door(LIMITED, errors.DeadlineExceeded, door)
    two = b'{"sequences": [[[0.5]],[[0.5]],[[0.5]]]}'
    yield at_door(LIMITED, errors.TooLarge, CLASSIFY, two, note="sequences")
    asks = (b"Origin: https://elsewhere.example", b"Access-Control-Request-Method: POST")  # fmt: skip
    preflight = http("OPTIONS", "/classify", b"", *asks)
    says = (b"HTTP/1.1 400 ", b"Disallowed CORS origin")
    yield Refused("400: a page's preflight", LIMITED, None, preflight, says)


def timed() -> Iterator[Refused]:
    """By one with little time for requests, no room for streams, and a model that is
    broken; its repository is open."""
    line = b"GET /livez HTTP/1.1\r\nHost: here\r\n"
    for note, request in (
        ("half a line", b"GET /livez HT"),
        ("half a head", line),
        ("half a socket's head", ask_for(b"Host: here")[:-2]),
        *((f"half a body, {door.name}", at_door(TIMED, errors.RequestTimeout, door).request[:-1]) for door in HTTP),
        ("half a body, nowhere", http("POST", "/v1/nowhere", b"{}")[:-1]),
    ):  # fmt: skip
        if not note.endswith("nowhere"):  # which is refused at once
            yield below(TIMED, errors.RequestTimeout, request, note, slow=True)
    for door in STREAMS:
        yield at_door(TIMED, errors.TooManyStreams, door, early=True)
    start = sequence(b'"sequence_id": 1, "sequence_start": true')
    yield at_door(TIMED, errors.TooManyStreams, INFER, start)
    for name, error in (("none", errors.UnknownModel), ("vowels", errors.NotReady)):
        for action in ("load", "unload"):
            if error is errors.UnknownModel or action == "load":
                target = f"/v2/repository/models/{name}/{action}"
                yield plain(TIMED, error, http("POST", target, b"{}"), target)
    target = "/v2/repository/models/digits/load"
    page = b"Origin: https://elsewhere.example"
    yield plain(TIMED, errors.Forbidden, http("POST", target, b"{}", page), "a page")
    yield plain(TIMED, errors.InvalidJson, http("POST", target, b"{"), target)
    given = b'{"parameters": {"other": 1}}'
    yield plain(TIMED, errors.InvalidRequest, http("POST", target, given), target)
    config = json.dumps({"parameters": {"config": '{"sequence_batching": {}}'}})
    request = http("POST", target.replace("digits", "letters"), config.encode())
    yield plain(TIMED, errors.NotStreamable, request, "load letters")
    for target in ("/models/vowels", "/v1/models/vowels", "/v2/models/vowels/ready"):
        yield plain(TIMED, errors.NotReady, http("GET", target), f"broken, {target}")


def failing() -> Iterator[Refused]:
    """By one whose engine fails, then waits for ever; then by its connections."""
    marked = b"%d" % fault_injection.RAISES
    for door in DOORS:
        yield at_door(FAILING, errors.InternalError, door, door.cell(marked))
    for door in TOKENS:
        yield at_door(FAILING, errors.StateConflict, door, state(door, foreign()))
    for door in DOORS:
        yield at_door(FULL, errors.Overloaded, door)
    for note, request in (
        ("GET", http("GET", "/livez")),
        ("POST", http("POST", "/v2/models/digits/infer", b"{}")),
        ("socket", handshake(SOCKETS.path)),
    ):
        yield below(CROWDED, errors.TooManyConnections, request, note)
    for door in STREAMS:
        yield at_door(STOPPING, errors.Stopping, door, early=True)
    for note, request in (
        ("half a head", b"GET /livez HTTP/1.1\r\nHost: here\r\n"),
        ("half a body", http("POST", "/classify", b"{}")[:-1]),
        ("half a body of v2", http("POST", INFER.path, b"{}")[:-1]),
    ):
        yield below(STOPPING, errors.Stopping, request, note, slow=True)


def buffered() -> Iterator[Refused]:
    """By one that may hold few bytes: its frames take more of them than a body does."""
    for door in DOORS:
        steps = BUFFERED_NUMBERS // door.features + 1
        body = door.body(b"[%b]" % b",".join([door.frame()] * steps))
        body = body.replace(b"[1, 2, 28]", b"[1, %d, 28]" % steps)
        yield at_door(BUFFERED, errors.BufferFull, door, body)


def loading() -> Iterator[Refused]:
    """By one that still loads."""
    for door in DOORS:
        yield at_door(LOADING, errors.NotReady, door, early=True)
    for target in ("/models/digits", "/v1/models/digits", "/v2/models/digits", "/v2/models/digits/ready",
                   "/v2/health/ready"):  # fmt: skip
        yield plain(LOADING, errors.NotReady, http("GET", target), target)
    says = (b"HTTP/1.1 503 ", b'"not ready"')
    yield Refused("503: /readyz, loading", LOADING, None, http("GET", "/readyz"), says)


def ending() -> Iterator[Refused]:
    """By one that has been told to stop, and serves on."""
    target = "/v2/health/ready"
    yield plain(DRAINING, errors.NotReady, http("GET", target), f"stopping, {target}")
    says = (b"HTTP/1.1 503 ", b'"stopping"')
    request = http("GET", "/readyz")
    yield Refused("503: /readyz, stopping", DRAINING, None, request, says)
