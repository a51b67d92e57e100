"""Folders of bundles: which of them are served, and the versions of each name in them.

bundles/NAME/1/  2/  ...    versions
bundles/NAME/labels.json    names for versions, see `labels`

Several folders are served as one: the versions of a name are those of all folders.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.bundle import bundle

ROOT = Path(__file__).parents[2]
# The shipped bundles: in the wheel beside the command, in a checkout at its root.
INSTALLED = ROOT / "unrolled" / "bundles"
SHIPPED = INSTALLED if INSTALLED.is_dir() else ROOT / "bundles"
TRAINED = Path("trained")  # in the current folder: what training writes
DEFAULTS = (SHIPPED, TRAINED)
Scan = tuple[Path, "dict[str, VersionFolder]"]  # a folder, and its entries by name


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """The versions of one name on disk, lowest first."""

    name: str  # of the folder
    # {0: path} for a bundle that has no version folder, or a folder that can't be listed.
    versions: dict[int, Path]
    folders: tuple[Path, ...] = ()  # of versions and labels; () for a single bundle

    def number(self, path: Path) -> int:
        """The version that a path is named after; 0 for a single bundle."""
        return next(number for number, p in self.versions.items() if p == path)

    def select(
        self, newest: int, others: Iterable[int], default: int | None = None
    ) -> list[Path]:
        """The paths of the newest versions (0: of all), and of other ones.

        Args:
            default: newer versions than this one don't count as the newest.
        """
        numbers = [n for n in self.versions if default is None or n <= default]
        chosen = {*numbers[-newest:], *others}
        return [path for number, path in self.versions.items() if number in chosen]


def scan(*roots: Path) -> list[VersionFolder]:
    """List every name in the folders, those of the first folder first.

    A folder may also be a single bundle, or the folder of its versions; one that does
    not exist has no names. If two folders have the same version of a name, that of the
    later folder counts. A single bundle replaces the versions before it.

    A subfolder that can't be listed does not fail the scan: if its name is a bundle's,
    it is a bundle without version folders, and reading it gives the reason.

    Raises:
        OSError: a folder itself can't be listed.
    """
    scans = [(root, {entry.name: entry for entry in _scan(root)}) for root in roots]
    names = dict.fromkeys(name for _, entries in scans for name in entries)
    return [_merge(name, scans) for name in names]


def of_name(name: str, output: Path) -> list[Path]:
    """The folders of a name's versions, one of which is new in `output`, which is last.

    They are in the folders that are served by default, up to `output`; if it is none of
    those, `output` is served alone.
    """
    place = _place(output)
    before = [] if place is None else DEFAULTS[:place]
    return [root / name for root in (*before, output)]


def highest_version(name: str, output: Path) -> int:
    """The highest version of a name in the folders that are served with `output`.

    Raises:
        OSError: a folder can't be listed.
    """
    roots = [output] if _place(output) is None else DEFAULTS
    return max((n for root in roots for n in bundle.versions(root / name)), default=0)


def _place(output: Path) -> int | None:
    resolved = [folder.resolve() for folder in DEFAULTS]
    return resolved.index(output.resolve()) if output.resolve() in resolved else None


def _scan(root: Path) -> list[VersionFolder]:
    if bundle.is_bundle(root):
        return [VersionFolder(_printable(root.absolute().parent), {0: root})]
    return [
        VersionFolder(
            _printable(path),
            {n: path / str(n) for n in numbers} or {0: path},
            (path,),
        )
        for path, numbers in bundle.names(root).items()
    ]


def _merge(name: str, scans: list[Scan]) -> VersionFolder:
    """Join the versions of a name, and the folders that have or may get its labels."""
    for place, (_, entries) in reversed(list(enumerate(scans))):
        if name in entries and not entries[name].folders:  # a single bundle
            if not any(name in later for _, later in scans[place + 1 :]):
                return entries[name]
            scans = scans[place + 1 :]
            break
    versions: dict[int, Path] = {}
    folders: list[Path] = []
    for root, entries in scans:
        if name in entries:
            versions |= entries[name].versions
            folders += entries[name].folders
        elif all(other.folders == (root / other.name,) for other in entries.values()):
            folders.append(root / name)
    if len(versions) > 1:
        versions.pop(
            0, None
        )  # a folder that can't be listed: nor can its labels be read
    return VersionFolder(name, dict(sorted(versions.items())), tuple(folders))


def _printable(folder: Path) -> str:
    """The folder's name, with what is not valid text escaped."""
    return folder.name.encode("utf-8", "backslashreplace").decode()
