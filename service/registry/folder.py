"""What lies in the folder of bundles: names, their versions, and labels of these.

bundles/NAME/1/  2/  ...    versions
bundles/NAME/labels.json    {"stable": 1, "canary": 2}, where there is one
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
MOST_LABELS = 64
MOST_BYTES = 64 * 2**10  # of the file of labels

_decoder = msgspec.json.Decoder(dict[str, int])


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """The versions of one name, lowest first, as they lie there."""

    name: str  # of their folder
    versions: dict[int, Path]  # 0: one bundle, whatever its folder is called
    hidden: bool = False  # their folder can't be listed, and stands for a bundle

    @property
    def folder(self) -> Path | None:
        """That holds the versions and their labels; None of one bundle."""
        one = next(iter(self.versions.values()))
        if 0 in self.versions:
            return one if self.hidden else None
        return one.parent

    def number(self, folder: Path) -> int:
        """The version that a folder is called by; 0 of one bundle."""
        return next(n for n, path in self.versions.items() if path == folder)

    def wanted(self, keep: int, others: Iterable[int]) -> list[Path]:
        """The folders to be served: of the newest versions (0: of all), and of other
        ones."""
        chosen = {*list(self.versions)[-keep:], *others}
        return [path for number, path in self.versions.items() if number in chosen]


def scan(root: Path) -> list[VersionFolder]:
    """Every name in the folder; it may also be one bundle, or that of its versions.

    What can't be listed below it fails nothing: where it has the name of a bundle, it
    is found as a broken one, and the others are served.

    Raises:
        OSError: the folder itself can't be listed.
    """
    if bundle.is_bundle(root):
        return [VersionFolder(_shown(root.absolute().parent), {0: root})]
    return [
        VersionFolder(
            _shown(folder), {number: folder / str(number) for number in there}
        )
        if there
        else VersionFolder(_shown(folder), {0: folder}, hidden=True)
        for folder, there in bundle.names(root).items()
    ]


def labels(folder: Path) -> dict[str, int]:
    """The labels of a name's versions.

    Raises:
        BundleError: they can't be read, or lead nowhere.
    """
    path = folder / LABELS
    try:
        given = _decoder.decode(bounded_files.read(path, MOST_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}") from None
    if len(given) > MOST_LABELS:
        raise BundleError(f"{path}: has more than {MOST_LABELS} labels")
    try:
        there = bundle.versions(folder)
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}") from None
    for label, version in given.items():
        if label == LATEST or not LABEL.fullmatch(label):
            raise BundleError(f"{path}: {label!r} can't be a label ({LABEL.pattern})")
        if version not in there:
            raise BundleError(f"{path}: {label} is version {version}: not there")
    return given


def stamp(folder: Path) -> Hashable:
    """Changes when a file of a bundle does, is added or taken away; and when one that
    can't be read is given other rights."""
    found = []
    try:
        for name, entry in bounded_files.walk(folder, bundle.MAX_ENTRIES):
            with suppress(OSError):  # gone meanwhile, or a link that leads nowhere
                about = entry.stat()
                owner = (about.st_mode, about.st_uid, about.st_gid)
                content = (about.st_mtime_ns, about.st_size, about.st_ino)
                found.append((name, *content, *owner))
    except (OSError, BundleError) as error:  # reading it will say the same
        return str(error)
    return tuple(sorted(found))


def _shown(folder: Path) -> str:
    """Its name; what is no text in it as escapes, so that it can be told."""
    return folder.name.encode("utf-8", "backslashreplace").decode()
