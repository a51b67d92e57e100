"""Row E3: nothing is served without an API key, however it is requested."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from typing import NamedTuple

import websockets.exceptions
import websockets.sync.client

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import (
    HTTP,
    INFER,
    SOCKET,
    STREAMS,
    check_refusal,
)
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import (
    ConnectionClosed,
    MalformedResponse,
    StrictConnection,
)
from tests.robustness.inputs.raw_http import METHODS, ROUTES

PUBLIC = ("/", "/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready")
PROTECTED = ("/models", "/metrics", "/openapi.json", "/v1/models", "/v2")
RATE = 5
VALID = HTTP[0].valid_body()
# Paths to /classify that the authentication might parse differently from the router.
TRICKS = (
    "//classify", "/classify/", "/%63lassify", "/classify%2f", "/./classify", "/livez/../classify", "/CLASSIFY",
    "/livez%2f..%2fclassify", "/livez/%2e%2e/classify", "/livez;/classify", "/classify;a=b", "/classify?/livez",
    "/classify%00", "/classify%20", "/livez%00/classify", "/livez//../classify", "///livez/../../classify",
    "http://livez/classify", "http://livez:80/classify", "http://here/livez/../classify", "/\\classify",
    "/classify#/livez", "/classify/livez", "/readyz/classify", "/livez%252f..%252fclassify", "/classify%3f",
    "/V1/models/digits:predict", "/v1/models/digits:PREDICT", "//v1/models/digits:predict", "/v1//models/digits:predict",
    "/v1/models/digits%3apredict", "/v2/models/digits/infer/", "/v2/health/live/../../models/digits/infer",
    "/v2/health/ready/infer", "/V2/models/digits/infer", "/v2/health/live/x", "/v2/models/health/live",
)  # fmt: skip
HOSTS = ("here/livez?", "here/livez#", "livez", "here:80/livez", "")
OTHER_HEADERS = ("X-Api_Key", "Api-Key", "Proxy-Authorization", "X-Authorization", "Cookie", "X-Forwarded-For", "From")  # fmt: skip
QUERIES = ("key", "api_key", "api-key", "X-API-Key", "token", "access_token", "authorization")  # fmt: skip


class Credentials(NamedTuple):
    """Header lines and a query."""

    name: str
    fields: tuple[tuple[str, bytes], ...] = ()
    query: str = ""


NONE = Credentials("none")


def api_key(key: str) -> Credentials:
    return Credentials("right", (("X-API-Key", key.encode()),))


def invalid_credentials(right: str) -> Iterator[Credentials]:
    """Credentials that must be refused, though some contain the right key."""
    digest = hashlib.sha256(right.encode()).hexdigest()
    key = right.encode()
    wrong = {
        "nothing": "", "blank": " ", "another": secrets.token_hex(16), "a prefix": right[:-1], "one letter": right[:1],
        "longer": right + "a", "upper case": right.upper(), "its digest": digest, "its name": "first",
        "name and digest": f"first:{digest}", "long": "a" * 8000, "null": "null", "both": f"{right},{right}",
        "quoted": f'"{right}"', "a wildcard": "*",
    }  # fmt: skip
    values = {name: text.encode() for name, text in wrong.items()} | {
        "not ASCII": "clé".encode(), "not UTF-8": b"\xff\xfe", "right and not ASCII": key + b"\xe9",
    }  # fmt: skip
    yield NONE
    for name, value in values.items():
        yield Credentials(f"X-API-Key: {name}", (("X-API-Key", value),))
        yield Credentials(f"Bearer: {name}", (("Authorization", b"Bearer " + value),))
    for scheme in ("", "Basic ", "Token ", "Bearer", "Bearer: ", "BearerX ", "Key "):
        fields = (("Authorization", scheme.encode() + key),)
        yield Credentials(f"scheme {scheme!r}", fields)
    other = secrets.token_hex(16).encode()
    yield Credentials("two wrong", (("X-API-Key", other), ("X-API-Key", b"a")))
    both = (("X-API-Key", other), ("Authorization", b"Bearer a"))
    yield Credentials("wrong in both", both)
    for name in OTHER_HEADERS:
        yield Credentials(f"in {name}", ((name, b"Bearer " + key),))
        yield Credentials(f"in {name}, bare", ((name, key),))
    for name in QUERIES:
        yield Credentials(f"in the query as {name}", (), f"{name}={right}")


def request(
    method: str,
    target: str,
    credentials: Credentials,
    body: bytes = VALID,
    host: str = "here",
) -> bytes:
    if credentials.query:
        target += f"{'&' if '?' in target else '?'}{credentials.query}"
    pairs = credentials.fields
    fields = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in pairs)
    fields += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n".encode()
    return head + fields + b"\r\n" + body


@row("E3", "Nothing is served without an API key", full=1_000, fast=10)
def api_keys(tally: Tally, amount: int) -> None:
    """Without a valid key everything but health gets 401, in its API's form, however it
    is requested, and nothing is computed. Each key of a rotation gives full access;
    more requests than a key's rate get 429."""
    keys = [secrets.token_urlsafe(24) for _ in range(2)]
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    setting = f"first:{digests[0]},{digests[1]}"
    with serving(tally, api_keys=setting) as service:
        right = api_key(keys[0])
        with StrictConnection(service.port) as connection:
            steps = _computed_steps(connection, right)
            for path in PUBLIC:
                status = _status(connection, request("GET", path, NONE, b""))
                tally.check(status == 200, f"{path} without a key: {status}")
            for method in METHODS:
                for path in (path for path in ROUTES if path not in PUBLIC):
                    data = request(method, path, NONE)
                    _check_401(tally, connection, data, path, method)
            for endpoint in HTTP:
                for credentials in list(invalid_credentials(keys[0]))[:amount]:
                    body = endpoint.valid_body()
                    data = request("POST", endpoint.path, credentials, body)
                    where = f"{endpoint.path}, {credentials.name}"
                    _check_401(tally, connection, data, where)
            for target in TRICKS:
                body = (INFER if "/v2" in target.lower() else HTTP[0]).valid_body()
                data = request("POST", target, NONE, body)
                _check_401(tally, connection, data, target, malformed=True)
            for host in HOSTS:
                data = request("POST", "/classify", NONE, host=host)
                _check_401(tally, connection, data, f"host {host!r}", malformed=True)
            _check_handshakes(tally, service, keys[0])
            more = _computed_steps(connection, right) - steps
            tally.check(more == 0, f"the engines took {more} steps")
            for name, key in zip(("first", "second"), keys, strict=True):
                _check_access(tally, service, connection, name, key)
    with serving(tally, api_keys=setting, rate_per_key=RATE) as service:
        _check_rate(tally, service, *keys)


