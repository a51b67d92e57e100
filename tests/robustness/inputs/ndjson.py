"""JSON lines, for schemathesis, which reads this file by itself."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def written(ctx: Any, value: Any) -> dict[str, bytes]:
    """One message as a line."""
    if isinstance(value, bytes):
        return {"data": value + b"\n"}
    if isinstance(value, str):  # an example: lines already
        return {"data": value.encode()}
    return {"data": json.dumps(value).encode() + b"\n"}


@schemathesis.deserializer("application/x-ndjson")
def read(ctx: Any, response: Any) -> Any:
    """The first line, which stands for all: `openapi` looks at each."""
    return json.loads(response.content.splitlines()[0])
