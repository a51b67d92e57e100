"""Every kind of answer that the attacks get, for rows that look at all of them."""

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.robustness.harness.endpoints import DOORS, HTTP, STREAMS, Door
from tests.robustness.harness.service import Service
from tests.robustness.harness.strict_http import Answer, Wire
from tests.robustness.inputs.decompression import broken
from tests.robustness.inputs.malformed_bodies import headers, visited
from tests.robustness.inputs.nested_bodies import nested
from tests.robustness.inputs.raw_http import AT_A_TIME, judge, mutated
from tests.robustness.inputs.raw_requests import every
from tests.robustness.inputs.tensor_shapes import bombs, tensors

# Requests that a path or a method is at fault for.
NOWHERE = (
    ("GET", "/nowhere"), ("POST", "/nowhere"), ("GET", "/classify"), ("PUT", "/label"), ("DELETE", "/models"),
    ("PATCH", "/classify"), ("GET", "/stream"), ("GET", "/stream?model=nobody"), ("GET", "/models/nobody"),
    ("GET", "/models/nobody/report/card.md"), ("GET", "/models/digits/report/nothing.png"),
    ("GET", "/models/digits/report/%2e%2e%2fbundle.json"), ("GET", "/models/..%2f..%2fetc%2fpasswd"),
    ("GET", "/models/digits@9"), ("GET", "/models/%00"), ("GET", "/models/%ff%fe"), ("POST", "/models/digits"),
    ("POST", "/livez"), ("POST", "/metrics"), ("GET", "/v1/nowhere"), ("GET", "/v1/models/nobody"),
    ("GET", "/v1/models/digits:predict"), ("POST", "/v1/models/digits:regress"), ("POST", "/v1/models/nobody:predict"),
    ("GET", "/v1/models/nobody/metadata"), ("GET", "/v1/models/digits/versions/9"), ("GET", "/v2/nowhere"),
    ("GET", "/v2/models/nobody"), ("GET", "/v2/models/digits/infer"), ("POST", "/v2/models/nobody/infer"),
    ("GET", "/v2/models/digits/versions/9"), ("POST", "/v2/repository/index"), ("GET", "/v2/models/nobody/config"),
    ("POST", "/v2/repository/models/digits/load"), ("POST", "/v2/models/digits/versions/9/infer"),
    ("POST", "/stream"), ("POST", "/stream?model=nobody"), ("POST", "/stream?model=letters"),
    ("POST", "/stream?model=digits&top_k=0"), ("POST", "/stream?model=digits&top_k=a"), ("POST", "/stream?a=b"),
    ("POST", "/stream?model=digits&model=letters"), ("POST", "/stream?model=digits&a=%ff"),
)  # fmt: skip


class Seen(NamedTuple):
    """An answer, and what was asked: in which way, where."""

    method: str
    path: str  # without its query; empty: it is of none
    where: str
    dialect: bool
    answer: Answer


def seen(service: Service, amount: int, *, heads: bool = True) -> Iterator[Seen]:
    """All of them; of the malformed bodies `amount` at each door.

    Args:
        heads: also what comes of bytes that are no request.
    """
    port = service.port
    for door, case, answer in visited(port, amount):
        yield _of(door, case.name, answer)
    for door in DOORS:
        with door.visit(port, 10) as visit:
            for name, body in nested(door, 1_100):
                yield _of(door, name, visit.ask(body))
            if door.name != "infer":
                for bomb in bombs(door):
                    if len(bomb.body) < 700_000 or amount > 100:
                        yield _of(door, bomb.name, visit.ask(bomb.body))
    with Wire(port) as wire:
        for door in HTTP:
            for coding in ("gzip", "deflate", "br"):
                for name, body in broken(coding, door.good()):
                    given = {"Content-Encoding": coding}
                    answer = wire.request("POST", door.path, body, given)
                    yield _of(door, f"{coding}, {name}", answer)
            bomb = gzip.compress(bytes(9 * 2**20))
            given = {"Content-Encoding": "gzip"}
            yield _of(door, "bomb", wire.request("POST", door.path, bomb, given))
            for header, value, _ in headers(door):
                answer = wire.request("POST", door.path, door.good(), {header: value})
                yield _of(door, f"{header} {value:.10}", answer)
        infer = next(door for door in HTTP if door.name == "infer")
        for one in tensors():
            answer = wire.request("POST", infer.path, one.body, one.headers)
            yield _of(infer, one.name, answer)
        for method, target in NOWHERE:
            answer = wire.request(method, target)
            path = target.partition("?")[0]
            dialect = path.startswith(("/v1/", "/v2/"))
            yield Seen(method, path, f"{method} {target}", dialect, answer)
    if not heads:
        return
    # Some wait for a time to be over: all at once.
    raws = [*every(), *mutated(amount)]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        judged = pool.map(lambda raw: judge(port, raw), raws)
        for raw, (_, answers) in zip(raws, judged, strict=True):
            for answer in answers:
                yield Seen("", "", raw.name[:100], False, answer)


def _of(door: Door, name: str, answer: Answer) -> Seen:
    # What a stream tells is no status of a path's.
    path = "" if door in STREAMS else door.path
    return Seen("POST", path, f"{door.name}, {name}", door.dialect, answer)
