"""The versions of one name that are loaded, kept as its folder has them.

A version is loaded aside and only then put in the place of another. What can't be
loaded changes nothing of what is served, and is tried again when its files change.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from service.pool.spawn import WorkerDied
from service.pool.supervisor import WorkerSupervisor
from service.registry import folder as repository
from service.registry.catalog import Model
from service.registry.folder import LATEST, VersionFolder


@dataclass(slots=True)
class LoadedVersion:
    """A version that is loaded, and how its files were then."""

    model: Model
    stamp: Hashable


class ModelVersions:
    """Of one shelf. Not shared: one thread keeps all of them."""

    def __init__(
        self,
        load: Callable[[Bundle], Model],
        broken: Callable[[Path, str | None], None],
        workers: WorkerSupervisor,
        keys: Path | None = None,
    ):
        """
        Args:
            load: has every worker load a bundle.
            broken: told what can't be loaded and why, or (None) that it can again.
            workers: that load it.
            keys: as `bundle.read` takes them.
        """
        self.unloaded = False  # until it is asked for again
        self._load, self._broken, self._keys = load, broken, keys
        self._workers = workers
        self._held: dict[Path, LoadedVersion] = {}
        self._failed: dict[Path, Hashable] = {}
        self._killed: set[Path] = set()  # a worker, when they were loaded
        self._seen: dict[Path, Hashable] = {}
        self._there: set[Path] = set()  # the folders of all versions
        self._labels: dict[str, str] = {}  # to versions that are loaded

    @property
    def models(self) -> dict[str, Model]:
        """By version, oldest first."""
        models = [held.model for held in self._held.values()]
        models.sort(key=lambda model: int(model.metadata.version))
        return {model.metadata.version: model for model in models}

    @property
    def labels(self) -> dict[str, str]:
        """The version of each label; `latest` first."""
        there = [path for path in self._held if path in self._there] or self._held
        versions = [self._held[path].model.metadata.version for path in there]
        return {LATEST: max(versions, key=int), **self._labels}

    def update(
        self, shelf: VersionFolder, keep: int, pinned: set[int], *, at_once: bool
    ) -> list[Model] | None:
        """Load what is wanted and new.

        Args:
            keep, pinned: as `VersionFolder.wanted` takes them, labels apart.
            at_once: also what could not be loaded before, or has changed since the
                last time and may still be written.

        Returns:
            What is served no more; None where all is as before.
        """
        before = self._served()
        labels = self._read_labels(shelf)
        meant = self._labels.values() if labels is None else labels.values()
        wanted = shelf.wanted(keep, {*map(int, meant), *pinned})
        missing = [one for one in wanted if not self._hold(shelf, one, at_once)]
        self._drop_others(wanted, len(missing), broken=labels is None)
        for folder in self._failed.keys() - wanted:
            del self._failed[folder]
            self._broken(folder, None)
        self._seen = {path: s for path, s in self._seen.items() if path in wanted}
        self._label(labels)
        self._there = set(shelf.versions.values())
        after = self._served()
        if after == before:
            return None
        kept = set(after[1].values())
        return [model for model in before[1].values() if model not in kept]

    def clear(self) -> list[Model]:
        """Hold nothing until asked again; what is served no more."""
        gone = [held.model for held in self._held.values()]
        self.unloaded = True
        for part in (self._held, self._failed, self._seen, self._labels):
            part.clear()
        self._killed.clear()
        return gone

    def _served(self) -> tuple[dict[str, str], dict[Path, Model]]:
        models = {path: held.model for path, held in self._held.items()}
        return (self.labels if models else {}), models

    def _drop_others(self, wanted: list[Path], missing: int, *, broken: bool) -> None:
        """Hold only what is wanted; in the place of what is missing what was served
        before: where labels lead (also where they are `broken`), and the newest."""
        others = {p: h for p, h in self._held.items() if p not in wanted}
        versions = {p: h.model.metadata.version for p, h in others.items()}
        labelled = set(self._labels.values()) if missing or broken else set()
        spare = sorted(others, key=lambda path: int(versions[path]))
        kept = {path for path in spare if versions[path] in labelled}
        kept |= set(spare[len(spare) - min(missing, len(spare)) :])
        for folder in others.keys() - kept:
            del self._held[folder]

    def _hold(self, shelf: VersionFolder, folder: Path, at_once: bool) -> bool:
        """Whether a version is loaded as its files are."""
        stamp, held = repository.stamp(folder), self._held.get(folder)
        refused = self._workers.load_failures.get(held.model.number) if held else None
        if held is not None and held.stamp == stamp:
            served = self._workers.is_loaded(held.model.number) and not at_once
            if served or not refused:
                self._broken(folder, refused)  # those that have it serve it still
                return True
        settled, tried = self._seen.get(folder) == stamp, self._failed.get(folder)
        self._seen[folder] = stamp
        if not at_once and (not settled or tried == stamp):
            return False
        try:
            found = bundle.read(folder, self._keys)
            self._check(shelf, found)
            same = held is not None and held.model.digest == found.digest
            if held is not None and same and not refused:
                held.stamp = stamp  # touched, but the same
            else:
                self._held[folder] = LoadedVersion(self._load(found), stamp)
        except Exception as error:
            reason = str(error)
            if not isinstance(error, BundleError):
                reason = f"{folder}: {type(error).__name__}: {error}"
            if isinstance(error, WorkerDied) and folder not in self._killed:
                self._killed.add(folder)  # perhaps not of it: once more
            else:
                self._failed[folder] = stamp
            self._broken(folder, reason)
            return False
        self._killed.discard(folder)
        self._failed.pop(folder, None)
        self._broken(folder, None)
        return True

    def _check(self, shelf: VersionFolder, found: Bundle) -> None:
        metadata, number = found.metadata, shelf.number(found.folder)
        if number and metadata.version != str(number):
            raise BundleError(f"{found.folder}: holds version {metadata.version}")
        for folder, held in self._held.items():
            name = held.model.metadata.name
            if name != metadata.name and folder != found.folder:
                raise BundleError(f"{found.folder}: another version is named {name}")

    def _read_labels(self, shelf: VersionFolder) -> dict[str, int] | None:
        """None where they can't be read: those from before stay."""
        folder = shelf.folder
        if folder is None:
            return {}
        path = folder / repository.LABELS
        try:
            labels = repository.labels(folder)
        except BundleError as error:
            self._broken(path, str(error))
            return None
        self._broken(path, None)
        return labels

    def _label(self, wanted: dict[str, int] | None) -> None:
        if wanted is None:
            return
        there = self.models
        given = {label: str(number) for label, number in wanted.items()}
        before = self._labels
        # One whose version can't be loaded stays where it was.
        meant = {
            label: version if version in there else before.get(label)
            for label, version in given.items()
        }
        self._labels = {k: v for k, v in meant.items() if v is not None and v in there}
