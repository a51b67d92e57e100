"""Which bundle a file is computed with: the one that the service would take."""

from pathlib import Path

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from service.bulk import object_store
from service.bulk.object_store import Mirror
from service.registry import folder as repository
from service.registry.folder import VersionFolder
from service.settings import Settings


class Bundles:
    """The folder of bundles, or a copy of what is elsewhere."""

    def __init__(self, where: str):
        self._mirror = Mirror(where) if object_store.elsewhere(where) else None
        self._folder = Path(where)

    def __enter__(self) -> Path:
        if self._mirror is None:
            return self._folder
        try:
            self._mirror.start(0)
        except BaseException:
            self._mirror.close()
            raise
        return self._mirror.folder

    def __exit__(self, *_: object) -> None:
        if self._mirror is not None:
            self._mirror.close()


def choose(root: Path, task: str, name: str | None, settings: Settings) -> Bundle:
    """The bundle that the service would take: of that name, `NAME@VERSION` or
    `NAME@LABEL`; without one that of the setting, or the first of the task.

    Raises:
        BundleError: there is none, or it is broken or of the other task.
    """
    name = name or getattr(settings, f"default_{task}")
    wanted, _, version = name.partition("@")
    known, faults = [], []
    for shelf in repository.scan(root):
        try:
            found = _version(shelf, version, settings)
        except BundleError as error:
            faults.append(error)
            continue
        if found is not None:
            metadata = found.metadata
            known.append(f"{metadata.name} ({metadata.task})")
            if metadata.task == task and wanted in ("", metadata.name):
                return found
    if faults:
        raise faults[0]
    there = ", ".join(known) or "none"
    asked = f"no bundle {name}" if name else "no bundle"
    raise BundleError(f"{root}: {asked} for {task}; there are: {there}")


def _version(shelf: VersionFolder, version: str, settings: Settings) -> Bundle | None:
    """A version, or a label's, of what lies on a shelf."""
    labels = repository.read_labels(shelf.folder) if shelf.folder else {}
    newest = list(shelf.versions)[-1]
    labels = {repository.DEFAULT: newest} | labels | {repository.LATEST: newest}
    number = labels.get(version or repository.DEFAULT)
    if number is None and version.isdecimal() and len(version) < 10:
        number = int(version)
    if number not in shelf.versions:
        number = 0  # one bundle, whose version stands in it
    folder = shelf.versions.get(number)
    found = bundle.read(folder, settings.keys) if folder else None
    if found and not number and version.isdecimal():
        return found if found.metadata.version == version else None
    return found
