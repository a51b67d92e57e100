"""What the service does with bytes that are no request."""

import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import PROBLEM, refusal
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import Answer, Closed, Malformed, Wire
from tests.robustness.inputs.raw_requests import HOST, Raw, every

SEED = 43859
SECONDS = 2  # for a head and a body here
HANGS = SECONDS + 1
AT_A_TIME = 24
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")
ROUTES = (
    "/", "/livez", "/readyz", "/healthz", "/metrics", "/models", "/models/digits", "/openapi.json",
    "/models/digits/report/card.md", "/classify", "/label", "/stream", "/docs", "/v1/models",
    "/v1/models/digits", "/v1/models/digits/metadata", "/v1/models/digits:predict", "/v2",
    "/v1/models/digits:classify", "/v1/models/digits/versions/1:predict", "/v2/health/live",
    "/v2/health/ready", "/v2/models", "/v2/models/digits", "/v2/models/digits/infer",
    "/v2/models/digits/config", "/v2/models/stats", "/v2/repository/index", "/nowhere",
)  # fmt: skip
PIECES = (
    b"\x00", b"\r", b"\n", b"\r\n", b"\t", b" ", b"%00", b"%0a", b"%0d%0a", b"%2e%2e/", b"../", b"//", b"\\",
    b"?", b"#", b";", b":", b"@", b"%", b"%ff", b"\xff", b"\xe2\x80\xa8", b"[", b"]", b"{", b"|", b"'", b'"', b"<",
    b"a" * 300, b"%41" * 200, b"http://a/", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Host: there\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n",
    b"Content-Encoding: gzip\r\n", b"Content-Type: a/b\r\n", b"X-Request-ID: \x1b[31m\r\n", b" HTTP/1.1\r\n\r\n",
)  # fmt: skip


def mutated(amount: int) -> Iterable[Raw]:
    """Requests to every route by every method, changed in their heads."""
    chance = random.Random(SEED)
    pairs = [(method, route) for method in METHODS for route in ROUTES]
    for number in range(amount):
        method, route = pairs[number % len(pairs)]
        line = f"{method} {route} HTTP/1.1\r\n".encode()
        head = bytearray(line + HOST + b"Accept: */*\r\nX-Request-ID: a\r\n")
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(len(head) - 2)
            kind = chance.randrange(4)
            if kind == 0:
                head[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                del head[at : at + chance.randint(1, 8)]
            else:
                head[at:at] = chance.choice(PIECES)
        yield Raw(f"{number}: {bytes(head)!r}", bytes(head) + b"\r\n", frozenset())


Judged = list[tuple[bool, str]]


def judge(port: int, raw: Raw) -> tuple[Judged, list[Answer]]:
    """What was wrong with the answers to it, and these."""
    judged: Judged = []
    answers: list[Answer] = []
    where = f"{raw.name:.120}"
    with Wire(port, HANGS) as wire:
        try:
            wire.send(raw.data)
            for _ in range(raw.good):
                answers.append(wire.answer("GET"))
                status = answers[-1].status
                judged.append((status == 200, f"{where}: good is {status}"))
            answers.append(_answer(wire, raw))
            status = answers[-1].status
            fits = status in raw.statuses if raw.statuses else 200 <= status < 500
            told = f"{where}: {status}, not {sorted(raw.statuses)}"
            judged.append((fits, f"{told} {answers[-1].text:.60}"))
            if raw.statuses == {400} and status == 400:  # what follows is not ours
                judged.append((wire.ends(), f"{where}: does not close after 400"))
        except Closed:
            judged.append((raw.may_close, f"{where}: closed"))
        except TimeoutError:
            judged.append((False, f"{where}: hangs for {HANGS} s"))
        except Malformed as error:
            judged.append((False, f"{where}: malformed: {error}"))
    return judged, answers


def _answer(wire: Wire, raw: Raw) -> Answer:
    # Of HEAD only where it has come through the changes.
    return wire.answer("HEAD" if raw.data.startswith(b"HEAD ") else "GET")


def tried(
    tally: Tally,
    service: Service,
    requests: Iterable[Raw],
    seen: Callable[[Answer], None] = lambda answer: None,
) -> None:
    """Judge them, many at a time."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        made = list(requests)
        results = pool.map(lambda raw: judge(service.port, raw), made)
        for raw, (judged, answers) in zip(made, results, strict=True):
            for holds, told in judged:
                tally.check(holds, told)
            for answer in answers:
                seen(answer)
                if answer.status < 400 or not answer.body:
                    continue
                where = f"{raw.name:.100} {answer.status}"
                refusal(tally, where, answer, dialect=answer.kind != PROBLEM)


@row("A4", "Bytes that are no request, and requests in dispute", full=4_000)
def raw_requests(tally: Tally, amount: int) -> None:
    """Whatever comes is refused with 4xx or a close, never later than a head may take,
    never by a failure; every answer is well-formed, and nothing in dispute between two
    readers of HTTP is taken."""
    settings = {"header_seconds": SECONDS, "body_seconds": SECONDS}
    with serving(tally, **settings) as service:
        name = "http_server_request_duration_seconds_count"
        before = service.metric(name, 'status="5')  # while it was loading
        made = every()
        tried(tally, service, made)
        tried(tally, service, mutated(amount))
        tally.figure("hand-made", len(made))
        tally.figure("changed at random", amount)
        failed = service.metric(name, 'status="5') - before
        tally.check(failed == 0, f"{failed} answers of 5xx")
