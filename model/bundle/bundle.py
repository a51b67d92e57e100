"""A bundle: the folder in which training hands a network to the service.

    bundles/NAME/VERSION/
      saved_model.pb  variables/  fingerprint.pb     a TensorFlow SavedModel
      assets.extra/
        network.onnx      the same network for ONNX Runtime
        network.int8.onnx the same with int8 weights (optional)
        vocabulary.json   what turns text or records into numbers (optional)
        golden.npz        inputs, and the outputs that every engine must reproduce
        golden.int8.npz   the same for int8 weights (optional)
        sequences.npy     hashes of the training sequences (optional)
        report/           plots, metrics.json and the model card
        bundle.json       `Metadata`; written last: a folder without it is not a bundle
        bundle.sig        the signature of bundle.json (optional)

`bundle.json` holds the SHA-256 of every file above it; `read` compares them all. A
bundle is written to a temporary folder and renamed: it appears whole or not at all.
"""

import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from model.bundle import bounded_files, signature, vocabulary
from model.bundle.bounded_files import BundleError as BundleError
from model.bundle.golden import MAX_BYTES as MAX_GOLDEN
from model.bundle.golden import Golden
from model.bundle.metadata import NAME, Ids, Metadata, Records
from model.bundle.records import RecordSchema
from model.bundle.vocabulary import Vocabulary

EXTRA = Path("assets.extra")
MARKER = EXTRA / "bundle.json"
SIGNATURE = EXTRA / "bundle.sig"
NETWORK = EXTRA / "network.onnx"
INT8 = EXTRA / "network.int8.onnx"
GOLDEN = EXTRA / "golden.npz"
INT8_GOLDEN = EXTRA / "golden.int8.npz"
SEQUENCES = EXTRA / "sequences.npy"
REPORT = EXTRA / "report"
TOLERANCE = 1e-4  # largest difference of a probability from its golden answer
MAX_SEQUENCES = 2**21  # bytes of `sequences.npy`: 16 for each sequence
MAX_MARKER = 4 * 2**20  # bytes of `bundle.json`: the front process parses it
MAX_VALUES = 200_000  # lists, objects and commas in it: each may become an object
KEY, MAX_KEYS = re.compile(rb'"\s*:'), 20_000  # each may become an error
MAX_SHOWN_ERRORS = 1_000  # pydantic describes all errors of a file or none
MAX_ENTRIES = 1_000  # files and folders in a bundle
MAX_BYTES = 2**32  # of all its files: they are read in full before it is served
MAX_LISTED = 10_000  # names in a folder of bundles, and versions of a name
VERSION = re.compile(r"[1-9][0-9]{0,8}")
Rename = Callable[[Path, Path], object]
Columns = TypeVar("Columns", Vocabulary, RecordSchema)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose files `read` has compared with the digests in `metadata`."""

    folder: Path
    metadata: Metadata
    digest: str  # SHA-256 of `bundle.json`, which holds all other digests

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
            data = bounded_files.read(path, max_bytes)
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

    def golden(
        self, max_bytes: int | None = None, *, precision: str = "float32"
    ) -> Golden:
        """Return the golden answers.

        Args:
            max_bytes: limit of the file, and of its unpacked arrays.
            precision: of the weights, float32 or int8.

        Raises:
            BundleError: the file can't be read, or is not of this network.
        """
        name = INT8_GOLDEN if precision == "int8" else GOLDEN
        path, metadata = self.folder / name, self.metadata
        data = self.content(name.as_posix(), max_bytes or MAX_GOLDEN)
        try:
            answers = Golden.read(data, max_bytes)
        except ValueError as error:
            raise BundleError(f"{path}: {error}") from None
        arrays = (answers.frames, answers.probabilities, answers.state)
        sizes = [array.shape[-1] for array in arrays]
        expected = [metadata.input.features, len(metadata.classes), metadata.state_size]
        task = "label" if answers.probabilities.ndim == 3 else "classify"
        if task != metadata.task or sizes != expected:
            raise BundleError(f"{path}: holds answers of another network")
        return answers

    def vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of a network that reads text; None for frames.

        Raises:
            BundleError: the file can't be read, is not of this network, or this tokenizer
                gives other ids than training had.
        """
        about = self.metadata.input
        if not isinstance(about, Ids):
            return None
        words = self._read_columns(Vocabulary, about)
        if words.kind != about.kind:
            path = self.folder / vocabulary.FILE
            raise BundleError(f"{path}: is the vocabulary of another network")
        return words

    def schema(self) -> RecordSchema | None:
        """Return the columns of a network that reads records; None for others.

        Raises:
            BundleError: the file can't be read, is not of this network, or gives other
                numbers than training had.
        """
        about = self.metadata.input
        if not isinstance(about, Records):
            return None
        schema = self._read_columns(RecordSchema, about)
        if tuple(column.kind for column in schema.fields) != about.kinds:
            path = self.folder / vocabulary.FILE
            raise BundleError(f"{path}: has the columns of another network")
        return schema

    def training_hashes(self) -> np.ndarray | None:
        """Return hash and part of each training sequence, [N, 2] uint64; None: unknown.

        Raises:
            BundleError: the file can't be read, or holds something else.
        """
        if SEQUENCES.as_posix() not in self.metadata.files:
            return None
        content = self.content(SEQUENCES.as_posix(), MAX_SEQUENCES)
        try:
            hashes: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
            return hashes.reshape(-1, 2)
        except (ValueError, EOFError):
            raise BundleError(f"{self.folder / SEQUENCES}: no hashes") from None

    def encoding(self) -> Vocabulary | RecordSchema | None:
        """Return what turns text or records into numbers; None for frames.

        Raises:
            BundleError: see `vocabulary` and `schema`.
        """
        return self.vocabulary() or self.schema()

    def _read_columns(self, kind: type[Columns], about: Ids | Records) -> Columns:
        path = self.folder / vocabulary.FILE
        data = self.content(vocabulary.FILE.as_posix(), vocabulary.MAX_BYTES)
        try:
            content = kind.read(data)
        except ValueError as error:
            raise BundleError(f"{path}: {error}") from None
        columns = [(c.name, c.size, c.width) for c in content.columns]
        expected = [*zip(about.names, about.sizes, about.widths, strict=True)]
        if columns != expected:
            raise BundleError(f"{path}: is the vocabulary of another network")
        return content


