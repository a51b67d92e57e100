"""Row E5: the OpenAPI document is true: its examples work, every status is declared."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.robustness.disclosure.json_schema import errors, resolve
from tests.robustness.disclosure.responses import all_responses
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import Response, StrictConnection

METHODS = ("get", "post", "put", "delete", "patch", "head", "options")
PARAMETERS = {"name": "digits", "file": "metrics.json", "model": "digits"}
NDJSON = "application/x-ndjson"
Operation = dict[str, Any]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    """Every method of every path."""
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield method.upper(), path, methods[method]


@row("E5", "OpenAPI: examples work, every status is declared", full=1_000, fast=25)
def openapi(tally: Tally, amount: int) -> None:
    """Every example gets 200 and a response as its schema says, every GET without a body
    responds as documented, and every response of other rows at a documented path has
    a declared status and media type."""
    with serving(tally) as service, StrictConnection(service.port, 10) as connection:
        body = connection.request("GET", "/openapi.json").body
        again = connection.request("GET", "/openapi.json").body
        tally.check(body == again, "the document changes from one request to the next")
        document = json.loads(body)
        version = document["openapi"]
        tally.check(version.startswith("3."), f"openapi {version}")
        documented = list(operations(document))
        tally.figure("operations", len(documented))
        names = [operation["operationId"] for _, _, operation in documented]
        tally.check(len(names) == len(set(names)), f"ids twice: {sorted(names)}")
        count = 0
        for method, path, operation in documented:
            for media_type, name, example in _examples(operation):
                count += 1
                target = f"{path}?model={name}" if media_type == NDJSON else path
                fields = {"Content-Type": media_type}
                response = connection.request(method, target, example, fields)
                where = f"{method} {path}, {name}"
                got = f"{where}: {response.status} {response.text:.100}"
                tally.check(response.status == 200, got)
                _check_declared(tally, where, response, operation, document)
            if method == "GET":
                target = re.sub(r"\{(\w+)\}", lambda match: PARAMETERS[match[1]], path)
                response = connection.request(method, target)
                where = f"GET {target}"
                tally.check(response.status == 200, f"{where}: {response.status}")
                _check_declared(tally, where, response, operation, document)
        tally.figure("examples", count)
        tally.check(count >= 6, f"only {count} examples")
        patterns = [
            (method, re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operation)
            for method, path, operation in documented
        ]
        seen = set()
        for exchange in all_responses(service, amount, raw=False):
            response = exchange.response
            for method, pattern, operation in patterns:
                if exchange.method == method and pattern.fullmatch(exchange.path):
                    seen.add((method, pattern.pattern, response.status))
                    where = f"{exchange.where}, {method} {exchange.path}"
                    _check_declared(tally, where, response, operation, document)
        tally.check(len(seen) >= 12, f"only {len(seen)} statuses were seen")
        tally.figure("declared statuses seen", len(seen))


def _examples(operation: Operation) -> Iterator[tuple[str, str, bytes]]:
    """The media type, name and body of each example of a request."""
    contents = operation.get("requestBody", {}).get("content", {})
    for media_type, content in contents.items():
        for name, example in content.get("examples", {}).items():
            value = example["value"]
            text = value if isinstance(value, str) else json.dumps(value)
            yield media_type, name, text.encode()


def _check_declared(
    tally: Tally,
    where: str,
    response: Response,
    operation: Operation,
    document: dict[str, Any],
) -> None:
    """Check that a response's status, media type and schema are declared."""
    declared = operation["responses"].get(str(response.status))
    where, media_type = f"{where}: {response.status}", response.media_type
    if not tally.check(declared is not None, f"{where} is not declared"):
        return
    if "$ref" in declared:  # shared by all operations
        declared = resolve(declared["$ref"], document)
    contents = declared.get("content")
    if contents is None or not media_type:
        return
    content = contents.get(media_type)
    if not tally.check(content is not None, f"{where} as {media_type} isn't declared"):
        return
    schema, body = content.get("schema", {}), response.body
    lines = body.splitlines() if media_type == NDJSON else [body]
    for line in lines if "json" in media_type else []:
        error = next(errors(json.loads(line), schema, document), None)
        tally.check(error is None, f"{where}: {error}")
