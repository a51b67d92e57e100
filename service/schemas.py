"""What OpenAPI says of requests and answers; JSON is written elsewhere (`codec`)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .errors import MEDIA_TYPE, ServiceError

PROBABILITY = Field(ge=0, le=1)


class Classification(BaseModel):
    """One sequence's class."""

    label: str
    probability: float = PROBABILITY
    probabilities: list[float] | None = Field(
        None, description="Of every class, in the order of `classes`."
    )
    top: list["Choice"] | None = Field(None, description="Instead, with `top_k`.")


class Choice(BaseModel):
    label: str
    probability: float = PROBABILITY


class Labelling(BaseModel):
    """One class for each step of a sequence."""

    labels: list[str]
    probabilities: list[list[float]] | None = Field(
        None, description="A row a step: of every class, in the order of `classes`."
    )
    top: list[list[Choice]] | None = Field(
        None, description="Instead, with `top_k`: a list a step."
    )


class Classifications(BaseModel):
    """The answer of `POST /classify`."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Classification]


class Labellings(BaseModel):
    """The answer of `POST /label`."""

    model: str
    version: str
    classes: list[str]
    predictions: list[Labelling]


class Sequences(BaseModel):
    """The request of both."""

    model_config = ConfigDict(extra="forbid")

    sequences: list[list[list[float]]] = Field(
        min_length=1,
        description="One or more sequences of any lengths: per sequence its steps,"
        " per step the model's features.",
    )
    model: str | None = Field(None, description="A name from /models.")
    top_k: int | None = Field(
        None, ge=1, description="Only the k likeliest classes, likeliest first."
    )


class FieldProblem(BaseModel):
    path: str = Field(examples=["sequences[0][3][1]"])
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:unrolled:error:invalid-request"])
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldProblem] | None = Field(None, description="At most 20.")
    error_count: int | None = Field(None, description="How many there were.")


class Summary(BaseModel):
    """A model in service."""

    name: str
    version: str
    task: str
    default: bool = Field(description="Answers requests that name no model.")
    engine: str
    precision: str
    engine_reason: str = Field(description="Why this engine serves it.")
    digest: str = Field(description="SHA-256 of the bundle.")
    cell: str
    layers: int
    hidden: int
    bidirectional: bool
    streamable: bool
    feature_count: int
    classes: list[str]
    longest_trained: int = Field(description="Steps of the longest trained sequence.")


class Models(BaseModel):
    models: list[Summary]
    broken: dict[str, str]


class Model(Summary):
    features: list[str]
    training: dict[str, Any]
    card: str
    plots: list[str]


def operation(task: str) -> dict[str, Any]:
    """The OpenAPI part of the route of a task; its body is read by hand, so
    FastAPI can't know it."""
    answer = Classifications if task == "classify" else Labellings
    schema = Sequences.model_json_schema()
    content = {"application/json": {"schema": schema}}
    return {
        "operation_id": task,
        "tags": ["predictions"],
        "responses": {200: {"model": answer}} | problems(400, 404, 413, 415, 422, 503),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of those statuses: problem details."""
    kinds: dict[int, list[str]] = {}
    for kind in ServiceError.__subclasses__():
        kinds.setdefault(kind.status, []).append(kind.title)
    schema = Problem.model_json_schema()
    items = schema.pop("$defs")["FieldProblem"]
    schema["properties"]["errors"]["anyOf"][0]["items"] = items
    return {
        status: {
            "description": "; ".join(kinds[status]),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }
