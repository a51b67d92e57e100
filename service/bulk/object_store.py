"""Mirror a folder of bundles in an object store to a local folder.

Only complete bundles are copied; one that is still being written is copied later.
"""

import logging
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from model.bundle import bundle
from model.bundle.bundle import BundleError
from model.bundle.labels import LABELS
from model.bundle.metadata import NAME
from service.settings import PREFIX

log = logging.getLogger(__name__)

URI = re.compile(r"[a-z][a-z0-9+.-]+://")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
PART = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f]{1,255}")  # of an object's name
JOIN_SECONDS = 10
MAX_FILES, MAX_BYTES = bundle.MAX_ENTRIES, bundle.MAX_BYTES  # of a version
CHUNK = 2**20
MAX_RETRY_SECONDS = 300.0  # between attempts to copy, unless syncs are rarer

Stamp = frozenset[tuple[str, int, int]]  # the path, time and size of each file


class FailedCopy(NamedTuple):
    """A version that could not be copied, for example because the disk is full."""

    stamp: Stamp
    delay: float  # seconds before the next attempt
    retry_at: float  # monotonic time of the next attempt


def is_remote(location: str) -> bool:
    """Returns true for a URI, false for a path on this machine."""
    return bool(URI.match(location))


def from_environment() -> str:
    """The value of UNROLLED_BUNDLES if it is a URI, else ""."""
    location = os.environ.get(f"{PREFIX}BUNDLES", "")
    return location if is_remote(location) else ""


def without_credentials(location: str) -> str:
    """A URI without the user and the password before its host."""
    return re.sub(r"//[^/@]*@", "//", location)


