"""The models in service, as `GET /models` lists them.

Members that a newer service adds are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model in service.

    Attributes:
        versions: in service, oldest first.
        labels: the version of each label.
        default: serves requests that name no model.
        engine_reason: why this engine was chosen.
        digest: SHA-256 of the bundle.
        input: what it takes: frames, tokens, characters, or records.
        streamable: the network runs forward only, so that it can be streamed.
        feature_count: number of features F of a sequence [T, F].
        classes: in the order of `probabilities`.
        longest_trained: steps of the longest trained sequence.
    """

    name: str
    version: str
    task: Literal["classify", "label"]
    classes: list[str]
    feature_count: int
    streamable: bool
    versions: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    default: bool = False
    engine: str = ""
    precision: str = ""
    engine_reason: str = ""
    digest: str = ""
    input: str = "frames"
    cell: str = ""
    layers: int = 0
    hidden: int = 0
    bidirectional: bool = False
    longest_trained: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetails(ModelInfo):
    """A model in service, in detail.

    Attributes:
        features: their names, in the order of a sequence's columns.
        kinds: of records: category, number or time of each column, by its name.
        example: the body of a request.
        training: how it was trained, and its measures.
        card: path of the model card.
        plots: paths of the report's plots.
    """

    features: list[str]
    kinds: dict[str, str] | None = None
    example: Mapping[str, object] | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    card: str = ""
    plots: list[str] = field(default_factory=list)

    @property
    def columns(self) -> dict[str, str]:
        """Other names of the columns sequence, label and step in the training data, and
        the name of its column of groups."""
        names = self.training.get("columns")
        items = names.items() if isinstance(names, Mapping) else ()
        return {str(meaning): str(name) for meaning, name in items}


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest request that a service takes; by default that of the settings.

    Attributes:
        sequences: of a request.
        steps: of a sequence.
        numbers: of a request.
        body_bytes: of a request's body.
    """

    sequences: int = 256
    steps: int = 10_000
    numbers: int = 2_000_000
    body_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Models:
    """The answer of `GET /models`."""

    models: list[ModelInfo]
    limits: Limits = field(default_factory=Limits)