def _status(connection: StrictConnection, data: bytes, method: str = "POST") -> int:
    return connection.raw_request(data, method).status


def _check_401(
    tally: Tally,
    connection: StrictConnection,
    data: bytes,
    where: str,
    method: str = "POST",
    *,
    malformed: bool = False,
) -> None:
    """Check for 401; `malformed`: or for 400 or a close, as it is no valid request."""
    where = f"{method} {where:.100}"
    try:
        response = connection.raw_request(data, method)
    except (ConnectionClosed, MalformedResponse, TimeoutError) as error:
        connection.close()
        closed = malformed and type(error) is ConnectionClosed
        tally.check(closed, f"{where}: {error!r}")
        return
    if response.status == 400 and malformed:
        connection.close()
        return
    tally.check(response.status == 401, f"{where}: {response.status}, not 401")
    challenge = response.headers.get("www-authenticate", "")
    tally.check(challenge.startswith("Bearer"), f"{where}: challenges by {challenge!r}")
    if method != "HEAD" and response.status >= 400:
        compat = response.media_type == "application/json"
        check_refusal(tally, where, response, compat=compat)


def _check_handshakes(tally: Tally, service: Service, right: str) -> None:
    for credentials in invalid_credentials(right):
        fields = {name: value.decode("latin-1") for name, value in credentials.fields}
        if any(not v.isascii() or k == "Cookie" for k, v in fields.items()):
            continue  # the client cannot send it
        path = f"/stream?model=digits&{credentials.query}"
        url = f"ws://127.0.0.1:{service.port}{path}"
        status: object = 101
        try:
            with websockets.sync.client.connect(url, additional_headers=fields, proxy=None):  # fmt: skip
                pass
        except websockets.exceptions.InvalidStatus as error:
            status = error.response.status_code
        except websockets.exceptions.InvalidHandshake as error:
            status = repr(error)
        tally.check(status == 401, f"WebSocket, {credentials.name}: {status}")


