"""Notice that a bundle's files have changed."""

from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path

from model.bundle import bounded_files, bundle
from model.bundle.bundle import BundleError


def stamp_of(folder: Path) -> Hashable:
    """A value that changes when a bundle's file changes, is added or removed, or gets
    other permissions."""
    files = []
    try:
        for name, entry in bounded_files.walk(folder, bundle.MAX_ENTRIES):
            with suppress(OSError):  # removed meanwhile, or a dangling link
                status = entry.stat()
                owner = (status.st_mode, status.st_uid, status.st_gid)
                content = (status.st_mtime_ns, status.st_size, status.st_ino)
                files.append((name, *content, *owner))
    except (OSError, BundleError) as error:  # reading the bundle will fail likewise
        return str(error)
    return tuple(sorted(files))
