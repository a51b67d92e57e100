"""What OpenAPI says of requests and answers; JSON is written elsewhere (`codec`)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.errors import MEDIA_TYPE, ServiceError

PROBABILITY = Field(ge=0, le=1)
STEPS = "Taken so far, of all calls; with `return_state`."
STATE = "Token with which the next call goes on; with `return_state`."


class Classification(BaseModel):
    """One sequence's class."""

    label: str
    probability: float = PROBABILITY
    probabilities: list[float] | None = Field(
        None, description="Of every class, in the order of `classes`."
    )
    top: list["Choice"] | None = Field(None, description="Instead, with `top_k`.")
    steps: int | None = Field(None, description=STEPS)
    state: str | None = Field(None, description=STATE)


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
    steps: int | None = Field(None, description=STEPS)
    state: str | None = Field(None, description=STATE)


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
    model: str | None = Field(
        None, description="A name from /models, NAME@VERSION or NAME@LABEL."
    )
    top_k: int | None = Field(
        None, ge=1, description="Only the k likeliest classes, likeliest first."
    )
    states: list[str | None] | None = Field(
        None,
        description="Per sequence the token of an earlier answer, to go on from there;"
        " null begins.",
    )
    return_state: bool = Field(
        False, description="Answer a token with each sequence, to go on from later."
    )


class Message(BaseModel):
    """A line of `POST /stream`, or a message of `WS /stream`."""

    model_config = ConfigDict(extra="forbid")

    frames: list[list[float]] | None = Field(
        None, description="One or more steps: per step the model's features."
    )
    state: str | None = Field(
        None, description="Go on from this token; null: from the beginning."
    )
    return_state: bool = Field(False, description="Answer a token.")
    end: bool = Field(False, description="This was the last message.")


class Told(BaseModel):
    """What a message is answered with: as a prediction, or `error`, or `end`."""

    steps: int = Field(description="Taken so far.")
    label: str | None = Field(None, description="Classify: of all steps so far.")
    probability: float | None = Field(None, ge=0, le=1)
    labels: list[str] | None = Field(None, description="Label: of the frames' steps.")
    probabilities: list[float] | list[list[float]] | None = None
    top: list[Choice] | list[list[Choice]] | None = None
    state: str | None = Field(None, description="Token to go on from.")
    error: "Problem | None" = Field(None, description="The stream goes on.")
    end: str | None = Field(
        None, description="The last: done, idle, faulty, or stopping."
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
    retry_after: int | None = Field(None, description="Seconds, where that helps.")
    errors: list[FieldProblem] | None = Field(None, description="At most 20.")
    error_count: int | None = Field(None, description="How many there were.")


class Summary(BaseModel):
    """A model in service."""

    name: str
    version: str
    versions: list[str] = Field(description="Those that are served, oldest first.")
    labels: dict[str, str] = Field(description="The version of each.")
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


# Of the connection, the key, or the service, whatever is asked.
ANYWHERE = (400, 401, 408, 429, 431, 500, 503)


def operation(task: str) -> dict[str, Any]:
    """The OpenAPI part of the route of a task; its body is read by hand, so
    FastAPI can't know it."""
    answer = Classifications if task == "classify" else Labellings
    schema = Sequences.model_json_schema()
    content = {"application/json": {"schema": schema}}
    return {
        "operation_id": task,
        "tags": ["predictions"],
        "responses": {200: {"model": answer}}
        | problems(404, 409, 413, 415, 422, 504, *ANYWHERE),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def stream() -> dict[str, Any]:
    """The OpenAPI part of the stream's route."""
    sent, told = (
        {"application/x-ndjson": {"schema": _whole(kind)}} for kind in (Message, Told)
    )
    model = {"name": "model", "in": "query", "required": True}
    top_k = {"name": "top_k", "in": "query"}
    parameters = [
        model
        | {
            "schema": {"type": "string"},
            "description": "A streamable model, or NAME@VERSION.",
        },
        top_k | {"schema": {"type": "integer", "minimum": 1}},
    ]
    return {
        "operation_id": "stream",
        "tags": ["predictions"],
        "responses": {200: {"description": "A line for each line.", "content": told}}
        | problems(404, 415, 422, *ANYWHERE),
        "openapi_extra": {
            "parameters": parameters,
            "requestBody": {"required": True, "content": sent},
        },
    }


def _whole(kind: type[BaseModel]) -> dict[str, Any]:
    """A schema with what it refers to inside it."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, dict):
            name = node.get("$ref", "").rpartition("/")[2]
            node = parts[name] if name else node
            return {key: inlined(value) for key, value in node.items()}
        return [inlined(one) for one in node] if isinstance(node, list) else node

    return inlined(schema)  # type: ignore[no-any-return]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of those statuses: problem details."""
    kinds: dict[int, list[str]] = {}
    for kind in ServiceError.__subclasses__():
        kinds.setdefault(kind.status, []).append(kind.title)
    schema = _whole(Problem)
    return {
        status: {
            "description": "; ".join(kinds[status]),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }
