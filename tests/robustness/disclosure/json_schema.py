"""A JSON schema validator for the keywords that OpenAPI documents use.

An unknown keyword is an error, never ignored.
"""

from collections.abc import Iterator
from typing import Any

TYPES = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}  # fmt: skip
BOUNDS = (("minimum", "maximum"), ("minItems", "maxItems"), ("minLength", "maxLength"))
ANNOTATIONS = {
    "title", "description", "examples", "example", "default", "format", "$defs", "deprecated",
}  # fmt: skip
KEYWORDS = ANNOTATIONS | {
    "type", "properties", "required", "items", "anyOf", "enum", "const", "$ref", "minimum", "maximum", "minItems",
    "maxItems", "minLength", "maxLength", "additionalProperties",
}  # fmt: skip


def errors(
    value: Any, schema: Any, document: dict[str, Any], path: str = "$"
) -> Iterator[str]:
    """Why a value does not match a schema of a document."""
    if schema is True or schema == {}:
        return
    if unknown := set(schema) - KEYWORDS:
        yield f"{path}: the schema has {sorted(unknown)}"
    if "$ref" in schema:
        yield from errors(value, resolve(schema["$ref"], document), document, path)
    if "anyOf" in schema:
        alternatives = [list(errors(value, s, document, path)) for s in schema["anyOf"]]
        if all(alternatives):
            yield min(alternatives, key=len)[0]
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r:.40} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{path}: {value!r:.40} is not {schema['const']}"
    if "type" in schema and not _has_type(value, schema["type"]):
        yield f"{path}: {value!r:.40} is no {schema['type']}"
        return
    if isinstance(value, (str, list, int, float)):
        size = len(value) if isinstance(value, (str, list)) else value
        for low, high in BOUNDS:
            if not schema.get(low, size) <= size <= schema.get(high, size):
                yield f"{path}: {size} is out of bounds"
    if isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            yield from errors(item, schema["items"], document, f"{path}[{place}]")
    if isinstance(value, dict):
        yield from _member_errors(value, schema, document, path)


def _member_errors(
    value: dict[str, Any], schema: dict[str, Any], document: dict[str, Any], path: str
) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}: has no {name}"
    properties = schema.get("properties", {})
    additional = schema.get("additionalProperties")
    for name, member in value.items():
        inner = properties.get(name, additional)
        if inner is False:
            yield f"{path}: has {name}"
        elif inner is not None:
            yield from errors(member, inner, document, f"{path}.{name}")


def _has_type(value: Any, type: str | list[str]) -> bool:
    if isinstance(type, list):
        return any(_has_type(value, name) for name in type)
    if type in ("integer", "number"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (type == "number" or value == int(value))
    return isinstance(value, TYPES[type])


def resolve(reference: str, document: dict[str, Any]) -> Any:
    """The node of a document that a reference names."""
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node
