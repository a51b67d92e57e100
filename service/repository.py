"""What lies in the folder of bundles: names, their versions, and labels of these.

bundles/NAME/1/  2/  ...    versions
bundles/NAME/labels.json    {"stable": 1, "canary": 2}, where there is one
"""

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from model import bundle
from model.bundle import BundleError

LABELS = "labels.json"
DEFAULT, LATEST = "default", "latest"
LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MOST_LABELS = 64

_decoder = msgspec.json.Decoder(dict[str, int])


@dataclass(frozen=True, slots=True)
class Shelf:
    """The versions of one name, lowest first, as they lie there."""

    name: str  # of their folder
    versions: dict[int, Path]  # 0: one bundle, whatever its folder is called

    @property
    def folder(self) -> Path | None:
        """That holds the versions and their labels; None of one bundle."""
        return None if 0 in self.versions else next(iter(self.versions.values())).parent

    def number(self, folder: Path) -> int:
        """The version that a folder is called by; 0 of one bundle."""
        return next(n for n, path in self.versions.items() if path == folder)

    def wanted(self, keep: int, others: Iterable[int]) -> list[Path]:
        """The folders to be served: of the newest versions (0: of all), and of other
        ones."""
        chosen = {*list(self.versions)[-keep:], *others}
        return [path for number, path in self.versions.items() if number in chosen]


def scan(root: Path) -> list[Shelf]:
    """Every name in the folder; it may also be one bundle, or that of its versions.

    Raises:
        OSError: it can't be read.
    """
    found = bundle.find(root)
    if found == [root]:
        return [Shelf(root.absolute().parent.name, {0: root})]
    return [_shelf(newest.parent) for newest in found]


def labels(folder: Path) -> dict[str, int]:
    """The labels of a name's versions.

    Raises:
        BundleError: they can't be read, or lead nowhere.
    """
    path = folder / LABELS
    try:
        given = _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}") from None
    if len(given) > MOST_LABELS:
        raise BundleError(f"{path}: has more than {MOST_LABELS} labels")
    there = bundle.versions(folder)
    for label, version in given.items():
        if label == LATEST or not LABEL.fullmatch(label):
            raise BundleError(f"{path}: {label!r} can't be a label ({LABEL.pattern})")
        if version not in there:
            raise BundleError(f"{path}: {label} is version {version}: not there")
    return given


def stamp(folder: Path) -> Hashable:
    """Changes when a file of a bundle does, is added or taken away."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            about = path.stat()
        except OSError:  # gone meanwhile, or a link that leads nowhere
            continue
        found.append((str(path), about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(found)


def _shelf(folder: Path) -> Shelf:
    return Shelf(folder.name, {n: folder / str(n) for n in bundle.versions(folder)})
