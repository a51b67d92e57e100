"""Labels: names for the versions of a bundle, and which version is served by default.

NAME/labels.json     {"default": 1, "next": 2}
NAME/history.json    [1, 2, 1]: the versions that were the default before

A name alone means its version `default`, or the newest one while there is no such label.
Versions newer than `default` are not served unless another label names them, so that a
new version is served only when it is promoted.

The files may be in each folder that has the name; those of the last such folder count.
They are written to the last folder, whole or not at all: to a temporary file, which is
then renamed.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from model.bundle import bounded_files, bundle
from model.bundle.bundle import BundleError

LABELS, HISTORY, LOCK = "labels.json", "history.json", ".lock"
DEFAULT, LATEST = "default", "latest"
LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MAX_LABELS = 64
MAX_LABELS_BYTES = 64 * 2**10
MAX_HISTORY = 100
LOCK_SECONDS = 30.0

_labels = msgspec.json.Decoder(dict[str, int])
_history = msgspec.json.Decoder(list[int])


def read(*folders: Path, existing: bool = True) -> dict[str, int]:
    """The labels of a name's versions, from the last folder that has some.

    Args:
        folders: of the name's versions.
        existing: check that the versions exist; else call `check_existing`.

    Raises:
        BundleError: the file can't be read, or a label's version does not exist.
    """
    for folder in reversed(folders):
        path = folder / LABELS
        try:
            labels = _labels.decode(bounded_files.read(path, MAX_LABELS_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: {error}") from None
        _check_names(path, labels)
        if existing:
            check_existing(path, labels, versions(folders))
        return labels
    return {}


def check_existing(path: Path, labels: dict[str, int], known: Collection[int]) -> None:
    """Check that the versions exist that labels are for.

    Raises:
        BundleError: one does not; names its label.
    """
    for label, version in labels.items():
        if version not in known:
            raise BundleError(
                f"{path}: {label}: there is no version {version}; if another folder has"
                " it, name that folder too"
            )


def find(
    reference: str | None, labels: dict[str, int], known: Collection[int]
) -> int | None:
    """The version that a label or a number means, of the known ones; None if there is none.

    Args:
        reference: None or "" is the default version. `latest` is the newest that is served:
            newer ones than the default need a label.
    """
    labels = {DEFAULT: max(known, default=0)} | labels
    labels[LATEST] = max(labels.values())
    number = labels.get(reference or DEFAULT)
    if reference and number is None and bundle.VERSION.fullmatch(reference):
        number = int(reference)
    return number if number in known else None


def versions(folders: Sequence[Path]) -> list[int]:
    """The versions of a name in all its folders, ascending.

    Raises:
        BundleError: a folder can't be listed.
    """
    try:
        return sorted({n for folder in folders for n in bundle.versions(folder)})
    except OSError as error:
        raise BundleError(f"{error.filename}: {error.strerror}") from None


def default(folders: Sequence[Path]) -> int | None:
    """The version that a name alone means; None if there is no version.

    Raises:
        BundleError: see `read`.
    """
    known = versions(folders)
    return read(*folders).get(DEFAULT, known[-1] if known else None)


def publish(temporary: Path, to: Path, folders: Sequence[Path]) -> None:
    """Rename the folder of a new version. The default version stays what it is.

    Raises:
        BundleError: the labels can't be read or written; nothing was renamed.
    """
    with _locked(folders[-1]):
        labels, present = read(*folders), default(folders)
        if present is not None and DEFAULT not in labels:
            _write(folders[-1] / LABELS, {**labels, DEFAULT: present})
        os.rename(temporary, to)


def promote(
    folders: Sequence[Path],
    version: int,
    label: str = DEFAULT,
    *,
    instead_of: int | None = None,
) -> int | None:
    """Let a label mean a version from now on, by default the label `default`.

    Args:
        instead_of: change nothing if the default is not this version any more.

    Returns:
        The version that the label meant before, `version` if nothing changes.

    Raises:
        BundleError: the version does not exist, the label is no possible one, or the
            labels can't be read or written.
    """
    with _locked(folders[-1]):
        labels = read(*folders)
        before = default(folders) if label == DEFAULT else labels.get(label)
        if instead_of not in (None, before):
            return before
        changed = {**labels, label: version}
        _check_names(folders[-1] / LABELS, changed)
        check_existing(folders[-1] / LABELS, changed, versions(folders))
        if label == DEFAULT and before not in (None, version):
            # First, so that it is known whenever the default has changed.
            history = [*_read_history(folders), before]
            _write(folders[-1] / HISTORY, history[-MAX_HISTORY:])
        if changed != labels:
            _write(folders[-1] / LABELS, changed)
        return before


def rollback(
    folders: Sequence[Path], check: Callable[[int], object] = lambda version: None
) -> tuple[int, int]:
    """Make the version the default that was it before.

    Args:
        check: raises BundleError for a version that can't be served.

    Returns:
        The former default version, and the one that it is now.

    Raises:
        BundleError: no other version was the default, or see `promote`.
    """
    with _locked(folders[-1]):
        labels, known, present = read(*folders), versions(folders), default(folders)
        history = [n for n in _read_history(folders) if n in known]
        while history and history[-1] == present:
            history.pop()
        if not history or present is None:
            raise BundleError(f"{folders[-1]}: no other version was the default before")
        version = history.pop()
        check(version)
        _write(folders[-1] / LABELS, {**labels, DEFAULT: version})
        _write(folders[-1] / HISTORY, history)
        return present, version


def _check_names(path: Path, labels: dict[str, int]) -> None:
    if len(labels) > MAX_LABELS:
        raise BundleError(f"{path}: has more than {MAX_LABELS} labels")
    for label in labels:
        if label == LATEST or not LABEL.fullmatch(label):
            raise BundleError(f"{path}: {label!r} can't be a label ({LABEL.pattern})")


def _read_history(folders: Sequence[Path]) -> list[int]:
    """The versions that were the default, the last one last. A damaged file has none."""
    for folder in reversed(folders):
        with suppress(OSError, ValueError):
            return _history.decode(
                bounded_files.read(folder / HISTORY, MAX_LABELS_BYTES)
            )
    return []


def _write(path: Path, content: object) -> None:
    """Replace a file. A power cut leaves the former content or the new one."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # the service may run as another user
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change the labels in a folder.

    Raises:
        BundleError: another process holds the lock, or the folder can't be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as file:
            _lock(file.fileno(), folder)
            yield
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: {error.strerror}") from None


def _lock(file: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BundleError(
                    f"{folder}: another process has been changing the labels for"
                    f" {LOCK_SECONDS:.0f} s; try again"
                ) from None
            time.sleep(0.02)
        else:
            return
