"""Every choice of a training run, with its default, bounds and meaning.

A run is described by one `Config`: built in Python, read from a TOML file or
started from a preset (`model/presets/NAME.toml`), then overridden by flags.
Unknown keys and values out of bounds are refused by name.
"""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.bundle import bundle

PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """A setting that is unknown or out of bounds; the text names it."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Where the sequences come from and how they are split."""

    source: str = Field("", description="Built-in set or file.")
    task: Literal["classify", "label"] | None = Field(
        None, description="One class per sequence, or per step."
    )
    test: str | None = Field(None, description="File that holds the test part.")
    validation_fraction: float = Field(
        0.15, gt=0, lt=1, description="Cut from training, if the data names none."
    )
    test_fraction: float = Field(
        0.15, ge=0, lt=1, description="Cut for the test, if the data names none."
    )
    normalise: Literal["features", "whole", "none"] = Field(
        "features",
        description="Scale each feature, all features alike, or nothing.",
    )


class NetworkConfig(_Section):
    """The network of the original post: 3 layers of 200, dropout on outputs."""

    cell: Literal["gru", "lstm"] = Field("gru", description="Recurrent cell.")
    layers: int = Field(3, ge=1, le=32, description="Recurrent layers.")
    hidden: int = Field(200, ge=1, le=8192, description="Units per layer.")
    dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Part of each layer's output dropped in training"
        " (the post's keep probability is 1 - dropout).",
    )
    bidirectional: bool = Field(
        False, description="Read each sequence in both directions."
    )
    unroll: Literal["dynamic", "static"] = Field(
        "dynamic", description="Loop in the graph, or one copy of the cell per step."
    )
    reset_after: bool = Field(
        True,
        description="GRU: reset gate after the matrix product (cuDNN's formula),"
        " or before it (the original one).",
    )

    @property
    def state_size(self) -> int:
        """Floats that carry one sequence on; 0 where it can't be stepped."""
        vectors = 2 if self.cell == "lstm" else 1
        return 0 if self.bidirectional else self.layers * vectors * self.hidden


class TrainingConfig(_Section):
    """How the weights are found."""

    optimizer: Literal["adam", "rmsprop"] = Field("adam", description="Update rule.")
    learning_rate: float = Field(0.003, gt=0, description="Highest learning rate.")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning rate over the run: down to 0, or constant."
    )
    clip_norm: float = Field(
        1.0, gt=0, description="Longest gradient, over all weights together."
    )
    epochs: int = Field(60, ge=1, description="Passes over the training part.")
    patience: int = Field(
        20, ge=1, description="Epochs without a better validation error to stop."
    )
    batch: int = Field(16, ge=1, description="Sequences per update.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Fixes every random choice.")


class AugmentationConfig(_Section):
    """Random changes of the training frames; all off by default."""

    image: tuple[int, int] | None = Field(
        None, description="Height and width, where frames are rows or whole images."
    )
    shift: float = Field(0, ge=0, description="Move by up to this many pixels.")
    rotate: float = Field(0, ge=0, le=180, description="Turn by up to these degrees.")
    zoom: float = Field(0, ge=0, lt=1, description="Grow or shrink by up to this part.")
    shear: float = Field(0, ge=0, lt=1, description="Slant by up to this part.")
    erase: float = Field(0, ge=0, lt=1, description="Part of the values set to zero.")
    noise: float = Field(
        0, ge=0, description="Gaussian noise, in standard deviations of the feature."
    )
    offset: float = Field(
        0,
        ge=0,
        description="Gaussian shift of a feature for a whole sequence, likewise.",
    )


class Config(_Section):
    """One training run."""

    name: str = Field("model", pattern=bundle.NAME, description="Bundle's name.")
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()

    def update(self, changes: dict[str, Any]) -> "Config":
        """This config with nested `changes`, each checked anew.

        >>> Config().update({"network": {"hidden": 64}}).network.hidden
        64
        """
        merged = self.model_dump()
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key] = merged[key] | value
            else:
                merged[key] = value
        return parse(merged)


def parse(values: dict[str, Any], origin: str = "settings") -> Config:
    """A config from nested values.

    Raises:
        ConfigError: names `origin` and each key at fault.
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
    """The config that a TOML file describes.

    Raises:
        ConfigError: no such file, no TOML, or a key at fault.
    """
    try:
        return parse(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def presets() -> dict[str, Path]:
    """The presets that come with the package, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
