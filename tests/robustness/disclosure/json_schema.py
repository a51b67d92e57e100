"""Whether a value is what a JSON schema says: the words that OpenAPI documents use.

A word that isn't known here is a fault of its own, never passed over.
"""

from collections.abc import Iterator
from typing import Any

KINDS = {
    "string": str,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}
BOUNDS = (
    ("minimum", "maximum"),
    ("minItems", "maxItems"),
    ("minLength", "maxLength"),
)
SAID = {
    "title", "description", "examples", "example", "default", "format", "$defs", "deprecated",
}  # fmt: skip
WORDS = SAID | {
    "type", "properties", "required", "items", "anyOf", "enum", "const", "$ref", "minimum", "maximum", "minItems",
    "maxItems", "minLength", "maxLength", "additionalProperties",
}  # fmt: skip


def faults(
    value: Any, schema: Any, root: dict[str, Any], at: str = "$"
) -> Iterator[str]:
    """What is wrong with a value, and where.

    Args:
        root: the document that references are into.
    """
    if schema is True or schema == {}:
        return
    if unknown := set(schema) - WORDS:
        yield f"{at}: the schema has {sorted(unknown)}"
    if "$ref" in schema:
        yield from faults(value, resolved(schema["$ref"], root), root, at)
    if "anyOf" in schema:
        every = [list(faults(value, one, root, at)) for one in schema["anyOf"]]
        if all(every):
            yield min(every, key=len)[0]
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r:.40} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r:.40} is not {schema['const']}"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{at}: {value!r:.40} is no {schema['type']}"
        return
    if isinstance(value, (str, list, int, float)):
        size = len(value) if isinstance(value, (str, list)) else value
        for least, most in BOUNDS:
            if not schema.get(least, size) <= size <= schema.get(most, size):
                yield f"{at}: {size} is out of bounds"
    if isinstance(value, list) and "items" in schema:
        for place, one in enumerate(value):
            yield from faults(one, schema["items"], root, f"{at}[{place}]")
    if isinstance(value, dict):
        yield from _members(value, schema, root, at)


def _members(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str
) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at}: has no {name}"
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name, one in value.items():
        inner = known.get(name, others)
        if inner is False:
            yield f"{at}: has {name}"
        elif inner is not None:
            yield from faults(one, inner, root, f"{at}.{name}")


def _is(value: Any, kind: str | list[str]) -> bool:
    if isinstance(kind, list):
        return any(_is(value, one) for one in kind)
    if kind in ("integer", "number"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (kind == "number" or value == int(value))
    return isinstance(value, KINDS[kind])


def resolved(reference: str, root: dict[str, Any]) -> Any:
    """What a reference into the document stands for."""
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node
