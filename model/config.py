"""The settings of a training run, with defaults, bounds and descriptions.

One `Config` describes a run: built in Python, or read from a TOML file or a preset
(`model/presets/NAME.toml`), and overridden by command-line options. Unknown keys and
values out of bounds are refused, and the key is named. A training chooses the settings in
`OPEN` by its data where they are not set (`model.training.defaults`).
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.bundle import metadata

PRESETS = Path(__file__).parent / "presets"
# Settings that a training chooses by its data, where they are not set.
OPEN = (
    *("layers", "hidden", "dropout", "read", "stack"),
    *("learning_rate", "warmup", "updates", "patience", "best_by", "batch"),
    "prefixes",
    *("noise", "folds", "repeats"),
)


class ConfigError(ValueError):
    """An unknown setting, or a value out of bounds; the message names it."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """The data set, its parts, and the normalisation."""

    source: str = Field("", description="Built-in data set, or file.")
    task: Literal["classify", "label"] | None = Field(
        None, description="Predict one class per sequence, or per step."
    )
    test: str | None = Field(None, description="File with the test part.")
    sequence_column: str | None = Field(
        None, description="Column of the sequences' ids in a table. Default: sequence."
    )
    label_column: str | None = Field(
        None, description="Column of the labels in a table. Default: label."
    )
    step_column: str | None = Field(
        None,
        description="Column of numbers or times that orders a sequence's rows. Default:"
        " step, if there is one.",
    )
    group_column: str | None = Field(
        None,
        description="Column of subjects, machines or documents; the sequences of one stay"
        " in one part.",
    )
    ignore: tuple[str, ...] = Field(
        (), description="Columns that are no features, separated by commas."
    )
    labels_are_classes: bool = Field(
        False,
        description="Train even if the labels are many different numbers, each of which"
        " then is a class.",
    )
    validation_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Fraction for validation, if the data names no such part. 0:"
        " cross-validate. Default: 0.15; 0 under 500 sequences, or five groups.",
    )
    test_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="The same for the test. Default: 0.15; 0 under five groups.",
    )
    encoding: str | None = Field(
        None, description="Encoding of text files, such as cp1252. Default: UTF-8."
    )
    text: str | None = Field(
        None, description="Column of texts, whose words the network reads."
    )
    characters: bool = Field(
        False, description="Text: read characters in place of words."
    )
    categories: tuple[str, ...] = Field(
        (), description="Records: columns of names, separated by commas."
    )
    numbers: tuple[str, ...] = Field(
        (), description="Records: columns of numbers, separated by commas."
    )
    time: str | None = Field(
        None,
        description="Records: column of times (ISO 8601, or seconds since 1970), which"
        " order a sequence's records. The network reads the time since the one before.",
    )
    column: str | None = Field(
        None,
        description="CoNLL files: number of the label's column from 1, or its name in a"
        " CoNLL-U file. Default: the last, or UPOS.",
    )
    min_count: int = Field(
        2,
        ge=1,
        description="Words or categories that occur less often in training are unknown.",
    )
    max_words: int = Field(
        20_000,
        ge=1,
        description="Words in the vocabulary, or categories of a column, at most.",
    )
    buckets: int = Field(
        4_096,
        ge=2,
        le=2**20,
        description="Text: ids that lower-case words are hashed to.",
    )
    embedding: int = Field(
        32,
        ge=1,
        le=1024,
        description="Numbers that stand for a word or character; for a category, at most.",
    )
    normalise: Literal["features", "whole", "none"] = Field(
        "features",
        description="Normalise each feature, all features alike, or none.",
    )

    @field_validator("ignore", "categories", "numbers", mode="before")
    @classmethod
    def _split_names(cls, names: Any) -> Any:
        names = [names] if isinstance(names, str) else names
        return [part.strip() for name in names for part in name.split(",")]


class NetworkConfig(_Section):
    """The network. The values are those of the original post, 3 layers of 200; a training
    replaces those in `OPEN`."""

    cell: Literal["gru", "lstm"] = Field("gru", description="Recurrent cell.")
    layers: int = Field(3, ge=1, le=32, description="Recurrent layers.")
    hidden: int = Field(200, ge=1, le=8192, description="Units per layer.")
    dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Fraction of each layer's outputs that training drops"
        " (the post's keep probability is 1 - dropout).",
    )
    embedding_dropout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Text: fraction of the embeddings' numbers that training drops.",
    )
    bidirectional: bool = Field(
        False, description="Read each sequence in both directions."
    )
    read: Literal["last", "mean", "last+mean"] = Field(
        "last",
        description="Outputs that a classifier reads: that of the last step, the mean of"
        " all steps, or both.",
    )
    stack: int = Field(
        1,
        ge=1,
        le=64,
        description="Frames that a classifier joins to one step of the layers, for long"
        " sequences.",
    )
    unroll: Literal["dynamic", "static"] = Field(
        "dynamic",
        description="Loop over time in the graph, or one copy of the cell per step.",
    )
    reset_after: bool = Field(
        True,
        description="GRU: apply the reset gate after the matrix product (as cuDNN),"
        " or before it (as in the original paper).",
    )


class TrainingConfig(_Section):
    """The optimisation of the weights."""

    optimizer: Literal["adam", "adamw", "rmsprop"] = Field(
        "adam", description="Optimizer; adamw is adam with weight decay."
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Weight decay of adamw, times the learning rate."
    )
    learning_rate: float = Field(0.003, gt=0, description="Highest learning rate.")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning rate schedule: cosine decay to 0, or constant."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="Weights of classes in the cost: none, or balanced, so that rare"
        " classes count as much as frequent ones.",
    )
    label_smoothing: float = Field(
        0,
        ge=0,
        lt=1,
        description="Part of each training target that all classes share.",
    )
    warmup: float = Field(
        0,
        ge=0,
        lt=1,
        description="Fraction of the updates in which the learning rate rises from 0.",
    )
    clip_norm: float = Field(
        1.0, gt=0, description="Clip the gradient's global norm to this."
    )
    epochs: int = Field(60, ge=1, description="Passes over the training part.")
    updates: int | None = Field(
        None, ge=1, description="Updates of the weights, in place of epochs."
    )
    patience: int = Field(
        20,
        ge=1,
        description="Stop after this many epochs without better weights.",
    )
    prefixes: bool = Field(
        False,
        description="Average the cost over all prefixes of a sequence: a forward network"
        " that reads the last output then classifies unfinished sequences well, too.",
    )
    best_by: Literal["error", "cost"] = Field(
        "error",
        description="Keep the weights with the lowest validation error, or cost.",
    )
    batch: int = Field(16, ge=1, description="Batch size: sequences per update.")
    warm_start: str | None = Field(
        None, description="Folder of a bundle from whose weights the training starts."
    )
    mixed_precision: bool = Field(
        False,
        description="Compute the layers in float16, on a GPU; weights stay float32.",
    )
    folds: int = Field(
        5,
        ge=2,
        le=100,
        description="Folds of the cross-validation, without a validation part.",
    )
    repeats: int = Field(
        1,
        ge=1,
        le=100,
        description="Repetitions of the cross-validation, in other folds.",
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Random seed; the same seed repeats a run."
    )

    def length(self, sequences: int) -> tuple[int, int]:
        """Return the updates and the epochs of a run on a number of sequences."""
        batches = -(-sequences // self.batch)
        updates = self.updates or self.epochs * batches
        return updates, -(-updates // batches)


class AugmentationConfig(_Section):
    """Random changes of training sequences; all but noise off by default."""

    recombine: float = Field(
        0,
        ge=0,
        le=1,
        description="Fraction of the sequences that are put together from steps of others,"
        " to label each step.",
    )
    recombine_words: str | None = Field(
        None,
        description="File of words, one a line, that most recombined sequences spell, where"
        " classes are letters; english: a built-in list.",
    )
    image: tuple[int, int] | None = Field(
        None, description="Height and width, if frames are images or their rows."
    )
    shift: float = Field(0, ge=0, description="Shift by up to this many pixels.")
    rotate: float = Field(
        0, ge=0, le=180, description="Rotate by up to this many degrees."
    )
    zoom: float = Field(
        0, ge=0, lt=1, description="Zoom in or out by up to this fraction."
    )
    shear: float = Field(0, ge=0, lt=1, description="Shear by up to this fraction.")
    time_warp: float = Field(
        0,
        ge=0,
        lt=1,
        description="Change the speed within a sequence, smoothly, by up to this"
        " fraction.",
    )
    window: float = Field(
        0,
        ge=0,
        lt=1,
        description="Cut up to this fraction of the steps off the ends of a sequence.",
    )
    magnitude: float = Field(
        0,
        ge=0,
        le=1,
        description="Multiply a feature's distance from its mean, for a whole sequence,"
        " by exp(this * a normal number).",
    )
    erase: float = Field(
        0, ge=0, lt=1, description="Fraction of the values set to the feature's mean."
    )
    noise: float = Field(
        0, ge=0, description="Gaussian noise, in standard deviations of the feature."
    )
    offset: float = Field(
        0,
        ge=0,
        description="Gaussian offset of a feature for a whole sequence, in the same units.",
    )


class Config(_Section):
    """One training run."""

    name: str = Field("model", pattern=metadata.NAME, description="Bundle's name.")
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()

    def update(self, changes: dict[str, Any]) -> "Config":
        """Return a copy with nested `changes`, validated.

        >>> Config().update({"network": {"hidden": 64}}).network.hidden
        64
        """
        merged = self.model_dump(exclude_unset=True)
        for key, value in changes.items():
            if isinstance(value, dict):
                merged[key] = merged.get(key, {}) | value
            else:
                merged[key] = value
        return parse(merged)


SECTIONS = ("data", "network", "training", "augmentation")
# The section of each setting.
SECTION_OF = {
    field: section
    for section in SECTIONS
    for field in type(getattr(Config(), section)).model_fields
}


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings by their sections, for `Config.update`, without those of None."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if value is not None:
            changes.setdefault(SECTION_OF[name], {})[name] = value
    return changes


def parse(values: dict[str, Any], origin: str = "settings") -> Config:
    """Build a config from nested values.

    Raises:
        ConfigError: names `origin` and each invalid key.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in error.errors()
        )
        raise ConfigError(f"{origin}: {reasons}") from None


def load(path: Path) -> Config:
    """Read a config from a TOML file.

    Raises:
        ConfigError: the file can't be read, is not TOML, or has an invalid key.
    """
    try:
        return parse(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def presets() -> dict[str, Path]:
    """Return the files of the shipped presets by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
