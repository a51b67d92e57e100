"""Row A4: invalid HTTP, ambiguous requests, and requests with mutated heads."""

import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import PROBLEM, check_refusal
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import (
    ConnectionClosed,
    MalformedResponse,
    Response,
    StrictConnection,
)
from tests.robustness.inputs.raw_requests import HOST, RawRequest, all_requests

SEED = 43859
SECONDS = 2  # the service's timeout for a head, and for a body
HANGS = SECONDS + 1
CONCURRENT = 24
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")
ROUTES = (
    "/", "/livez", "/readyz", "/healthz", "/metrics", "/models", "/models/digits", "/openapi.json",
    "/models/digits/report/card.md", "/classify", "/label", "/stream", "/docs", "/v1/models",
    "/v1/models/digits", "/v1/models/digits/metadata", "/v1/models/digits:predict", "/v2",
    "/v1/models/digits:classify", "/v1/models/digits/versions/1:predict", "/v2/health/live",
    "/v2/health/ready", "/v2/models", "/v2/models/digits", "/v2/models/digits/infer",
    "/v2/models/digits/config", "/v2/models/stats", "/v2/repository/index", "/nowhere",
)  # fmt: skip
INSERTIONS = (
    b"\x00", b"\r", b"\n", b"\r\n", b"\t", b" ", b"%00", b"%0a", b"%0d%0a", b"%2e%2e/", b"../", b"//", b"\\",
    b"?", b"#", b";", b":", b"@", b"%", b"%ff", b"\xff", b"\xe2\x80\xa8", b"[", b"]", b"{", b"|", b"'", b'"', b"<",
    b"a" * 300, b"%41" * 200, b"http://a/", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Host: there\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n",
    b"Content-Encoding: gzip\r\n", b"Content-Type: a/b\r\n", b"X-Request-ID: \x1b[31m\r\n", b" HTTP/1.1\r\n\r\n",
)  # fmt: skip


def mutated_heads(amount: int) -> Iterable[RawRequest]:
    """Requests to every route with every method, with mutated heads."""
    rng = random.Random(SEED)
    pairs = [(method, route) for method in METHODS for route in ROUTES]
    for number in range(amount):
        method, route = pairs[number % len(pairs)]
        line = f"{method} {route} HTTP/1.1\r\n".encode()
        head = bytearray(line + HOST + b"Accept: */*\r\nX-Request-ID: a\r\n")
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(len(head) - 2)
            kind = rng.randrange(4)
            if kind == 0:
                head[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del head[place : place + rng.randint(1, 8)]
            else:
                head[place:place] = rng.choice(INSERTIONS)
        yield RawRequest(
            f"{number}: {bytes(head)!r}", bytes(head) + b"\r\n", frozenset()
        )


Checks = list[tuple[bool, str]]


def try_request(port: int, raw: RawRequest) -> tuple[Checks, list[Response]]:
    """Send a request: the checks, and the responses."""
    checks: Checks = []
    responses: list[Response] = []
    where = f"{raw.name:.120}"
    # The method matters only if it survived the mutation.
    method = "HEAD" if raw.data.startswith(b"HEAD ") else "GET"
    with StrictConnection(port, HANGS) as connection:
        try:
            connection.send(raw.data)
            for _ in range(raw.valid):
                responses.append(connection.read_response("GET"))
                status = responses[-1].status
                checks.append(
                    (status == 200, f"{where}: a valid request gets {status}")
                )
            responses.append(connection.read_response(method))
            status, text = responses[-1].status, responses[-1].text
            allowed = status in raw.statuses if raw.statuses else 200 <= status < 500
            message = f"{where}: {status}, not {sorted(raw.statuses)} {text:.60}"
            checks.append((allowed, message))
            if raw.statuses == {400} and status == 400:  # what follows is not HTTP
                closed = connection.is_closed_by_server()
                checks.append((closed, f"{where}: does not close after 400"))
        except ConnectionClosed:
            checks.append((raw.may_close, f"{where}: closed"))
        except TimeoutError:
            checks.append((False, f"{where}: hangs for {HANGS} s"))
        except MalformedResponse as error:
            checks.append((False, f"{where}: malformed: {error}"))
    return checks, responses


def try_requests(
    port: int, requests: Iterable[RawRequest]
) -> Iterable[tuple[RawRequest, Checks, list[Response]]]:
    """Send requests concurrently, since some wait for a timeout."""
    requests = list(requests)
    with ThreadPoolExecutor(CONCURRENT) as pool:
        results = pool.map(lambda raw: try_request(port, raw), requests)
        for raw, (checks, responses) in zip(requests, results, strict=True):
            yield raw, checks, responses


@row("A4", "Invalid HTTP, ambiguous and mutated requests", full=4_000)
def raw_requests(tally: Tally, amount: int) -> None:
    """Invalid requests get 4xx or a close, never later than the timeout and never a
    5xx; every response is well-formed; ambiguous requests are refused."""
    settings = {"header_seconds": SECONDS, "body_seconds": SECONDS}
    with serving(tally, **settings) as service:
        name = "http_server_request_duration_seconds_count"
        before = service.metric(name, 'status="5')  # from while it was loading
        handmade = all_requests()
        requests = [*handmade, *mutated_heads(amount)]
        for raw, checks, responses in try_requests(service.port, requests):
            for passed, message in checks:
                tally.check(passed, message)
            for response in responses:
                if response.status >= 400 and response.body:
                    where = f"{raw.name:.100} {response.status}"
                    compat = response.media_type != PROBLEM
                    check_refusal(tally, where, response, compat=compat)
        tally.figure("handmade", len(handmade))
        tally.figure("mutated", amount)
        failed = service.metric(name, 'status="5') - before
        tally.check(failed == 0, f"{failed} responses with 5xx")
