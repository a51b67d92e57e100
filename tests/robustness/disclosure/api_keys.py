"""Who has no key gets nothing, by whatever way."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from typing import NamedTuple

import websockets.exceptions
import websockets.sync.client as web_sockets

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import DOORS, HTTP, STREAMS, refusal
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import Answer, Closed, Malformed, Wire
from tests.robustness.inputs.raw_http import METHODS, ROUTES

OPEN = ("/", "/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready")
RATE = 5
GOOD = HTTP[0].good()
# Ways to /classify that what checks keys may read otherwise than what answers.
TRICKS = (
    "//classify", "/classify/", "/%63lassify", "/classify%2f", "/./classify", "/livez/../classify", "/CLASSIFY",
    "/livez%2f..%2fclassify", "/livez/%2e%2e/classify", "/livez;/classify", "/classify;a=b", "/classify?/livez",
    "/classify%00", "/classify%20", "/livez%00/classify", "/livez//../classify", "///livez/../../classify",
    "http://livez/classify", "http://livez:80/classify", "http://here/livez/../classify", "/\\classify",
    "/classify#/livez", "/classify/livez", "/readyz/classify", "/livez%252f..%252fclassify", "/classify%3f",
)  # fmt: skip
OTHER_TRICKS = (
    "/V1/models/digits:predict", "/v1/models/digits:PREDICT", "//v1/models/digits:predict", "/v1//models/digits:predict",
    "/v1/models/digits%3apredict", "/v2/models/digits/infer/", "/v2/health/live/../../models/digits/infer",
    "/v2/health/ready/infer", "/V2/models/digits/infer", "/v2/health/live/x", "/v2/models/health/live",
)  # fmt: skip
HOSTS = ("here/livez?", "here/livez#", "livez", "here:80/livez", "")


class Offer(NamedTuple):
    """A way to say who one is."""

    name: str
    fields: tuple[tuple[str, bytes], ...]
    query: str = ""


def offers(right: str) -> Iterator[Offer]:
    """All that are none; `right` is a key that would do."""
    digest = hashlib.sha256(right.encode()).hexdigest()
    wrong = {
        "nothing": "", "blank": " ", "another": secrets.token_hex(16), "a prefix": right[:-1], "one letter": right[:1],
        "longer": right + "a", "upper case": right.upper(), "its digest": digest, "its name": "first",
        "name and digest": f"first:{digest}", "long": "a" * 8000, "null": "null", "both": f"{right},{right}",
        "quoted": f'"{right}"', "a wildcard": "*",
    }  # fmt: skip
    yield Offer("none", ())
    for name, key in wrong.items():
        yield Offer(f"X-API-Key: {name}", (("X-API-Key", key.encode()),))
        yield Offer(f"Bearer: {name}", (("Authorization", f"Bearer {key}".encode()),))
    for name, key in (("no ASCII", "clé".encode()), ("no UTF-8", b"\xff\xfe"), ("right and no ASCII", right.encode() + b"\xe9")):  # fmt: skip
        yield Offer(f"X-API-Key: {name}", (("X-API-Key", key),))
        yield Offer(f"Bearer: {name}", (("Authorization", b"Bearer " + key),))
    for scheme in ("", "Basic ", "Token ", "Bearer", "Bearer: ", "BearerX ", "Key "):
        given = (("Authorization", f"{scheme}{right}".encode()),)
        yield Offer(f"scheme {scheme!r}", given)
    other = secrets.token_hex(16).encode()
    yield Offer("two wrong", (("X-API-Key", other), ("X-API-Key", b"a")))
    yield Offer("wrong in both", (("X-API-Key", other), ("Authorization", b"Bearer a")))
    for name in ("X-Api_Key", "Api-Key", "Proxy-Authorization", "X-Authorization", "Cookie", "X-Forwarded-For", "From"):  # fmt: skip
        yield Offer(f"in {name}", ((name, f"Bearer {right}".encode()),))
        yield Offer(f"in {name}, bare", ((name, right.encode()),))
    for name in ("key", "api_key", "api-key", "X-API-Key", "token", "access_token", "authorization"):  # fmt: skip
        yield Offer(f"in the query as {name}", (), f"{name}={right}")


def _request(
    method: str, target: str, offer: Offer, body: bytes = GOOD, host: str = "here"
) -> bytes:
    target += f"{'&' if '?' in target else '?'}{offer.query}" if offer.query else ""
    fields = b"".join(b"%b: %b\r\n" % (k.encode(), v) for k, v in offer.fields)
    fields += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n".encode()
    return head + fields + b"\r\n" + body


@row("E3", "Who has no key gets nothing", full=1_000, fast=10)
def keys(tally: Tally, amount: int) -> None:
    """Without a right key everything but health is 401, in each endpoint's form, whatever
    way it is asked; nothing is computed. Each key of a rotation opens everything; who
    asks more often than a key may is 429."""
    first, second = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (first, second)]
    told = f"first:{digests[0]},{digests[1]}"
    with serving(tally, api_keys=told) as service:
        right = Offer("right", (("X-API-Key", first.encode()),))
        with Wire(service.port) as wire:
            steps = _steps(wire, right)
            none = Offer("none", ())
            for path in OPEN:
                status = _asked(wire, _request("GET", path, none, b"")).status
                tally.check(status == 200, f"{path} without a key: {status}")
            for method in METHODS:
                for path in (one for one in ROUTES if one not in OPEN):
                    _refused(tally, wire, _request(method, path, none), path, method)
            for door in HTTP:
                for offer in list(offers(first))[:amount]:
                    data = _request("POST", door.path, offer, door.good())
                    _refused(tally, wire, data, f"{door.path}, {offer.name}")
            for target in (*TRICKS, *OTHER_TRICKS):
                infer = "/v2" in target.lower()
                body = HTTP[4 if infer else 0].good()
                data = _request("POST", target, none, body)
                _refused(tally, wire, data, target, malformed=True)
            for host in HOSTS:
                data = _request("POST", "/classify", none, host=host)
                _refused(tally, wire, data, f"host {host!r}", malformed=True)
            _handshakes(tally, service, first)
            more = _steps(wire, right) - steps
            tally.check(more == 0, f"the engines took {more} steps")
            for name, key in (("first", first), ("second", second)):
                _opened(tally, service, wire, name, key)
    with serving(tally, api_keys=told, rate_per_key=RATE) as service:
        _rated(tally, service, first, second)


def _asked(wire: Wire, data: bytes, method: str = "POST") -> Answer:
    """Once more where the connection was closed after the last."""
    try:
        wire.send(data)
        return wire.answer(method)
    except Closed:
        wire.close()
        wire.send(data)
        return wire.answer(method)


def _refused(
    tally: Tally,
    wire: Wire,
    data: bytes,
    where: str,
    method: str = "POST",
    *,
    malformed: bool = False,
) -> None:
    """`malformed`: or 400, where it is no request for another reason too."""
    where = f"{method} {where:.100}"
    try:
        answer = _asked(wire, data, method)
    except (Closed, Malformed, TimeoutError) as error:
        wire.close()
        tally.check(malformed and type(error) is Closed, f"{where}: {error!r}")
        return
    if answer.status == 400 and malformed:
        wire.close()
        return
    tally.check(answer.status == 401, f"{where}: {answer.status}, not 401")
    challenge = answer.headers.get("www-authenticate", "")
    tally.check(challenge.startswith("Bearer"), f"{where}: challenges by {challenge!r}")
    if method != "HEAD" and answer.status >= 400:
        refusal(tally, where, answer, dialect=answer.kind == "application/json")


def _handshakes(tally: Tally, service: Service, right: str) -> None:
    for offer in offers(right):
        fields = {name: value.decode("latin-1") for name, value in offer.fields}
        if any(not value.isascii() or name == "Cookie" for name, value in fields.items()):  # fmt: skip
            continue  # which the client can't send
        url = f"ws://127.0.0.1:{service.port}/stream?model=digits&{offer.query}"
        try:
            with web_sockets.connect(url, additional_headers=fields, proxy=None):
                status = 101
        except websockets.exceptions.InvalidStatus as error:
            status = error.response.status_code
        except websockets.exceptions.InvalidHandshake as error:
            status = repr(error)
        tally.check(status == 401, f"WebSocket, {offer.name}: {status}")


def _opened(tally: Tally, service: Service, wire: Wire, name: str, key: str) -> None:
    """Each key by each header opens all."""
    for header, value in (("X-API-Key", key), ("Authorization", f"Bearer {key}"), ("authorization", f"bearer {key}")):  # fmt: skip
        offer = Offer(name, ((header, value.encode()),))
        for door in HTTP:
            data = _request("POST", door.path, offer, door.good())
            status = _asked(wire, data).status
            tally.check(status == 200, f"{door.name} with {name} in {header}: {status}")
        for path in ("/models", "/metrics", "/openapi.json", "/v1/models", "/v2"):
            status = _asked(wire, _request("GET", path, offer, b""), "GET").status
            tally.check(status == 200, f"{path} with {name} in {header}: {status}")
        url = f"ws://127.0.0.1:{service.port}{STREAMS[0].path}"
        with web_sockets.connect(url, additional_headers={header: value}, proxy=None) as socket:  # fmt: skip
            socket.send(DOORS[-1].good())
            tally.check("label" in str(socket.recv(5)), f"no stream with {name}")


def _rated(tally: Tally, service: Service, first: str, second: str) -> None:
    """Who asks too often waits; others and health don't."""
    one, other = (Offer("", (("X-API-Key", key.encode()),)) for key in (first, second))
    with Wire(service.port) as wire:
        for door in HTTP:
            refused = 0
            for _ in range(10 * RATE):
                answer = _asked(wire, _request("POST", door.path, one, door.good()))
                tally.check(
                    answer.status in (200, 429), f"{door.name}: {answer.status}"
                )
                if answer.status == 429:
                    refused += 1
                    refusal(tally, f"{door.name} 429", answer, dialect=door.dialect)
                    after = answer.headers.get("retry-after", "")
                    good = after.isdecimal() and 1 <= int(after) <= 60
                    tally.check(good, f"{door.name}: Retry-After {after!r}")
                    slug = json.loads(answer.body).get("type", "")
                    good = door.dialect or slug.endswith("rate-limited")
                    tally.check(good, f"{door.name}: {slug}")
            tally.check(refused > 5 * RATE, f"{door.name}: only {refused} refused")
        data = _request("POST", "/classify", other)
        tally.check(_asked(wire, data).status == 200, "another key has to wait, too")
        status = _asked(wire, _request("GET", "/livez", one, b""), "GET").status
        tally.check(status == 200, f"/livez is {status}")
        time.sleep(1.5)
        data = _request("POST", "/classify", one)
        status = _asked(wire, data).status
        tally.check(status == 200, f"after a while it is still {status}")


def _steps(wire: Wire, right: Offer) -> float:
    text = _asked(wire, _request("GET", "/metrics", right, b""), "GET").text
    lines = [one for one in text.splitlines() if one.startswith("unrolled_steps_total")]
    return sum(float(one.rpartition(" ")[2]) for one in lines)
