"""The loaded versions of one name, kept in step with its folder.

A version is loaded first, and only then takes the place of another. One that can't be
loaded changes nothing of what is served. It is tried again when its files change, and
after pauses that grow from a minute to an hour.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from model.bundle import bundle
from model.bundle import labels as bundle_labels
from model.bundle.bundle import Bundle, BundleError
from model.bundle.folders import VersionFolder
from model.bundle.labels import DEFAULT, LABELS, LATEST
from service.pool.spawn import WorkerDied
from service.pool.supervisor import WorkerSupervisor
from service.registry.catalog import Model
from service.registry.stamp import stamp_of

RETRY_SECONDS, MAX_RETRY_SECONDS = 60.0, 3600.0  # first and longest pause


@dataclass(slots=True)
class FailedVersion:
    """A version that can't be loaded. Its files are tried again later, since the reason may
    be the machine's: a full disk, or too little memory."""

    stamp: Hashable
    pause: float = field(default_factory=lambda: RETRY_SECONDS)
    failed: float = field(default_factory=time.monotonic)

    def waits(self, stamp: Hashable) -> bool:
        """Return whether such files need not be tried now."""
        return stamp == self.stamp and time.monotonic() < self.failed + self.pause

    def again(self, stamp: Hashable) -> "FailedVersion":
        """Return the next failure, with twice the pause for the same files."""
        if stamp != self.stamp:
            return FailedVersion(stamp)
        return FailedVersion(stamp, min(2 * self.pause, MAX_RETRY_SECONDS))


@dataclass(slots=True)
class LoadedVersion:
    """A loaded version, and the stamp of its files then."""

    model: Model
    stamp: Hashable


