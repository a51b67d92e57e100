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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.bundle import bounded_files as files
from model.bundle import signature
from model.bundle.bounded_files import BundleError as BundleError
from model.bundle.golden import MAX_BYTES as MAX_GOLDEN
from model.bundle.golden import Golden

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
MAX_MARKER = 4 * 2**20  # bytes of `bundle.json`: parsed where requests are answered
MAX_ENTRIES = 1_000  # files and folders of a bundle
MAX_BYTES = 2**32  # of all its files: they are read whole before it is served
MAX_LISTED = 10_000  # names beside each other, and versions of one
VERSION = re.compile(r"[1-9][0-9]{0,8}")


MAX_CLASSES = 10_000
ClassName = Annotated[str, Field(min_length=1, max_length=256)]


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


class Quantization(_Part):
    """What int8 weights change, on the test part (or, without one, validation)."""

    part: str
    error: float = Field(
        description="In percent; of the network itself: `TrainingRecord`."
    )
    calibration_error: float
    same_class: float = Field(description="In percent of the rows.")
    largest: float = Field(description="Change of a probability, sequences alone.")
    mates: float = Field(description="Change of a probability by batch mates.")
    bound: float = Field(description="Largest difference from the golden answers.")


class TrainingRecord(_Part):
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
    classes: tuple[ClassName, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    cell: Literal["gru", "lstm"]
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    bidirectional: bool
    reset_after: bool
    dropout: float
    state_size: int = Field(ge=0, description="0 where it can't be stepped.")
    normalisation: Normalisation
    temperature: float = Field(gt=0)
    training: TrainingRecord
    int8: Quantization | None = None
    files: dict[str, str] = Field(default={}, description="SHA-256 by path.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        features = self.input.features
        parts = (self.input.names, self.normalisation.mean, self.normalisation.scale)
        if any(len(part) != features for part in parts):
            raise ValueError(f"not all parts have {features} features")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must have different names")
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

    def content(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        """Return the bytes of a file, compared with its digest after they were read.

        An engine that opened the file by its name could get another one, put there
        after `read` compared it. So engines get these bytes.

        Raises:
            BundleError: the file can't be read, is larger than `max_bytes`, or its
                SHA-256 is not the one in `bundle.json`.
        """
        path, expected = self.folder / name, self.metadata.files.get(name)
        if expected is None:
            raise BundleError(f"{path}: is not listed in {MARKER}")
        try:
            data = files.read(path, max_bytes)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != expected:
            raise BundleError(f"{path}: SHA-256 differs from {MARKER}")
        return data

    @contextmanager
    def saved_model(self) -> Iterator[Path]:
        """A private copy of the SavedModel's folder, removed on exit.

        TensorFlow loads no bytes, only a folder, and reads all of it while it loads.
        """
        with tempfile.TemporaryDirectory(prefix="unrolled-") as temporary:
            folder = Path(temporary)
            for name in self.metadata.files:
                path = folder / name
                if not Path(name).is_relative_to(EXTRA):
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(self.content(name))
            yield folder

    def golden(self, most: int | None = None) -> Golden:
        """Returns the golden answers.

        Args:
            most: bytes of them, packed or not; else as many as any bundle may have.

        Raises:
            BundleError: as `content` does; or they are no answers of this network.
        """
        path, metadata = self.folder / GOLDEN, self.metadata
        data = self.content(GOLDEN.as_posix(), most or MAX_GOLDEN)
        try:
            found = Golden.read(data, most)
        except ValueError as error:
            raise BundleError(f"{path}: {error}") from None
        sizes = [a.shape[-1] for a in (found.frames, found.probabilities, found.state)]
        features, classes = metadata.input.features, len(metadata.classes)
        labels = found.probabilities.ndim == 3
        other = labels != (metadata.task == "label")
        if other or sizes != [features, classes, metadata.state_size]:
            raise BundleError(f"{path}: holds answers of another network")
        return found


def read(folder: Path, keys: Path | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        keys: a file of public keys; one of them must have signed it.

    Raises:
        BundleError: no bundle, an unknown format, no signature of these keys, or a
            file that is missing, unexpected or changed; it is named.
    """
    there = _listed(folder)
    try:
        text = files.read(folder / MARKER, MAX_MARKER)
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
    without `bundle.json` is listed too, so that reading it says what is wrong; so is
    the folder of a name that can't be listed.

    Raises:
        OSError: `root` can't be listed.
    """
    if is_bundle(root):
        return [root]
    return [
        folder / str(there[-1]) if there else folder
        for folder, there in names(root).items()
    ]


def is_bundle(folder: Path) -> bool:
    """Whether it is one, whole or not, and no folder of them."""
    return any(os.path.exists(folder / part) for part in ("saved_model.pb", MARKER))


def names(root: Path) -> dict[Path, list[int]]:
    """The folders of all names under `root` with their versions, lowest first; `root`
    may also be that of one name.

    A folder that can't be listed is no name's (as `lost+found`), unless it is called
    like a bundle: then it has no versions, and reading it says what is wrong.

    Raises:
        OSError: `root` can't be listed.
    """
    try:
        entries = files.listed(root, MAX_LISTED)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[Path, list[int]] = {}
    for folder in sorted(root / entry.name for entry in entries):
        try:
            there = versions(folder)
        except OSError:
            if re.fullmatch(NAME, folder.name):
                found[folder] = []
        else:
            if there:
                found[folder] = there
    if not any(found.values()) and (own := versions(root)):
        return {root: own}  # a name may be a number, too
    return found


def versions(folder: Path) -> list[int]:
    """The version numbers in the folder of a name, lowest first.

    Raises:
        OSError: it can't be listed.
    """
    try:
        entries = files.listed(folder, MAX_LISTED)
    except (FileNotFoundError, NotADirectoryError):
        return []
    there = (entry for entry in entries if VERSION.fullmatch(entry.name))
    # Also a link that leads nowhere, so that reading it says what is wrong.
    found = (e.name for e in there if e.is_symlink() or e.is_dir(follow_symlinks=False))
    return sorted(map(int, found))


@contextmanager
def writing(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    """A temporary folder that becomes the next version of `name` when all went
    well, and is gone otherwise. Yields the folder and the version's number, which
    nobody else is given meanwhile.

    Raises:
        BundleError: no number is left.
    """
    (root / name).mkdir(parents=True, exist_ok=True)
    temporary, version = _reserve(root / name)
    try:
        yield temporary, version
        temporary.chmod(0o755)
        os.rename(temporary, root / name / version)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _reserve(folder: Path) -> tuple[Path, str]:
    """Make the temporary folder of the next version. To make it is to reserve the
    number, for other machines too; one whose writer was killed stays reserved."""
    number = max(versions(folder), default=0)
    while VERSION.fullmatch(version := str(number := number + 1)):
        temporary = folder / f".{version}"
        with suppress(FileExistsError):  # somebody writes it, or has begun to
            temporary.mkdir(0o700)
            if not os.path.lexists(folder / version):
                return temporary, version
            temporary.rmdir()  # published since we looked
    raise BundleError(f"{folder}: no version number is left")


def seal(folder: Path, metadata: Metadata) -> Metadata:
    """Write `bundle.json` with the digests of all files that lie in `folder`."""
    there = sorted(_listed(folder))
    digests = {name: _sha256(folder / name) for name in there}
    sealed = metadata.model_copy(update={"files": digests})
    (folder / MARKER).write_text(
        sealed.model_dump_json(indent=1) + "\n", encoding="utf-8"
    )
    return sealed


def _listed(folder: Path) -> set[str]:
    """The paths of all files that `bundle.json` has to name."""
    found, size = set(), 0
    try:
        for name, entry in files.walk(folder, MAX_ENTRIES):
            if not entry.is_dir(follow_symlinks=False):
                found.add(name)
                with suppress(OSError):  # a link that leads nowhere
                    size += entry.stat().st_size
    except OSError as error:
        raise BundleError(f"{error.filename}: {error.strerror}") from None
    if size > MAX_BYTES:
        raise BundleError(f"{folder}: has more than {MAX_BYTES:,} bytes")
    return found - {MARKER.as_posix(), SIGNATURE.as_posix()}


def _sha256(path: Path) -> str:
    try:
        return files.digest(path, MAX_BYTES)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