class Mirror:
    """A local copy of NAME/VERSION/ and NAME/labels.json, kept up to date."""

    def __init__(self, source: str):
        """
        Args:
            source: `s3://bucket/bundles`, `gs://...`, or another URI of PyArrow's.

        Raises:
            ValueError, OSError: the URI is invalid, or can't be reached.
        """
        from pyarrow.fs import FileSystem

        try:
            self._filesystem, self._root = FileSystem.from_uri(source)
        except ValueError as error:  # its message may repeat the URI
            raise ValueError(without_credentials(str(error))) from None
        self._source = without_credentials(source)
        self.folder = Path(tempfile.mkdtemp(prefix="bundles-"))
        # By NAME/VERSION or NAME/labels.json.
        self._copied: dict[str, Stamp] = {}
        self._broken: dict[str, Stamp] = {}
        self._failed: dict[str, FailedCopy] = {}
        self._sync_seconds = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float) -> None:
        """Copy everything, then sync every so many seconds (0: never).

        Raises:
            BundleError, OSError: no bundle can be copied.
        """
        self._sync_seconds = seconds
        try:
            self.sync()
        except (OSError, BundleError) as error:
            if not self._copied:
                raise
            self._warn(str(error))
        if not self._copied:
            raise BundleError(f"{self._source}: no NAME/VERSION with a bundle found")
        if seconds:
            self._thread = threading.Thread(
                target=self._sync_repeatedly, args=(seconds,), daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Stop the syncs, and remove the copy."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def sync(self) -> None:
        """Copy versions that are new or changed, and remove those that are gone.

        A failed copy downloads everything again, so it is retried after twice as long
        each time; or at once when it has changed, or another version was removed.

        Raises:
            BundleError, OSError: a version could not be copied; the others were.
        """
        errors: list[Exception] = []
        remote = self._list_versions()
        for place in self._failed.keys() - remote.keys():
            del self._failed[place]
        for place in self._copied.keys() - remote.keys():
            self._remove(self.folder / place)
            del self._copied[place]
            self._failed.clear()  # the disk may have room now
        # Labels first: a new version may be one that they keep from being served.
        order = sorted(remote.items(), key=lambda item: not item[0].endswith(LABELS))
        for place, stamp in order:
            if self._stop.is_set():
                return
            if stamp in (self._copied.get(place), self._broken.get(place)):
                continue
            failed = self._failed.get(place)
            if failed and failed.stamp != stamp:
                failed = None
            if failed and time.monotonic() < failed.retry_at:
                continue
            self._failed.pop(place, None)
            try:
                self._copy(place, stamp)
                self._copied[place] = stamp
            except BundleError as error:
                self._broken[place] = stamp  # until it changes
                errors.append(error)
            except OSError as error:
                delay = min(2 * failed.delay, MAX_RETRY_SECONDS) if failed else 0
                delay = max(delay, self._sync_seconds)
                retry_at = time.monotonic() + delay
                self._failed[place] = FailedCopy(stamp, delay, retry_at)
                errors.append(error)
        if errors:
            raise errors[0]

    def _sync_repeatedly(self, seconds: float) -> None:
        logged: tuple[str | None, float] = (None, 0.0)
        while not self._stop.wait(seconds):
            reason = None
            try:
                self.sync()
            except Exception as error:  # of any kind: the next sync tries again
                reason = str(error)
            # Each failed copy is logged; a store that can't be reached is logged once.
            failure = (reason, self._next_retry())
            if reason is not None and failure != logged:
                self._warn(reason)
            logged = failure
        shutil.rmtree(self.folder, ignore_errors=True)

    def _next_retry(self) -> float:
        """The monotonic time of the next retry; 0 if no copy has failed."""
        return min((copy.retry_at for copy in self._failed.values()), default=0.0)

    def _warn(self, reason: str) -> None:
        extra: dict[str, object] = {"reason": reason}
        if self._sync_seconds and self._failed:
            delay = self._next_retry() - time.monotonic()
            extra["retry_seconds"] = round(max(0.0, delay), 1)
        log.warning("bundle not copied", extra=extra)

    def _list_versions(self) -> dict[str, Stamp]:
        from pyarrow.fs import FileSelector, FileType

        files: dict[str, set[tuple[str, int, int]]] = {}
        selector = FileSelector(self._root, recursive=True)
        for info in self._filesystem.get_file_info(selector):
            if info.type != FileType.File:
                continue
            name = info.path[len(self._root) :].strip("/")
            parts = name.split("/")
            if len(parts) < 2 or not re.match(NAME, parts[0]):
                continue
            if not all(PART.fullmatch(part) for part in parts):
                continue  # objects may have any name, even `..`
            if VERSION.fullmatch(parts[1]) or parts[1:] == [LABELS]:
                file = (name, info.mtime_ns or 0, info.size or 0)
                files.setdefault("/".join(parts[:2]), set()).add(file)
        return {place: frozenset(stamp) for place, stamp in files.items()}

    def _copy(self, place: str, stamp: Stamp) -> None:
        """Copy the listed objects of a version, all or none."""
        to = self.folder / place
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=to.parent)) / to.name
        try:
            if len(stamp) > MAX_FILES or sum(size for *_, size in stamp) > MAX_BYTES:
                raise BundleError(f"{temporary}: too many files, or too large")
            for name, _, size in stamp:
                path = temporary / PurePosixPath(name).relative_to(place)
                self._download(name, path, size)
            if temporary.is_dir():
                bundle.read(temporary)
                self._remove(to)
            os.replace(temporary, to)
        except BundleError as error:
            message = str(error).replace(str(temporary), f"{self._source}/{place}")
            raise BundleError(message) from None
        finally:
            shutil.rmtree(temporary.parent, ignore_errors=True)

    def _download(self, name: str, to: Path, size: int) -> None:
        """Download an object, at most `size` bytes of it: it may have grown."""
        to.parent.mkdir(parents=True, exist_ok=True)
        place = f"{self._root.rstrip('/')}/{name}"
        with self._filesystem.open_input_stream(place) as source, to.open("xb") as file:
            while size > 0 and (part := source.read(min(size, CHUNK))):
                file.write(part)
                size -= len(part)

    @staticmethod
    def _remove(path: Path) -> None:
        """Remove a file or a folder atomically, so that no reader sees half of it."""
        if path.is_dir():
            with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as away:
                os.replace(path, Path(away) / path.name)
        else:
            path.unlink(missing_ok=True)
