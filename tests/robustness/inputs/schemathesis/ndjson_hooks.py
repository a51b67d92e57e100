"""NDJSON for schemathesis, which loads this file itself."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def serialize(ctx: Any, value: Any) -> dict[str, bytes]:
    """One message as a line."""
    if isinstance(value, bytes):
        return {"data": value + b"\n"}
    if isinstance(value, str):  # an example: lines already
        return {"data": value.encode()}
    return {"data": json.dumps(value).encode() + b"\n"}


@schemathesis.deserializer("application/x-ndjson")
def deserialize(ctx: Any, response: Any) -> Any:
    """The first line, which stands for all: row E5 checks each."""
    return json.loads(response.content.splitlines()[0])
