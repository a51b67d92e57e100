"""The schemas of requests and responses in OpenAPI. `codecs` decodes and encodes the JSON."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PROBABILITY = Field(ge=0, le=1)
STEPS = "Steps so far, in all calls; with `return_state`."
STATE = "Token to resume from in the next call; with `return_state`."


class Choice(BaseModel):
    """A class and its probability."""

    label: str
    probability: float = PROBABILITY


class Classification(BaseModel):
    """The class of one sequence."""

    label: str
    probability: float = PROBABILITY
    probabilities: list[float] | None = Field(
        None, description="Of every class, in the order of `classes`."
    )
    top: list[Choice] | None = Field(None, description="Instead, with `top_k`.")
    steps: int | None = Field(None, description=STEPS)
    state: str | None = Field(None, description=STATE)


class TextToken(BaseModel):
    """A word of a text, and its place in Unicode code points."""

    text: str
    start: int
    end: int
    known: bool = Field(description="It is in the model's vocabulary.")


class Span(BaseModel):
    """Neighbouring tokens with one label."""

    label: str
    probability: float = Field(ge=0, le=1, description="Of its least certain token.")
    start: int | None = Field(None, description="Of texts: its place, in code points.")
    end: int | None = None
    first: int | None = Field(None, description="Of tokens: its first and last one.")
    last: int | None = None
    text: str


class Labelling(BaseModel):
    """One class for each step of a sequence."""

    labels: list[str]
    probabilities: list[list[float]] | None = Field(
        None, description="For each step: of every class, in the order of `classes`."
    )
    top: list[list[Choice]] | None = Field(
        None, description="Instead, with `top_k`: a list for each step."
    )
    tokens: list[TextToken] | None = Field(None, description="Of texts: their words.")
    spans: list[Span] | None = Field(None, description="With `spans`.")
    steps: int | None = Field(None, description=STEPS)
    state: str | None = Field(None, description=STATE)


class _Predictions(BaseModel):
    model: str
    version: str
    classes: list[str]


class Classifications(_Predictions):
    """The response of `POST /classify`."""

    predictions: list[Classification]


class Labellings(_Predictions):
    """The response of `POST /label`."""

    predictions: list[Labelling]


class Sequences(BaseModel):
    """The request of `POST /classify` and `POST /label`."""

    model_config = ConfigDict(extra="forbid")

    sequences: list[list[list[float]]] | None = Field(
        None,
        min_length=1,
        description="One or more sequences of any lengths: for each sequence its steps,"
        " for each step the model's features.",
    )
    texts: list[str] | None = Field(
        None,
        min_length=1,
        description="In place of sequences, for a model that reads text. The service cuts"
        " it into words or characters.",
    )
    tokens: list[list[str]] | None = Field(
        None, min_length=1, description="In place of texts, the words of each."
    )
    records: list[list[dict[str, Any]]] | None = Field(
        None,
        min_length=1,
        description="Or, for a model that reads records: for each sequence its records, with"
        " a value for each column.",
    )
    model: str | None = Field(
        None, description="A name from /models, NAME@VERSION or NAME@LABEL."
    )
    top_k: int | None = Field(
        None, ge=1, description="Only the k most probable classes, in descending order."
    )
    states: list[str | None] | None = Field(
        None,
        description="For each sequence the token of an earlier response, to resume from;"
        " null starts afresh.",
    )
    return_state: bool = Field(
        False, description="Return a token with each sequence, to resume from later."
    )
    spans: bool = Field(
        False, description="With texts or tokens, to label: return the spans of labels."
    )


class Message(BaseModel):
    """A line of `POST /stream`, or a message of `WS /stream`."""

    model_config = ConfigDict(extra="forbid")

    frames: list[list[float]] | None = Field(
        None, description="One or more steps: for each step the model's features."
    )
    text: str | None = Field(
        None, description="Or characters, to a model that reads characters."
    )
    tokens: list[str] | None = Field(
        None, description="Or words, to a model that reads words."
    )
    records: list[dict[str, Any]] | None = Field(
        None, description="Or records, to a model that reads records."
    )
    state: str | None = Field(
        None, description="Resume from this token; null: start afresh."
    )
    return_state: bool = Field(False, description="Return a token.")
    end: bool = Field(False, description="This was the last message.")


class StreamAnswer(BaseModel):
    """The answer to a message: a prediction, an `error`, or the `end`."""

    steps: int = Field(description="So far.")
    label: str | None = Field(None, description="Classify: of all steps so far.")
    probability: float | None = Field(None, ge=0, le=1)
    labels: list[str] | None = Field(None, description="Label: of the frames' steps.")
    probabilities: list[float] | list[list[float]] | None = None
    top: list[Choice] | list[list[Choice]] | None = None
    state: str | None = Field(None, description="Token to resume from.")
    error: "Problem | None" = Field(None, description="The stream continues.")
    end: str | None = Field(
        None,
        description="The last line: done, idle, aged, faulty, retired or stopping.",
    )


class FieldProblem(BaseModel):
    """An error in one field of the request."""

    path: str = Field(examples=["sequences[0][3][1]"])
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:unrolled:error:invalid-request"])
    title: str
    status: int
    detail: str
    request_id: str
    retry_after: int | None = Field(
        None, description="In seconds, if a retry may help."
    )
    errors: list[FieldProblem] | None = Field(None, description="At most 20.")
    error_count: int | None = Field(None, description="How many errors there are.")


class Summary(BaseModel):
    """A model in service."""

    name: str
    version: str
    versions: list[str] = Field(description="In service, oldest first.")
    labels: dict[str, str] = Field(description="The version of each label.")
    task: str
    default: bool = Field(description="Serves requests that name no model.")
    engine: str
    precision: str
    engine_reason: str = Field(description="Why this engine was chosen.")
    digest: str = Field(description="SHA-256 of the bundle.")
    cell: str
    layers: int
    hidden: int
    bidirectional: bool
    streamable: bool
    input: str = Field(
        description="What it takes: frames, tokens, characters, or records."
    )
    feature_count: int
    classes: list[str]
    longest_trained: int = Field(description="Steps of the longest trained sequence.")


class RequestLimits(BaseModel):
    """The largest request that `/classify` and `/label` take."""

    sequences: int = Field(description="Sequences in a request.")
    steps: int = Field(description="Steps in a sequence.")
    numbers: int = Field(description="Numbers in a request: steps times features.")
    body_bytes: int = Field(description="Bytes of a body, also after decompression.")


class Models(BaseModel):
    """The models in service, the errors of broken bundles, and the limits."""

    models: list[Summary]
    broken: dict[str, str]
    limits: RequestLimits


class Model(Summary):
    """A model in service, in detail."""

    features: list[str]
    kinds: dict[str, str] | None = Field(
        description="Of records: category, number or time, by name."
    )
    example: dict[str, Any] | None = Field(
        description="A request; null if its files changed since it was loaded."
    )
    training: dict[str, Any]
    card: str
    plots: list[str]


class Health(BaseModel):
    """The answer of a liveness probe."""

    status: str = Field(examples=["alive"])


class Ready(BaseModel):
    """The answer of the readiness probe while every model is ready."""

    status: str = Field(examples=["ready"])
    models: list[str]


class NotReady(BaseModel):
    """The answer of the readiness probe while a model is loading, or broken."""

    status: str = Field(examples=["not ready"])
    reasons: list[str]