def _check_access(
    tally: Tally, service: Service, connection: StrictConnection, name: str, key: str
) -> None:
    """A key gives full access, by each header."""
    bearer = f"bearer {key}"
    for header, value in (("X-API-Key", key), ("Authorization", f"Bearer {key}"), ("authorization", bearer)):  # fmt: skip
        credentials = Credentials(name, ((header, value.encode()),))
        where = f"with {name} in {header}"
        for endpoint in HTTP:
            data = request("POST", endpoint.path, credentials, endpoint.valid_body())
            status = _status(connection, data)
            tally.check(status == 200, f"{endpoint.name} {where}: {status}")
        for path in PROTECTED:
            data = request("GET", path, credentials, b"")
            status = _status(connection, data, "GET")
            tally.check(status == 200, f"{path} {where}: {status}")
        url = f"ws://127.0.0.1:{service.port}{STREAMS[0].path}"
        with websockets.sync.client.connect(url, additional_headers={header: value}, proxy=None) as stream:  # fmt: skip
            stream.send(SOCKET.valid_body())
            tally.check("label" in str(stream.recv(5)), f"no stream {where}")


def _check_rate(tally: Tally, service: Service, first: str, second: str) -> None:
    """A key beyond its rate has to wait; other keys and health do not."""
    key, other = api_key(first), api_key(second)
    with StrictConnection(service.port) as connection:
        for endpoint in HTTP:
            name, refused = endpoint.name, 0
            data = request("POST", endpoint.path, key, endpoint.valid_body())
            for _ in range(10 * RATE):
                response = connection.raw_request(data)
                status = response.status
                tally.check(status in (200, 429), f"{name}: {status}")
                if status == 429:
                    refused += 1
                    compat = endpoint.compat
                    check_refusal(tally, f"{name} 429", response, compat=compat)
                    after = response.headers.get("retry-after", "")
                    valid = after.isdecimal() and 1 <= int(after) <= 60
                    tally.check(valid, f"{name}: Retry-After {after!r}")
                    slug = json.loads(response.body).get("type", "")
                    valid = compat or slug.endswith("rate-limited")
                    tally.check(valid, f"{name}: {slug}")
            tally.check(refused > 5 * RATE, f"{name}: only {refused} refused")
        status = _status(connection, request("POST", "/classify", other))
        tally.check(status == 200, f"another key gets {status}")
        status = _status(connection, request("GET", "/livez", key, b""), "GET")
        tally.check(status == 200, f"/livez is {status}")
        time.sleep(1.5)
        status = _status(connection, request("POST", "/classify", key))
        tally.check(status == 200, f"after a while it is still {status}")


def _computed_steps(connection: StrictConnection, right: Credentials) -> float:
    data = request("GET", "/metrics", right, b"")
    lines = connection.raw_request(data, "GET").text.splitlines()
    samples = [line for line in lines if line.startswith("unrolled_steps_total")]
    return sum(float(sample.rpartition(" ")[2]) for sample in samples)
