"""Row E4: the service's request counts are what its clients see."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import ENDPOINTS, HTTP, STREAMS
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import StrictConnection
from tests.robustness.inputs.mutated_bodies import mutate

SEED = 2018
REQUESTS = "http_server_request_duration_seconds_count"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Paths, and the route of their metrics.
ROUTES = {
    "/livez": "/livez", "/readyz": "/readyz", "/models": "/models", "/models/digits": "/models/{name}",
    "/models/nobody": "/models/{name}", "/models/digits/report/card.md": "/models/{name}/report/{file}",
    "/openapi.json": "unmatched", "/nowhere": "unmatched", "/v1/nowhere": "unmatched", "/v2/nowhere": "unmatched",
    "/v1/models": "/v1/models", "/v1/models/digits": "/v1/models/{model}", "/v2": "/v2", "/v2/models": "/v2/models",
    "/v1/models/nobody/metadata": "/v1/models/{model}/metadata", "/v2/health/ready": "/v2/health/ready",
    "/v2/models/digits/ready": "/v2/models/{model}/ready", "/v2/models/nobody/config": "/v2/models/{model}/config",
    "/v2/models/digits/versions/1": "/v2/models/{model}", "/v2/models/stats": "/v2/models/stats",
}  # fmt: skip
POST_ROUTES = {
    "classify": "/classify",
    "label": "/label",
    "predict": "/v1/models/{model}:predict",
    "examples": "/v1/models/{model}:classify",
    "infer": "/v2/models/{model}/infer",
}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.~%/:@!$&'()*+,;="
PREFIXES = ("", "v1/", "v2/", "v1/models/", "v2/models/", "models/", "models/digits/report/", "classify/")  # fmt: skip


class Labels(NamedTuple):
    """The labels of a request's count."""

    method: str
    route: str
    status: str


def send_requests(port: int, amount: int) -> Iterator[Labels]:
    """Send valid and invalid requests; the labels of each."""
    rng = random.Random(SEED)
    paths = list(ROUTES)
    with StrictConnection(port) as connection:
        for _ in range(amount):
            if rng.random() < 0.5:
                path = rng.choice(paths)
                methods = (*METHODS, "GET", "GET", "GET", "PROPFIND", "PURGE")
                method, route = rng.choice(methods), ROUTES[path]
                response = connection.request(method, path)
            else:
                endpoint = rng.choice(HTTP)
                body = endpoint.valid_body()
                if rng.random() < 0.6:
                    body = mutate(body, rng)
                method, route = "POST", POST_ROUTES[endpoint.name]
                response = connection.request(method, endpoint.path, body)
            label = method if method in METHODS else "other"
            yield Labels(label, route, str(response.status))


def request_counts(service: Service) -> Counter[Labels]:
    """The service's metrics."""
    counts: Counter[Labels] = Counter()
    for sample, value in service.metrics().items():
        name, _, text = sample.partition("{")
        if name == REQUESTS:
            pairs = dict(pair.split("=", 1) for pair in text[:-1].split(","))
            labels = Labels(*(pairs[label].strip('"') for label in Labels._fields))
            counts[labels] += int(value)
    return counts


def send_random(port: int, amount: int, seed: int) -> None:
    """Send requests with random paths and methods."""
    rng = random.Random(seed)
    methods = (*METHODS, "PROPFIND", "PURGE", "REPORT", "LOCK", "SEARCH")
    with StrictConnection(port) as connection:
        for _ in range(amount):
            path = "".join(rng.choices(LETTERS, k=rng.randint(1, 40)))
            prefix = rng.choice(PREFIXES)
            method = rng.choice(methods)
            query = f"?{path}={path}" if rng.random() < 0.3 else ""
            connection.request(method, f"/{prefix}{path}{query}", b"")


@row("E4", "Request counts are what clients see", full=10_000)
def metric_counts(tally: Tally, amount: int) -> None:
    """Requests and streams are counted by method, route and status; random paths and
    methods create no new time series."""
    with serving(tally) as service:
        before = request_counts(service)
        expected = Counter(send_requests(service.port, amount))
        for endpoint in STREAMS:
            for _ in range(5):
                endpoint.status_of_valid_body(service.port)
        counts = request_counts(service)
        counts.subtract(before)
        streams = sum(n for labels, n in counts.items() if labels.route == "/stream")
        tally.check(streams == 10, f"{streams} of 10 streams are counted")
        counts = Counter({k: n for k, n in counts.items() if k.route != "/stream"})
        counts.subtract(expected)
        counts.pop(Labels("GET", "/metrics", "200"), None)  # of this measurement
        for labels, more in counts.items():
            message = f"{tuple(labels)}: {expected[labels]} sent, {more:+} counted"
            tally.check(more == 0, message)
        tally.figure("requests", amount)
        tally.figure("kinds", len(expected))
        refused = service.metric("unrolled_refused_requests_total")
        seen = sum(n for labels, n in expected.items() if labels.status >= "400")
        message = f"{refused:.0f} refusals are counted, {seen} were seen"
        tally.check(refused >= seen, message)
        # Each known route and method may add a series; then there are no more.
        send_random(service.port, 1_000, 1)
        series = set(service.metrics())
        send_random(service.port, 1_000, 2)
        new = sorted(set(service.metrics()) - series)
        tally.check(not new, f"random paths created {new[:3]}")
        tally.figure("series", len(series))
        for endpoint in ENDPOINTS:
            status = endpoint.status_of_valid_body(service.port)
            tally.check(status == 200, f"{endpoint.name}: then valid gets {status}")
