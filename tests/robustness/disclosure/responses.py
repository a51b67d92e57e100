"""Every kind of response that other rows get, for rows that check all of them."""

import gzip
from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.endpoints import (
    ENDPOINTS,
    HTTP,
    INFER,
    STREAMS,
    Endpoint,
)
from tests.robustness.harness.service import MIB, Service
from tests.robustness.harness.strict_http import Response, StrictConnection
from tests.robustness.inputs import malformed_bodies, raw_http, tensor_shapes
from tests.robustness.inputs.decompression import broken
from tests.robustness.inputs.large_bodies import nested
from tests.robustness.inputs.raw_requests import all_requests

# Requests with a wrong path or method.
WRONG_PATHS = (
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


class Exchange(NamedTuple):
    """A request by method and path, and its response."""

    method: str
    path: str  # without its query; empty: raw bytes or a stream's message
    where: str
    response: Response


def all_responses(
    service: Service, amount: int, *, raw: bool = True
) -> Iterator[Exchange]:
    """All kinds of responses; to `amount` malformed bodies of each endpoint.

    Args:
        raw: also those to invalid HTTP.
    """
    port = service.port
    for endpoint, case, response in malformed_bodies.responses(port, amount):
        yield _exchange(endpoint, case.name, response)
    for endpoint in ENDPOINTS:
        with endpoint.connect(port, 10) as client:
            for name, body in nested(endpoint, 1_100):
                yield _exchange(endpoint, name, client.send(body))
            if endpoint is not INFER:
                for case in tensor_shapes.sequences(endpoint):
                    if len(case.body) < 700_000 or amount > 100:
                        yield _exchange(endpoint, case.name, client.send(case.body))
    with StrictConnection(port) as connection:

        def post(
            endpoint: Endpoint, name: str, body: bytes, fields: dict[str, str]
        ) -> Exchange:
            response = connection.request("POST", endpoint.path, body, fields)
            return _exchange(endpoint, name, response)

        for endpoint in HTTP:
            valid = endpoint.valid_body()
            for coding in ("gzip", "deflate", "br"):
                for name, body in broken(coding, valid):
                    fields = {"Content-Encoding": coding}
                    yield post(endpoint, f"{coding}, {name}", body, fields)
            bomb = gzip.compress(bytes(9 * MIB))
            yield post(endpoint, "bomb", bomb, {"Content-Encoding": "gzip"})
            for header, value, _ in malformed_bodies.headers(endpoint):
                yield post(endpoint, f"{header} {value:.10}", valid, {header: value})
        for case in tensor_shapes.tensors():
            yield post(INFER, case.name, case.body, case.headers)
        for method, target in WRONG_PATHS:
            response = connection.request(method, target)
            path = target.partition("?")[0]
            yield Exchange(method, path, f"{method} {target}", response)
    if raw:
        requests = [*all_requests(), *raw_http.mutated_heads(amount)]
        for request, _, responses in raw_http.try_requests(port, requests):
            for response in responses:
                yield Exchange("", "", request.name[:100], response)


def _exchange(endpoint: Endpoint, name: str, response: Response) -> Exchange:
    # The status of a stream's message is not that of its path.
    path = "" if endpoint in STREAMS else endpoint.path
    return Exchange("POST", path, f"{endpoint.name}, {name}", response)
