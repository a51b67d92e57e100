"""Whether OpenAPI says the truth: its examples run, and nothing else happens."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.robustness.disclosure.json_schema import faults
from tests.robustness.disclosure.responses import seen
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import Answer, Wire

METHODS = ("get", "post", "put", "delete", "patch", "head", "options")
NAMES = {"name": "digits", "file": "metrics.json", "model": "digits"}
LINES = "application/x-ndjson"


def operations(
    document: dict[str, Any],
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every method of every path."""
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield method.upper(), path, methods[method]


@row("E5", "OpenAPI: examples run, every status is declared", full=1_000, fast=25)
def documented(tally: Tally, amount: int) -> None:
    """Every example is answered with 200 as its schema says, every path that needs
    nothing else answers as documented, and of all the statuses that the attacks get
    there is none at a documented path that isn't declared there, with its media type."""
    with serving(tally) as service, Wire(service.port, 10) as wire:
        document = wire.request("GET", "/openapi.json").body
        again = wire.request("GET", "/openapi.json").body
        tally.check(document == again, "the document changes from one call to the next")
        parsed = json.loads(document)
        tally.check(parsed["openapi"].startswith("3."), f"openapi {parsed['openapi']}")
        every = list(operations(parsed))
        tally.figure("operations", len(every))
        names = [operation["operationId"] for _, _, operation in every]
        tally.check(len(names) == len(set(names)), f"ids twice: {sorted(names)}")
        count = 0
        for method, path, operation in every:
            for kind, name, body in _examples(operation):
                count += 1
                target = f"{path}?model={name}" if kind == LINES else path
                answer = wire.request(method, target, body, {"Content-Type": kind})
                where = f"{method} {path}, {name}"
                told = f"{where}: {answer.status} {answer.text:.100}"
                tally.check(answer.status == 200, told)
                _fits(tally, where, answer, operation, parsed)
            if method == "GET":
                target = re.sub(r"\{(\w+)\}", lambda found: NAMES[found[1]], path)
                answer = wire.request(method, target)
                where = f"GET {target}"
                tally.check(answer.status == 200, f"{where}: {answer.status}")
                _fits(tally, where, answer, operation, parsed)
        tally.figure("examples", count)
        tally.check(count >= 6, f"only {count} examples")
        known = [
            (method, _pattern(path), operation) for method, path, operation in every
        ]
        checked = set()
        for one in seen(service, amount, heads=False):
            for method, pattern, operation in known:
                if one.method == method and pattern.fullmatch(one.path):
                    checked.add((method, pattern.pattern, one.answer.status))
                    where = f"{one.where}, {method} {one.path}"
                    _fits(tally, where, one.answer, operation, parsed)
        tally.check(len(checked) >= 12, f"only {len(checked)} statuses were seen")
        tally.figure("statuses seen where they are declared", len(checked))


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", "[^/]+", path))


def _examples(operation: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Of a request's body: media type, name, text."""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        for name, example in content.get("examples", {}).items():
            value = example["value"]
            text = value if isinstance(value, str) else json.dumps(value)
            yield kind, name, text.encode()


def _fits(
    tally: Tally,
    where: str,
    answer: Answer,
    operation: dict[str, Any],
    document: dict[str, Any],
) -> None:
    """That an answer is one of those declared."""
    declared = operation["responses"].get(str(answer.status))
    where = f"{where}: {answer.status}"
    if not tally.check(declared is not None, f"{where} is not declared"):
        return
    contents = declared.get("content")
    if contents is None or not answer.kind:
        return
    content = contents.get(answer.kind)
    if not tally.check(content is not None, f"{where} as {answer.kind} isn't declared"):
        return
    schema = content.get("schema", {})
    lines = answer.body.splitlines() if answer.kind == LINES else [answer.body]
    for line in lines if "json" in answer.kind else []:
        wrong = next(faults(json.loads(line), schema, document), None)
        tally.check(wrong is None, f"{where}: {wrong}")
