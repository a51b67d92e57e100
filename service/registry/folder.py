"""The folder of bundles: scan it for names, versions and labels.

bundles/NAME/1/  2/  ...    versions
bundles/NAME/labels.json    {"stable": 1, "next": 2}, optional
"""

import re
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from model.bundle import bounded_files, bundle
from model.bundle.bundle import BundleError

LABELS = "labels.json"
DEFAULT, LATEST = "default", "latest"
LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MAX_LABELS = 64
MAX_LABELS_BYTES = 64 * 2**10

_decoder = msgspec.json.Decoder(dict[str, int])


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """The versions of one name on disk, lowest first."""

    name: str  # of the folder
    versions: dict[int, Path]  # {0: path} for a bundle that has no version folder
    unreadable: bool = False  # the folder can't be listed, and counts as a bundle

    @property
    def folder(self) -> Path | None:
        """The folder of the versions and their labels; None for a single bundle."""
        first = next(iter(self.versions.values()))
        if 0 in self.versions:
            return first if self.unreadable else None
        return first.parent

    def number(self, path: Path) -> int:
        """The version that a path is named after; 0 for a single bundle."""
        return next(number for number, p in self.versions.items() if p == path)

    def select(self, newest: int, others: Iterable[int]) -> list[Path]:
        """The paths of the newest versions (0: of all), and of other ones."""
        chosen = {*list(self.versions)[-newest:], *others}
        return [path for number, path in self.versions.items() if number in chosen]


def scan(root: Path) -> list[VersionFolder]:
    """List every name in a folder. The folder may also be a single bundle, or the folder
    of its versions.

    A subfolder that can't be listed does not fail the scan: if its name is a bundle's,
    it is returned as `unreadable`.

    Raises:
        OSError: the folder itself can't be listed.
    """
    if bundle.is_bundle(root):
        return [VersionFolder(_printable(root.absolute().parent), {0: root})]
    return [
        VersionFolder(_printable(path), {n: path / str(n) for n in numbers})
        if numbers
        else VersionFolder(_printable(path), {0: path}, unreadable=True)
        for path, numbers in bundle.names(root).items()
    ]


def read_labels(folder: Path) -> dict[str, int]:
    """The labels of a name's versions.

    Raises:
        BundleError: the file can't be read, or a label's version does not exist.
    """
    path = folder / LABELS
    try:
        labels = _decoder.decode(bounded_files.read(path, MAX_LABELS_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}") from None
    if len(labels) > MAX_LABELS:
        raise BundleError(f"{path}: has more than {MAX_LABELS} labels")
    try:
        versions = bundle.versions(folder)
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}") from None
    for label, version in labels.items():
        if label == LATEST or not LABEL.fullmatch(label):
            raise BundleError(f"{path}: {label!r} can't be a label ({LABEL.pattern})")
        if version not in versions:
            raise BundleError(f"{path}: {label}: there is no version {version}")
    return labels


def stamp(folder: Path) -> Hashable:
    """A value that changes when a bundle's file changes, is added or removed, or gets
    other permissions."""
    files = []
    try:
        for name, entry in bounded_files.walk(folder, bundle.MAX_ENTRIES):
            with suppress(OSError):  # removed meanwhile, or a dangling link
                status = entry.stat()
                owner = (status.st_mode, status.st_uid, status.st_gid)
                content = (status.st_mtime_ns, status.st_size, status.st_ino)
                files.append((name, *content, *owner))
    except (OSError, BundleError) as error:  # reading the bundle will fail likewise
        return str(error)
    return tuple(sorted(files))


def _printable(folder: Path) -> str:
    """The folder's name, with what is not valid text escaped."""
    return folder.name.encode("utf-8", "backslashreplace").decode()
