"""The metadata of a bundle, `bundle.json`: the network, its training, and its files."""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

FORMAT: Literal[1] = 1
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_CLASSES = 10_000
ClassName = Annotated[str, Field(min_length=1, max_length=256)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        serialize_by_alias=True,
    )


class Frames(_Section):
    """The input: a sequence of frames, each a vector of floats."""

    kind: Literal["frames"] = "frames"
    features: int = Field(ge=1)
    names: tuple[str, ...]


class Ids(_Section):
    """The input: a sequence of tokens or characters, each a vector of whole numbers.

    `vocabulary.json` turns text into them; they travel as float32, in which they are exact.
    """

    kind: Literal["tokens", "characters"]
    features: int = Field(ge=1, description="Columns of ids.")
    names: tuple[str, ...]
    sizes: tuple[int, ...] = Field(description="Ids of each column.")
    widths: tuple[int, ...] = Field(description="Numbers that stand for an id.")


class Records(_Section):
    """The input: a sequence of records, each a vector of ids, numbers and a time.

    `vocabulary.json` turns records into them; ids travel as float32, too.
    """

    kind: Literal["records"] = "records"
    features: int = Field(ge=1, description="Columns.")
    names: tuple[str, ...]
    kinds: tuple[Literal["category", "number", "time"], ...]
    sizes: tuple[int, ...] = Field(description="Ids of each column; 0: no category.")
    widths: tuple[int, ...] = Field(description="Numbers that stand for an id.")


