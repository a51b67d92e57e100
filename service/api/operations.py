"""The operations in OpenAPI: tags, error responses, and what FastAPI can't see because an
endpoint parses its body itself."""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api import schemas
from service.errors import MEDIA_TYPE, ServiceError

TAGS = [
    {
        "name": "predictions",
        "description": "Classify and label sequences, whole or while they happen.",
    },
    {
        "name": "models",
        "description": "The models in service, their training and their reports.",
    },
    {"name": "health", "description": "Probes for orchestrators, and metrics."},
]
SCHEMAS, RESPONSES = "#/components/schemas/", "#/components/responses/"
# Schemas of bodies that endpoints read and write themselves.
OWN = (schemas.Sequences, schemas.Message, schemas.StreamAnswer, schemas.Problem)
# Of the connection, the key, or the service: any request may get them.
COMMON = (400, 401, 408, 429, 431, 500, 503)
Content = dict[str, Any]


def problems(*statuses: int) -> dict[int | str, Content]:
    """The error responses with these statuses, which `components` describes."""
    return {
        status: {"$ref": f"{RESPONSES}Problem{status}"}
        for status in (*statuses, *COMMON)
    }


def components(statuses: Collection[int]) -> Content:
    """The schemas of `OWN`, and the error responses with these statuses."""
    own: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in OWN]
    _, definitions = models_json_schema(own, ref_template=f"{SCHEMAS}{{model}}")
    errors: dict[int, list[type[ServiceError]]] = {}
    for error in ServiceError.__subclasses__():
        errors.setdefault(error.status, []).append(error)
    return {
        "schemas": definitions["$defs"],
        "responses": {
            f"Problem{status}": _response(status, errors[status])
            for status in sorted(statuses)
        },
    }


def prediction(task: str) -> dict[str, Any]:
    """The arguments of a task's route."""
    answers = {"classify": schemas.Classifications, "label": schemas.Labellings}
    return {
        "operation_id": task,
        "tags": ["predictions"],
        "responses": {
            200: {
                "model": answers[task],
                "description": "A prediction for each sequence, in order.",
            }
        }
        | problems(404, 409, 413, 415, 422, 504),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": _content("application/json", schemas.Sequences),
            }
        },
    }


def stream() -> dict[str, Any]:
    """The arguments of the stream's route."""
    lines = "application/x-ndjson"
    model = {
        "name": "model",
        "in": "query",
        "required": True,
        "schema": {"type": "string"},
        "description": "A streamable model, NAME@VERSION or NAME@LABEL.",
    }
    top_k = {
        "name": "top_k",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1},
        "description": "Only the k most probable classes, in descending order.",
    }
    answers = {
        "description": "One line for each line.",
        "content": _content(lines, schemas.StreamAnswer),
    }
    return {
        "operation_id": "stream",
        "tags": ["predictions"],
        "responses": {200: answers} | problems(404, 415, 422),
        "openapi_extra": {
            "parameters": [model, top_k],
            "requestBody": {
                "required": True,
                "content": _content(lines, schemas.Message),
            },
        },
    }


def _content(media_type: str, model: type[BaseModel]) -> Content:
    return {media_type: {"schema": {"$ref": f"{SCHEMAS}{model.__name__}"}}}


def _response(status: int, errors: list[type[ServiceError]]) -> Content:
    """The error response with this status: its kinds, and an example of the first."""
    first = errors[0]
    example: Content = {
        "type": f"urn:unrolled:error:{first.slug}",
        "title": first.title,
        "status": status,
        "detail": "A sentence that says what is wrong.",
        "request_id": "5a1f0c3e9b7d4e62",
    }
    if status == 422:
        path, message = "sequences[0][3][1]", "must be finite in float32"
        example |= {"errors": [{"path": path, "message": message}], "error_count": 1}
    content = _content(MEDIA_TYPE, schemas.Problem)
    content[MEDIA_TYPE]["example"] = example
    kinds = [f"- `{error.slug}`: {error.title}" for error in errors]
    return {"description": "\n".join(kinds), "content": content}
