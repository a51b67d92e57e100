"""Choose the bundle that the service would choose, from a folder or an object store."""

from pathlib import Path

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from service.bulk import object_store
from service.bulk.object_store import Mirror
from service.registry import folder as bundle_folder
from service.registry.folder import VersionFolder
from service.settings import Settings


class BundleFolder:
    """A folder of bundles as a context manager; of an object store it is a local copy."""

    def __init__(self, location: str):
        self._mirror = Mirror(location) if object_store.is_remote(location) else None
        self._folder = Path(location)

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
    """The bundle for NAME, NAME@VERSION or NAME@LABEL, as the service would choose it.

    Without a name it is the setting's default, or else the first bundle of the task.

    Raises:
        BundleError: there is no such bundle of this task, or it is broken.
    """
    name = name or getattr(settings, f"default_{task}")
    base_name, _, version = name.partition("@")
    known, errors = [], []
    for versions in bundle_folder.scan(root):
        try:
            candidate = _read_version(versions, version, settings)
        except BundleError as error:
            errors.append(error)
            continue
        if candidate is not None:
            metadata = candidate.metadata
            known.append(f"{metadata.name} ({metadata.task})")
            if metadata.task == task and base_name in ("", metadata.name):
                return candidate
    if errors:
        raise errors[0]
    missing = f"no bundle {name}" if name else "no bundle"
    available = ", ".join(known) or "none"
    raise BundleError(f"{root}: {missing} for {task}; there are: {available}")


def _read_version(
    versions: VersionFolder, version: str, settings: Settings
) -> Bundle | None:
    """The bundle with a version number or a label; "" is the default version."""
    labels = bundle_folder.read_labels(versions.folder) if versions.folder else {}
    newest = list(versions.versions)[-1]
    labels = {bundle_folder.DEFAULT: newest} | labels | {bundle_folder.LATEST: newest}
    number = labels.get(version or bundle_folder.DEFAULT)
    if number is None and version.isdecimal() and len(version) < 10:
        number = int(version)
    if number not in versions.versions:
        number = 0  # a single bundle: its version is in its metadata
    path = versions.versions.get(number)
    candidate = bundle.read(path, settings.keys) if path else None
    if candidate and not number and version.isdecimal():
        return candidate if candidate.metadata.version == version else None
    return candidate