class Normalisation(_Section):
    """The graph's first operation, per feature: (frames - mean) * scale."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]


Interval = tuple[float, float]


class Intervals(_Section):
    """95 % intervals of the metrics of a part, from low to high, in percent."""

    error: Interval
    macro_f1: Interval
    calibration_error: Interval


class PartMetrics(_Section):
    """Metrics on one part of the data, in percent."""

    count: int
    error: float
    macro_f1: float
    calibration_error: float = Field(description="Expected calibration error (ECE).")
    calibration_error_by_chance: float | None = Field(
        None,
        description="Mean ECE of a perfectly calibrated predictor on as many answers.",
    )
    intervals: Intervals | None = None


class QuantizedPart(_Section):
    """The int8 network compared with the float32 one, on one part of the data."""

    count: int
    error: float = Field(description="In percent, of the int8 network.")
    calibration_error: float = Field(description="Expected calibration error (ECE).")
    float32_error: float
    float32_calibration_error: float
    same_class: float = Field(description="Predictions with float32's class, percent.")
    largest: float = Field(description="Largest change of a probability.")
    mean: float = Field(description="Mean change of a probability.")


class Quantization(_Section):
    """The int8 network."""

    parts: dict[str, QuantizedPart]
    clip: float = Field(description="Normalised frames are clipped to it.")
    clipped: float = Field(description="Numbers of the train part beyond it, percent.")
    bound: float = Field(
        description="Largest difference from its golden answers, on other processors."
    )


class SpanMetrics(_Section):
    """Spans of labels, right if the type, the first and the last token are (as the CoNLL
    shared tasks and seqeval count), in percent."""

    spans: int
    precision: float
    recall: float
    f1: float


class TextPart(_Section):
    """The tokens of a part of the data, in percent."""

    tokens: int
    new: float = Field(description="That training has not seen.")
    error_seen: float | None = Field(None, description="To label: on the others.")
    error_new: float | None = Field(None, description="To label: on those.")
    spans: SpanMetrics | None = Field(None, description="Of labels with B- and I-.")


class PrefixMetrics(_Section):
    """The answers to unfinished sequences, in percent."""

    calibration_error: float = Field(description="ECE over all prefixes.")
    errors: tuple[float, ...] = Field(
        description="After a quarter, half, three quarters, and all of the steps."
    )
    decided: float = Field(
        description="Median of the step from which on the answer stays the same."
    )
    length: float = Field(description="Median steps of a sequence.")


class TextRecord(_Section):
    """Measurements of text."""

    parts: dict[str, TextPart] = {}
    prefixes: dict[str, PrefixMetrics] = {}


class TrainingRecord(_Section):
    """The data and the training run that the weights come from."""

    source: str
    data: str = Field(description="SHA-256 of the data.")
    seed: int
    validation_fraction: float = Field(description="Where the data names no such part.")
    test_fraction: float
    epochs: int
    best_epoch: int
    longest: int = Field(description="Steps of the longest training sequence.")
    created: str
    parts: dict[str, PartMetrics]
    calibration_error_before: float
    columns: dict[str, str] | None = Field(
        None,
        description="Other names of the columns sequence, label and step, and the name"
        " of the column of groups.",
    )
    text: TextRecord | None = None
    settings: dict[str, dict[str, JsonValue]] = Field(
        default={}, description="Every setting of the training, by section."
    )
    versions: dict[str, str] = Field(
        default={}, description="Versions of the libraries that trained it."
    )


class Metadata(_Section):
    """`bundle.json`: the network, its training, and the digest of every file."""

    format: Literal[1] = FORMAT
    name: str = Field(pattern=NAME)
    version: str = Field(pattern=r"^[1-9][0-9]{0,8}$")
    task: Literal["classify", "label"]
    input: Annotated[Frames | Ids | Records, Field(discriminator="kind")]
    classes: tuple[ClassName, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    cell: Literal["gru", "lstm"]
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    bidirectional: bool
    read: Literal["last", "mean", "last+mean"] = "last"
    stack: int = Field(1, ge=1, description="Frames joined to one step of the layers.")
    reset_after: bool
    dropout: float
    state_size: int = Field(ge=0, description="0 if the network needs whole sequences.")
    normalisation: Normalisation
    temperature: float = Field(gt=0)
    training: TrainingRecord
    int8: Quantization | None = None
    int8_refused: str = Field("", description="Why an LSTM has no int8 network.")
    files: dict[str, str] = Field(default={}, description="SHA-256 by path.")

    @field_validator("format", mode="before")
    @classmethod
    def _check_format(cls, value: object) -> object:
        if value != FORMAT:
            raise ValueError(
                f"this release reads format {FORMAT}, not {value!r:.20}; use the release that"
                " wrote the bundle, or train it again"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        features = self.input.features
        parts = (self.input.names, self.normalisation.mean, self.normalisation.scale)
        if any(len(part) != features for part in parts):
            raise ValueError(f"not all parts have {features} features")
        if isinstance(self.input, Records) and len(self.input.kinds) != features:
            raise ValueError(f"not all columns of {features} have a kind")
        if isinstance(self.input, (Ids, Records)):
            columns = (self.input.sizes, self.input.widths)
            if any(len(part) != features for part in columns):
                raise ValueError(
                    f"not all columns of {features} have a size and a width"
                )
            if self.stack > 1:
                raise ValueError("a network that reads ids can't stack steps")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must have different names")
        if self.task == "label" and self.stack > 1:
            raise ValueError("a network that labels each step can't stack steps")
        size = state_size(
            *(self.cell, self.layers, self.hidden, self.bidirectional),
            *(self.read, self.stack, features),
        )
        if self.state_size != size:
            raise ValueError(f"state_size must be {size}")
        return self

    @property
    def sums(self) -> slice:
        """Places of the outputs' sum in the state; their number follows it."""
        return sums_in_state(
            self.cell, self.layers, self.hidden, self.bidirectional, self.read
        )


def shown_part(parts: Collection[str]) -> str:
    """Return the part whose metrics say most about new data, of those that there are."""
    order = ("test", "cross_validation", "validation", "train")
    return min(parts, key=lambda part: order.index(part) if part in order else 9)


def sums_in_state(
    cell: str, layers: int, hidden: int, bidirectional: bool, read: str
) -> slice:
    """Return the places of the outputs' sum in the state; their number follows it."""
    if bidirectional or read == "last":
        return slice(0)
    size = layers * hidden * (2 if cell == "lstm" else 1)
    return slice(size, size + hidden)


def state_size(
    cell: str,
    layers: int,
    hidden: int,
    bidirectional: bool,
    read: str,
    stack: int = 1,
    features: int = 0,
) -> int:
    """Return the floats of state for one sequence; 0 for a bidirectional network.

    The state is each layer's hidden vector and, for an LSTM, its cell vector. A network
    that reads the mean adds the sum of its outputs, and their number. One that stacks
    frames adds the last `stack - 1` frames, and how many of them no full stack has.
    """
    if bidirectional:
        return 0
    vectors = 2 if cell == "lstm" else 1
    size = layers * hidden * vectors
    if read != "last":
        size += hidden + 1
    if stack > 1:
        size += (stack - 1) * features + 1
    return size
