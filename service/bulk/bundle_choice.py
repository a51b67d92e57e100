"""Choose the bundle that the service would choose, from folders or an object store."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from model.bundle import bundle, folders, labels
from model.bundle.bundle import Bundle, BundleError
from model.bundle.folders import VersionFolder
from service.bulk import object_store
from service.bulk.object_store import Mirror
from service.settings import Settings


class BundleFolders:
    """Folders of bundles as a context manager; of an object store it is a local copy."""

    def __init__(self, locations: Iterable[str]):
        self._locations, self._mirrors = list(locations), ExitStack()

    def __enter__(self) -> list[Path]:
        with ExitStack() as mirrors:
            paths = [self._path(location, mirrors) for location in self._locations]
            self._mirrors = mirrors.pop_all()
        return paths

    def _path(self, location: str, mirrors: ExitStack) -> Path:
        if not object_store.is_remote(location):
            return Path(location)
        mirror = Mirror(location)
        mirrors.callback(mirror.close)
        mirror.start(0)
        return mirror.folder

    def __exit__(self, *_: object) -> None:
        self._mirrors.close()


def choose(
    roots: Iterable[Path], task: str, name: str | None, settings: Settings
) -> Bundle:
    """The bundle for NAME, NAME@VERSION or NAME@LABEL, as the service would choose it.

    Without a name it is the setting's default, or else the first bundle of the task.

    Raises:
        BundleError: there is no such bundle of this task, or it is broken.
    """
    name = name or getattr(settings, f"default_{task}")
    base_name, _, version = name.partition("@")
    known, errors = [], []
    roots = list(roots)
    for candidate in _read_all(roots, version, settings):
        if isinstance(candidate, BundleError):
            errors.append(candidate)
            continue
        metadata = candidate.metadata
        known.append(f"{metadata.name} ({metadata.task})")
        if metadata.task == task and base_name in ("", metadata.name):
            return candidate
    if errors:
        raise errors[0]
    missing = f"no bundle {name}" if name else "no bundle"
    available = ", ".join(known) or "none"
    places = ", ".join(map(str, roots))
    raise BundleError(f"{places}: {missing} for {task}; there are: {available}")


def find(roots: Iterable[Path], name: str | None, settings: Settings) -> list[Bundle]:
    """The bundle for NAME, NAME@VERSION or NAME@LABEL; without a name, the default
    version of each name.

    Raises:
        BundleError: there is no such bundle, or it is broken.
    """
    base_name, _, version = (name or "").partition("@")
    fitting, errors = [], []
    roots = list(roots)
    for candidate in _read_all(roots, version, settings):
        if isinstance(candidate, BundleError):
            errors.append(candidate)
        elif base_name in ("", candidate.metadata.name):
            fitting.append(candidate)
    if not fitting:
        missing = f"no bundle {name}" if name else "no bundle"
        places = ", ".join(map(str, roots))
        raise errors[0] if errors else BundleError(f"{places}: {missing}")
    return fitting


def _read_all(
    roots: Iterable[Path], version: str, settings: Settings
) -> Iterator[Bundle | BundleError]:
    """Yield that version of each name which has it, or why it can't be read."""
    for versions in folders.scan(*roots):
        try:
            candidate = _read_version(versions, version, settings)
        except BundleError as error:
            yield error
        else:
            if candidate is not None:
                yield candidate


def _read_version(
    versions: VersionFolder, version: str, settings: Settings
) -> Bundle | None:
    """The bundle with a version number or a label; "" is the default version."""
    known = labels.read(*versions.folders)
    # A single bundle is version 0: its version is in its metadata.
    number = labels.find(version, known, versions.versions) or 0
    path = versions.versions.get(number)
    candidate = bundle.read(path, settings.keys) if path else None
    named = number or version in ("", labels.DEFAULT, labels.LATEST)
    if candidate and not named and candidate.metadata.version != version:
        return None
    return candidate
