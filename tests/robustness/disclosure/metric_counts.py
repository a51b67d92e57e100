"""Whether the service counts what its callers see."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import DOORS, HTTP, STREAMS
from tests.robustness.harness.service import Service, serving
from tests.robustness.harness.strict_http import Wire
from tests.robustness.inputs.mutated_bodies import changed

SEED = 2018
REQUESTS = "http_server_request_duration_seconds_count"
KNOWN = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Paths, and the route that they are counted under.
PLACES = {
    "/livez": "/livez", "/readyz": "/readyz", "/models": "/models", "/models/digits": "/models/{name}",
    "/models/nobody": "/models/{name}", "/models/digits/report/card.md": "/models/{name}/report/{file}",
    "/openapi.json": "unmatched", "/nowhere": "unmatched", "/v1/nowhere": "unmatched", "/v2/nowhere": "unmatched",
    "/v1/models": "/v1/models", "/v1/models/digits": "/v1/models/{model}", "/v2": "/v2", "/v2/models": "/v2/models",
    "/v1/models/nobody/metadata": "/v1/models/{model}/metadata", "/v2/health/ready": "/v2/health/ready",
    "/v2/models/digits/ready": "/v2/models/{model}/ready", "/v2/models/nobody/config": "/v2/models/{model}/config",
    "/v2/models/digits/versions/1": "/v2/models/{model}", "/v2/models/stats": "/v2/models/stats",
}  # fmt: skip
ROUTES = {
    "classify": "/classify",
    "label": "/label",
    "predict": "/v1/models/{model}:predict",
    "examples": "/v1/models/{model}:classify",
    "infer": "/v2/models/{model}/infer",
}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_.~%/:@!$&'()*+,;="


class Counted(NamedTuple):
    """What a request is counted under."""

    method: str
    route: str
    status: str


def asked(port: int, amount: int) -> Iterator[Counted]:
    """So many requests, good and bad, and what each must have been counted as."""
    chance = random.Random(SEED)
    places = list(PLACES)
    with Wire(port) as wire:
        for _ in range(amount):
            if chance.random() < 0.5:
                path = chance.choice(places)
                method = chance.choice(
                    (*KNOWN, "GET", "GET", "GET", "PROPFIND", "PURGE")
                )
                answer = wire.request(method, path)
                # Of another method the framework may know no route.
                route = PLACES[path]
            else:
                door = chance.choice(HTTP)
                body = door.good()
                if chance.random() < 0.6:
                    body = changed(body, chance)
                method, route = "POST", ROUTES[door.name]
                answer = wire.request(method, door.path, body)
            counted = method if method in KNOWN else "other"
            yield Counted(counted, route, str(answer.status))


def counted(service: Service) -> Counter[Counted]:
    """The service's own figures."""
    found: Counter[Counted] = Counter()
    for sample, value in service.metrics().items():
        if sample.partition("{")[0] == REQUESTS:
            labels = dict(
                one.split("=", 1) for one in sample.partition("{")[2][:-1].split(",")
            )
            texts = (labels[name].strip('"') for name in Counted._fields)
            found[Counted(*texts)] += int(value)
    return found


def randomly(port: int, amount: int, seed: int) -> None:
    """Paths and methods that nobody thought of."""
    chance = random.Random(seed)
    with Wire(port) as wire:
        for _ in range(amount):
            path = "".join(chance.choices(LETTERS, k=chance.randint(1, 40)))
            first = chance.choice(("", "v1/", "v2/", "v1/models/", "v2/models/", "models/", "models/digits/report/", "classify/"))  # fmt: skip
            method = chance.choice(
                (*KNOWN, "PROPFIND", "PURGE", "REPORT", "LOCK", "SEARCH")
            )
            query = f"?{path}={path}" if chance.random() < 0.3 else ""
            wire.request(method, f"/{first}{path}{query}", b"")


@row("E4", "What is counted is what callers saw", full=10_000)
def tallied(tally: Tally, amount: int) -> None:
    """Requests are counted by method, route and status as their callers saw them, streams
    as well; random paths and methods make no figure of their own."""
    with serving(tally) as service:
        before = counted(service)
        wanted = Counter(asked(service.port, amount))
        for door in STREAMS:
            for _ in range(5):
                with door.visit(service.port) as visit:
                    visit.ask(door.good())
        after = counted(service)
        after.subtract(before)
        streams = [n for one, n in after.items() if one.route == "/stream"]
        tally.check(sum(streams) == 10, f"{sum(streams)} of 10 streams are counted")
        same = Counter({k: n for k, n in after.items() if k.route != "/stream"})
        same.subtract(wanted)
        same.pop(Counted("GET", "/metrics", "200"), None)  # by which it is found
        for one, more in same.items():
            tally.check(
                more == 0, f"{tuple(one)}: {wanted[one]} asked, {more:+} counted"
            )
        tally.figure("requests", amount)
        tally.figure("kinds", len(wanted))
        refused = service.metric("unrolled_refused_requests_total")
        seen = sum(n for one, n in wanted.items() if one.status >= "400")
        told = f"{refused:.0f} refusals are counted, {seen} were seen"
        tally.check(refused >= seen, told)
        # Each known route and method may have a figure; after that there are no more.
        randomly(service.port, 1_000, 1)
        series = set(service.metrics())
        randomly(service.port, 1_000, 2)
        more = set(service.metrics()) - series
        tally.check(not more, f"random paths made {sorted(more)[:3]}")
        tally.figure("series", len(series))
        for door in DOORS:
            with door.visit(service.port) as visit:
                after_all = visit.ask(door.good()).status
            tally.check(
                after_all == 200, f"{door.name}: good is {after_all} afterwards"
            )