class ModelVersions:
    """The versions of one name. Not thread-safe: only the loader thread uses it."""

    def __init__(
        self,
        load: Callable[[Bundle], Model],
        set_error: Callable[[Path, str | None], None],
        workers: WorkerSupervisor,
        keys: Path | None = None,
    ):
        """
        Args:
            load: loads a bundle in every worker.
            set_error: called with why a path can't be loaded; None: it can again.
            keys: see `bundle.read`.
        """
        self.unloaded = False  # by request, until it is loaded by request
        self._load, self._set_error, self._keys = load, set_error, keys
        self._workers = workers
        self._loaded: dict[Path, LoadedVersion] = {}
        self._failed: dict[Path, FailedVersion] = {}
        self._killed_worker: set[Path] = set()  # once, while loading
        self._seen: dict[Path, Hashable] = {}  # stamps at the last update
        self._on_disk: set[Path] = set()
        self._labels: dict[str, str] = {}  # to loaded versions
        self._known: dict[str, int] | None = None  # the labels that were read last

    @property
    def models(self) -> dict[str, Model]:
        """The models by version, oldest first."""
        models = [loaded.model for loaded in self._loaded.values()]
        models.sort(key=lambda model: int(model.metadata.version))
        return {model.metadata.version: model for model in models}

    @property
    def labels(self) -> dict[str, str]:
        """The version of each label; `latest` first."""
        paths = [path for path in self._loaded if path in self._on_disk] or self._loaded
        versions = [self._loaded[path].model.metadata.version for path in paths]
        return {LATEST: max(versions, key=int), **self._labels}

    def update(
        self, folder: VersionFolder, newest: int, pinned: set[int], *, force: bool
    ) -> list[Model] | None:
        """Load the versions that should be served and are not.

        Args:
            newest, pinned: see `VersionFolder.select`; labelled versions are added.
                Versions newer than the label `default` don't count as the newest.
            force: also load what failed before, or has changed since the last update
                and may still be being written.

        Returns:
            The models that are no longer served; None if nothing has changed.
        """
        before = self._snapshot()
        valid = self._read_labels(folder)
        # Without labels any version might be one that was never promoted.
        known = {DEFAULT: 0} if self._known is None else self._known
        default = known.get(DEFAULT)
        paths = folder.select(newest, {*known.values(), *pinned}, default)
        missing = 0
        for path in paths:  # the oldest first
            newer = default is not None and folder.number(path) > default
            # A newer one must not be served for want of the default version.
            allowed = not newer or self._serves(default)
            missing += not (allowed and self._ensure(folder, path, force))
        self._drop_others(paths, missing, labels_broken=not valid)
        for path in self._failed.keys() - paths:
            del self._failed[path]
            self._set_error(path, None)
        self._seen = {path: s for path, s in self._seen.items() if path in paths}
        self._set_labels()
        self._on_disk = set(folder.versions.values())
        after = self._snapshot()
        if after == before:
            return None
        remaining = set(after[1].values())
        return [model for model in before[1].values() if model not in remaining]

    def clear(self) -> list[Model]:
        """Drop every version until a load is requested; returns their models."""
        models = [loaded.model for loaded in self._loaded.values()]
        self.unloaded = True
        for mapping in (self._loaded, self._failed, self._seen, self._labels):
            mapping.clear()
        self._killed_worker.clear()
        return models

    def _snapshot(self) -> tuple[dict[str, str], dict[Path, Model]]:
        models = {path: loaded.model for path, loaded in self._loaded.items()}
        return (self.labels if models else {}), models

    def _drop_others(
        self, paths: list[Path], missing: int, *, labels_broken: bool
    ) -> None:
        """Drop what is not in `paths`, except replacements for missing versions: those
        that have a label (or had one, if labels are broken), and the newest."""
        others = {p: v for p, v in self._loaded.items() if p not in paths}
        versions = {p: v.model.metadata.version for p, v in others.items()}
        labelled = set(self._labels.values()) if missing or labels_broken else set()
        oldest_first = sorted(others, key=lambda path: int(versions[path]))
        spared = {path for path in oldest_first if versions[path] in labelled}
        spared |= set(oldest_first[len(others) - min(missing, len(others)) :])
        for path in others.keys() - spared:
            del self._loaded[path]

    def _ensure(self, folder: VersionFolder, path: Path, force: bool) -> bool:
        """Load a version if it isn't; returns whether it is loaded as on disk."""
        stamp, loaded = stamp_of(path), self._loaded.get(path)
        failure = None
        if loaded is not None:
            number = loaded.model.number
            failure = self._workers.load_failures.get(number)
            if loaded.stamp == stamp:
                served = self._workers.is_loaded(number) and not force
                if served or not failure:
                    self._set_error(path, failure)  # some workers still serve it
                    return True
        settled = self._seen.get(path) == stamp
        self._seen[path] = stamp
        failed = self._failed.get(path)
        if not force and failed is not None and failed.waits(stamp):
            return False
        try:
            candidate = bundle.read(path, self._keys)
            self._check(folder, candidate)
            same = loaded is not None and loaded.model.digest == candidate.digest
            if loaded is not None and same and not failure:
                loaded.stamp = stamp  # other timestamps, same content
            else:
                self._loaded[path] = LoadedVersion(self._load(candidate), stamp)
        except Exception as error:
            if not (settled or force) and isinstance(error, BundleError):
                return False  # it may still be being written
            reason = str(error)
            if not isinstance(error, BundleError):
                reason = f"{path}: {type(error).__name__}: {error}"
            if isinstance(error, WorkerDied) and path not in self._killed_worker:
                self._killed_worker.add(path)  # it may not be the cause: try again
            else:
                failed = failed or FailedVersion(None)
                self._failed[path] = failed.again(stamp)
            self._set_error(path, reason)
            return False
        self._killed_worker.discard(path)
        self._failed.pop(path, None)
        self._set_error(path, None)
        return True

    def _check(self, folder: VersionFolder, candidate: Bundle) -> None:
        metadata, number = candidate.metadata, folder.number(candidate.folder)
        if number and metadata.version != str(number):
            raise BundleError(f"{candidate.folder}: holds version {metadata.version}")
        for path, loaded in self._loaded.items():
            name = loaded.model.metadata.name
            if name != metadata.name and path != candidate.folder:
                raise BundleError(
                    f"{candidate.folder}: another version is named {name}"
                )

    def _serves(self, default: int | None) -> bool:
        """Return true if a version is loaded that the name alone may mean."""
        loaded = map(int, self.models)
        return DEFAULT in self._labels or any(n <= (default or 0) for n in loaded)

    def _read_labels(self, folder: VersionFolder) -> bool:
        """Read the labels on disk; False if they are invalid.

        If they can't be read the former ones stay, and so does a label whose version does
        not exist."""
        if not folder.folders:
            self._known = {}
            return True
        path = folder.folders[-1] / LABELS
        try:
            self._known = bundle_labels.read(*folder.folders, existing=False)
            bundle_labels.check_existing(path, self._known, folder.versions)
        except BundleError as error:
            self._set_error(path, str(error))
            return False
        self._set_error(path, None)
        return True

    def _set_labels(self) -> None:
        known, loaded, former = self._known or {}, self.models, self._labels
        targets = {
            # A label whose version can't be loaded stays where it was.
            label: str(number) if str(number) in loaded else former.get(label)
            for label, number in known.items()
        }
        self._labels = {
            k: v for k, v in targets.items() if v is not None and v in loaded
        }
        if DEFAULT in known and DEFAULT not in self._labels:
            older = [n for n in map(int, loaded) if n <= known[DEFAULT]]
            if older:  # in place of it: newer ones are not promoted
                self._labels[DEFAULT] = str(max(older))
