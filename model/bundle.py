"""The contract between training and serving: a folder that holds a network.

    bundles/NAME/VERSION/
      saved_model.pb  variables/  fingerprint.pb     a TensorFlow SavedModel
      assets.extra/
        network.onnx      the same network for ONNX Runtime
        network.int8.onnx the same with int8 weights, where the export asked for it
        golden.npz        inputs and the answers that any engine must reproduce
        report/           plots, metrics.json and the card
        bundle.json       `Metadata`; written last, so a folder without it is
                          no bundle
        bundle.sig        its signature, where somebody has signed it

`bundle.json` holds the SHA-256 of every file above it; `read` compares them all. A
bundle is written to a temporary folder and renamed into place: whole or not at
all. This module imports no TensorFlow; the service needs nothing else of `model`.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from . import signature
from .golden import Golden

FORMAT: Literal[1] = 1
EXTRA = Path("assets.extra")
MARKER = EXTRA / "bundle.json"
SIGNATURE = EXTRA / "bundle.sig"
NETWORK = EXTRA / "network.onnx"
INT8 = EXTRA / "network.int8.onnx"
GOLDEN = EXTRA / "golden.npz"
REPORT = EXTRA / "report"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
TOLERANCE = 1e-4  # largest difference of a probability from its golden answer


class BundleError(ValueError):
    """A folder that is no whole, unchanged bundle; the text says what is wrong."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Frames(_Part):
    """Input that is a sequence of vectors of floats."""

    kind: Literal["frames"] = "frames"
    features: int = Field(ge=1)
    names: tuple[str, ...]


class Normalisation(_Part):
    """What the graph does first: (frames - mean) * scale, feature by feature."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]


class Part(_Part):
    """Figures of one part of the data, in percent."""

    count: int
    error: float
    macro_f1: float
    calibration_error: float


class Quantised(_Part):
    """What int8 weights change, on the test part (or, without one, validation)."""

    part: str
    error: float = Field(description="In percent; of the network itself: `Training`.")
    calibration_error: float
    same_class: float = Field(description="In percent of the rows.")
    largest: float = Field(description="Change of a probability, sequences alone.")
    mates: float = Field(description="Change of a probability by batch mates.")
    bound: float = Field(description="Largest difference from the golden answers.")


class Training(_Part):
    """Where the weights come from."""

    source: str
    data: str = Field(description="SHA-256 of the data.")
    seed: int
    validation_fraction: float = Field(description="Of data that names no such part.")
    test_fraction: float
    epochs: int
    best_epoch: int
    longest: int = Field(description="Steps of the longest training sequence.")
    created: str
    parts: dict[str, Part]
    calibration_error_before: float


class Metadata(_Part):
    """`bundle.json`: what the network is, and the digest of every file."""

    format: Literal[1] = FORMAT
    name: str = Field(pattern=NAME)
    version: str = Field(pattern=r"^[1-9][0-9]{0,8}$")
    task: Literal["classify", "label"]
    input: Frames
    classes: tuple[str, ...] = Field(min_length=1)
    cell: Literal["gru", "lstm"]
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    bidirectional: bool
    reset_after: bool
    dropout: float
    state_size: int = Field(ge=0, description="0 where it can't be stepped.")
    normalisation: Normalisation
    temperature: float = Field(gt=0)
    training: Training
    int8: Quantised | None = None
    files: dict[str, str] = Field(default={}, description="SHA-256 by path.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        features = self.input.features
        parts = (self.input.names, self.normalisation.mean, self.normalisation.scale)
        if any(len(part) != features for part in parts):
            raise ValueError(f"not all parts have {features} features")
        vectors = 2 if self.cell == "lstm" else 1
        size = 0 if self.bidirectional else self.layers * self.hidden * vectors
        if self.state_size != size:
            raise ValueError(f"state_size must be {size}")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose every file has been found to be what `metadata` says."""

    folder: Path
    metadata: Metadata
    digest: str  # SHA-256 of `bundle.json`, and by it of everything

    def golden(self) -> Golden:
        return Golden.load(self.folder / GOLDEN)


def read(folder: Path, keys: Path | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        keys: a file of public keys; one of them must have signed it.

    Raises:
        BundleError: no bundle, an unknown format, no signature of these keys, or a
            file that is missing, unexpected or changed; it is named.
    """
    try:
        text = (folder / MARKER).read_bytes()
        if keys is not None:
            signature.verify(text, folder / SIGNATURE, keys)
        metadata = Metadata.model_validate_json(text)
    except signature.SignatureError as error:
        raise BundleError(str(error)) from None
    except OSError as error:
        raise BundleError(f"{folder}: no {MARKER} ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BundleError(f"{folder / MARKER}: {key}: {first['msg']}") from None
    there = set(_files(folder))
    for name in sorted(there ^ set(metadata.files)):
        trouble = "unexpected file" if name in there else "missing file"
        raise BundleError(f"{folder / name}: {trouble}")
    for name, digest in metadata.files.items():
        if _sha256(folder / name) != digest:
            raise BundleError(f"{folder / name}: SHA-256 differs from {MARKER}")
    return Bundle(folder, metadata, hashlib.sha256(text).hexdigest())


def find(root: Path) -> list[Path]:
    """The newest version's folder of each bundle under `root`, by name.

    `root` may also be one bundle, or the folder of its versions. A newest version
    without `bundle.json` is listed too, so that reading it says what is wrong.
    """
    if (root / "saved_model.pb").exists() or (root / MARKER).exists():
        return [root]
    if not root.is_dir():
        return []
    names = sorted(path for path in root.iterdir() if versions(path))
    if not names and versions(root):  # A name may be a number, too.
        return [root / str(versions(root)[-1])]
    return [path / str(versions(path)[-1]) for path in names]


def versions(folder: Path) -> list[int]:
    """The version numbers in the folder of a name, lowest first."""
    if not folder.is_dir():
        return []
    # Also a link that leads nowhere, so that reading it says what is wrong.
    found = (path for path in folder.iterdir() if path.is_dir() or path.is_symlink())
    names = (path.name for path in found)
    return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]{0,8}", name))


@contextmanager
def writing(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    """A temporary folder that becomes the next version of `name` when all went
    well, and is gone otherwise. Yields the folder and the version's number."""
    (root / name).mkdir(parents=True, exist_ok=True)
    version = str(max(versions(root / name), default=0) + 1)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=root / name))
    try:
        yield temporary, version
        temporary.chmod(0o755)
        os.rename(temporary, root / name / version)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(folder: Path, metadata: Metadata) -> Metadata:
    """Write `bundle.json` with the digests of all files that lie in `folder`."""
    files = {name: _sha256(folder / name) for name in sorted(_files(folder))}
    sealed = metadata.model_copy(update={"files": files})
    (folder / MARKER).write_text(
        sealed.model_dump_json(indent=1) + "\n", encoding="utf-8"
    )
    return sealed


def _files(folder: Path) -> Iterator[str]:
    apart = (folder / MARKER, folder / SIGNATURE)
    for path in folder.rglob("*"):
        if (path.is_symlink() or not path.is_dir()) and path not in apart:
            yield path.relative_to(folder).as_posix()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
