"""A folder of bundles as it lies in an object store, kept as a folder here.

Only whole bundles are taken over: what is being written there is left until it is.
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
from service.registry.folder import LABELS
from service.settings import PREFIX

log = logging.getLogger(__name__)

URI = re.compile(r"[a-z][a-z0-9+.-]+://")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
PART = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f]{1,255}")  # of an object's name
END_SECONDS = 10
MOST_FILES, MOST_BYTES = bundle.MAX_ENTRIES, bundle.MAX_BYTES  # of a version
CHUNK = 2**20
LONGEST_SECONDS = 300.0  # between tries, unless looks are rarer

Stamp = frozenset[tuple[str, int, int]]  # files: path, time, size


class Failed(NamedTuple):
    """What could not be copied, such as for a full disk."""

    stamp: Stamp
    wait: float  # seconds
    again: float  # on the clock, when it is tried again


def elsewhere(place: str) -> bool:
    """It is no folder of this machine."""
    return bool(URI.match(place))


def setting() -> str:
    """The setting `bundles` of the environment, where that is elsewhere."""
    given = os.environ.get(f"{PREFIX}BUNDLES", "")
    return given if elsewhere(given) else ""


def shown(place: str) -> str:
    """A place without the key that may stand before its host."""
    return re.sub(r"//[^/@]*@", "//", place)


class Mirror:
    """The copy, and what is there of each version.

    bundles/NAME/1/  2/  ...    and labels.json, as `repository` has them
    """

    def __init__(self, source: str):
        """
        Args:
            source: `s3://bucket/bundles`, `gs://...`, or what else Arrow knows.

        Raises:
            ValueError, OSError: it can't be understood, or reached.
        """
        from pyarrow.fs import FileSystem

        self._there, self._root = FileSystem.from_uri(source)
        self._source = shown(source)
        self.folder = Path(tempfile.mkdtemp(prefix="bundles-"))
        # By NAME/VERSION or NAME/labels.json; and of those that are no bundle yet.
        self._copied: dict[str, Stamp] = {}
        self._broken: dict[str, Stamp] = {}
        self._failed: dict[str, Failed] = {}
        self._seconds = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float) -> None:
        """Copy everything, and look for changes every so many seconds (0: never).

        Raises:
            BundleError, OSError: there is none that can be copied.
        """
        self._seconds = seconds
        try:
            self.look()
        except (OSError, BundleError) as error:
            if not self._copied:
                raise
            self._warn(str(error))
        if not self._copied:
            raise BundleError(f"{self._source}: no NAME/VERSION with a bundle found")
        if seconds:
            work = threading.Thread(target=self._run, args=(seconds,), daemon=True)
            self._thread = work
            work.start()

    def close(self) -> None:
        """Look no more, and remove the copy."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def look(self) -> None:
        """Take over what has come, changed or gone.

        What could not be copied is tried again after twice as long each time, since all
        of it is fetched anew; at once when it has changed, or others made room.

        Raises:
            BundleError, OSError: of what could not be copied; the rest was.
        """
        faults: list[Exception] = []
        found = self._found()
        for place in self._failed.keys() - found.keys():
            del self._failed[place]
        for place in self._copied.keys() - found.keys():
            self._remove(self.folder / place)
            del self._copied[place]
            self._failed.clear()  # there is room
        for place, stamp in sorted(found.items()):
            if self._stop.is_set():
                return
            if stamp in (self._copied.get(place), self._broken.get(place)):
                continue
            failed = self._failed.get(place)
            if failed and failed.stamp != stamp:
                failed = None
            if failed and time.monotonic() < failed.again:
                continue
            self._failed.pop(place, None)
            try:
                self._copy(place, stamp)
                self._copied[place] = stamp
            except BundleError as error:
                self._broken[place] = stamp  # until there is more of it
                faults.append(error)
            except OSError as error:
                wait = min(2 * failed.wait, LONGEST_SECONDS) if failed else 0
                wait = max(wait, self._seconds)
                self._failed[place] = Failed(stamp, wait, time.monotonic() + wait)
                faults.append(error)
        if faults:
            raise faults[0]

    def _run(self, seconds: float) -> None:
        told: tuple[str | None, float] = (None, 0.0)
        while not self._stop.wait(seconds):
            reason = None
            try:
                self.look()
            except Exception as error:  # whatever it is: it is tried again
                reason = str(error)
            # Each failed copy is told, and a store that can't be reached once.
            now = (reason, self._again())
            if reason is not None and now != told:
                self._warn(reason)
            told = now
        shutil.rmtree(self.folder, ignore_errors=True)

    def _again(self) -> float:
        """On the clock, when a copy is tried again; 0: none has failed."""
        return min((one.again for one in self._failed.values()), default=0.0)

    def _warn(self, reason: str) -> None:
        extra: dict[str, object] = {"reason": reason}
        if self._seconds and self._failed:
            extra["retry_seconds"] = round(
                max(0.0, self._again() - time.monotonic()), 1
            )
        log.warning("not taken over", extra=extra)

    def _found(self) -> dict[str, Stamp]:
        from pyarrow.fs import FileSelector, FileType

        files: dict[str, set[tuple[str, int, int]]] = {}
        for info in self._there.get_file_info(FileSelector(self._root, recursive=True)):
            if info.type != FileType.File:
                continue
            name = info.path[len(self._root) :].strip("/")
            parts = name.split("/")
            if len(parts) < 2 or not re.match(bundle.NAME, parts[0]):
                continue
            if not all(PART.fullmatch(part) for part in parts):
                continue  # an object may be called anything, `..` too
            if VERSION.fullmatch(parts[1]) or parts[1:] == [LABELS]:
                about = (name, info.mtime_ns or 0, info.size or 0)
                files.setdefault("/".join(parts[:2]), set()).add(about)
        return {place: frozenset(stamp) for place, stamp in files.items()}

    def _copy(self, place: str, stamp: Stamp) -> None:
        """Whole or not at all: the objects that were listed, and no others."""
        to = self.folder / place
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=to.parent)) / to.name
        try:
            if len(stamp) > MOST_FILES or sum(size for *_, size in stamp) > MOST_BYTES:
                raise BundleError(f"{temporary}: too many files, or too large")
            for name, _, size in stamp:
                self._fetch(
                    name, temporary / PurePosixPath(name).relative_to(place), size
                )
            if temporary.is_dir():
                bundle.read(temporary)
                self._remove(to)
            os.replace(temporary, to)
        except BundleError as error:
            told = str(error).replace(str(temporary), f"{self._source}/{place}")
            raise BundleError(told) from None
        finally:
            shutil.rmtree(temporary.parent, ignore_errors=True)

    def _fetch(self, name: str, to: Path, size: int) -> None:
        """An object of so many bytes; more of one that has grown are left."""
        to.parent.mkdir(parents=True, exist_ok=True)
        place = f"{self._root.rstrip('/')}/{name}"
        with self._there.open_input_stream(place) as source, to.open("xb") as file:
            while size > 0 and (part := source.read(min(size, CHUNK))):
                file.write(part)
                size -= len(part)

    @staticmethod
    def _remove(path: Path) -> None:
        """At once: nobody is to see half of it."""
        if path.is_dir():
            with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as away:
                os.replace(path, Path(away) / path.name)
        else:
            path.unlink(missing_ok=True)