def read(folder: Path, keys: Path | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        keys: a file of public keys, one of which must have signed the bundle.

    Raises:
        BundleError: there is no bundle, its format is unknown, none of the keys signed
            it, or a file is missing, unexpected or changed; the message names it.
    """
    paths = _list_files(folder)
    try:
        text = bounded_files.read(folder / MARKER, MAX_MARKER)
        if keys is not None:
            signature.verify(text, folder / SIGNATURE, keys)
    except signature.SignatureError as error:
        raise BundleError(str(error)) from None
    except OSError as error:
        raise BundleError(f"{folder}: no {MARKER} ({error.strerror})") from None
    try:
        metadata = _parse(text)
    except ValueError as error:
        raise BundleError(f"{folder / MARKER}: {error}") from None
    for name in sorted(paths ^ set(metadata.files)):
        reason = "unexpected file" if name in paths else "missing file"
        raise BundleError(f"{folder / name}: {reason}")
    for name, digest in metadata.files.items():
        if _sha256(folder / name) != digest:
            raise BundleError(f"{folder / name}: SHA-256 differs from {MARKER}")
    return Bundle(folder, metadata, hashlib.sha256(text).hexdigest())


def _parse(text: bytes) -> Metadata:
    """Parse `bundle.json`, at a cost that is limited whatever it holds.

    Raises:
        ValueError: it has another content.
    """
    if sum(map(text.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")
    if next(islice(KEY.finditer(text), MAX_KEYS, None), None):
        raise ValueError(f"more than {MAX_KEYS:,} keys")
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        if error.error_count() > MAX_SHOWN_ERRORS:
            raise ValueError(f"{error.error_count():,} errors") from None
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key}: {first['msg']}") from None


def is_bundle(folder: Path) -> bool:
    """True for the folder of a bundle, complete or not."""
    return any(os.path.exists(folder / part) for part in ("saved_model.pb", MARKER))


def names(root: Path) -> dict[Path, list[int]]:
    """Return the folder of each name under `root` with its version numbers, ascending.

    `root` may also be the folder of one name. A folder that can't be listed is skipped
    (`lost+found`), unless its name could be a bundle's: then it has no versions, and
    `read` gives the reason.

    Raises:
        OSError: `root` can't be listed.
    """
    try:
        entries = bounded_files.list_folder(root, MAX_LISTED)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    bundles: dict[Path, list[int]] = {}
    for folder in sorted(root / entry.name for entry in entries):
        try:
            numbers = versions(folder)
        except OSError:
            if re.fullmatch(NAME, folder.name):
                bundles[folder] = []
        else:
            if numbers:
                bundles[folder] = numbers
    # Checked last: a bundle's name may be a number, too.
    if not any(bundles.values()) and (numbers := versions(root)):
        return {root: numbers}
    return bundles


def versions(folder: Path) -> list[int]:
    """Return the version numbers in the folder of a name, ascending.

    Raises:
        OSError: the folder can't be listed.
    """
    try:
        entries = bounded_files.list_folder(folder, MAX_LISTED)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        int(entry.name)
        for entry in entries
        if VERSION.fullmatch(entry.name)
        # A broken link counts, so that `read` gives the reason.
        and (entry.is_symlink() or entry.is_dir(follow_symlinks=False))
    )


@contextmanager
def writing(
    root: Path, name: str, *, after: int = 0, rename: Rename = os.rename
) -> Iterator[tuple[Path, str]]:
    """Yield a temporary folder, and the version number that it reserves for `name`.

    On success `rename` makes the folder that version; after an exception it is removed.
    The number is above those in the folder, and above `after`.

    Raises:
        BundleError: no version number is left.
    """
    (root / name).mkdir(parents=True, exist_ok=True)
    temporary, version = _reserve(root / name, after)
    try:
        yield temporary, version
        temporary.chmod(0o755)
        rename(temporary, root / name / version)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _reserve(folder: Path, after: int) -> tuple[Path, str]:
    """Create the next version's temporary folder, which reserves the number."""
    # On other machines too, and even after its writer was killed.
    number = max([after, *versions(folder)])
    while VERSION.fullmatch(version := str(number := number + 1)):
        temporary = folder / f".{version}"
        with suppress(FileExistsError):  # reserved by another writer
            temporary.mkdir(0o700)
            if not os.path.lexists(folder / version):
                return temporary, version
            temporary.rmdir()  # published since `versions` was called
    raise BundleError(f"{folder}: no version number is left")


def seal(folder: Path, metadata: Metadata) -> Metadata:
    """Write `bundle.json` with the digests of all files in `folder`."""
    digests = {name: _sha256(folder / name) for name in sorted(_list_files(folder))}
    sealed = metadata.model_copy(update={"files": digests})
    (folder / MARKER).write_text(
        sealed.model_dump_json(indent=1) + "\n", encoding="utf-8"
    )
    return sealed


def _list_files(folder: Path) -> set[str]:
    """Return the relative paths of all files that `bundle.json` must list."""
    paths, size = set(), 0
    try:
        for name, entry in bounded_files.walk(folder, MAX_ENTRIES):
            if not entry.is_dir(follow_symlinks=False):
                paths.add(name)
                with suppress(OSError):  # a broken link
                    size += entry.stat().st_size
    except OSError as error:
        raise BundleError(f"{error.filename}: {error.strerror}") from None
    if size > MAX_BYTES:
        raise BundleError(f"{folder}: has more than {MAX_BYTES:,} bytes")
    return paths - {MARKER.as_posix(), SIGNATURE.as_posix()}


def _sha256(path: Path) -> str:
    try:
        return bounded_files.digest(path, MAX_BYTES)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
