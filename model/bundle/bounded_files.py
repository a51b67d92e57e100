"""Read files and folders that a stranger may have written, within limits.

A file of a bundle can be anything. Opening a FIFO would block for ever, a device has no
end, and a link may lead to any folder of the machine.
"""

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from errno import EFBIG
from pathlib import Path

# Never wait for a FIFO's other end, and never take over a terminal.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CHUNK = 2**20


class BundleError(ValueError):
    """A folder that is not a complete, unchanged bundle; the message says why."""


def read(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file, or of one that a link leads to.

    Raises:
        OSError: the file can't be opened or read.
        BundleError: it is not a regular file, or is larger than `max_bytes`.
    """
    return b"".join(_chunks(path, max_bytes, max_bytes))


def digest(path: Path, max_bytes: int) -> str:
    """Return the SHA-256 of a regular file. Raises what `read` raises."""
    sha256 = hashlib.sha256()
    for chunk in _chunks(path, max_bytes, CHUNK):
        sha256.update(chunk)
    return sha256.hexdigest()


def walk(folder: Path, max_entries: int) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield all files and folders under `folder` with their relative paths.

    Links are not followed.

    Raises:
        OSError: a folder can't be listed.
        BundleError: there are more than `max_entries`.
    """
    pending, count = [""], 0
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                count += 1
                if count > max_entries:
                    raise BundleError(
                        f"{folder}: has more than {max_entries:,} entries"
                    )
                yield prefix + entry.name, entry
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")


def list_folder(folder: Path, max_entries: int) -> list["os.DirEntry[str]"]:
    """Return the entries of one folder.

    Raises:
        OSError: the folder can't be listed, or has more than `max_entries`.
    """
    with os.scandir(folder) as iterator:
        entries = list(itertools.islice(iterator, max_entries + 1))
    if len(entries) > max_entries:
        raise OSError(EFBIG, f"has more than {max_entries:,} entries", str(folder))
    return entries


def _chunks(path: Path, max_bytes: int, chunk_bytes: int) -> Iterator[bytes]:
    _check(path, os.stat(path), max_bytes)  # first: opening a device may have effects
    with open(path, "rb", opener=lambda name, _: os.open(name, FLAGS)) as file:
        status = os.fstat(file.fileno())
        _check(path, status, max_bytes)
        left = status.st_size
        while left and (chunk := file.read(min(left, chunk_bytes))):
            left -= len(chunk)
            yield chunk
        if left or file.read(1):  # also some files of /proc, which claim to be empty
            raise BundleError(f"{path}: has changed while it was read")


def _check(path: Path, status: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: is not a regular file")
    if status.st_size > max_bytes:
        raise BundleError(f"{path}: is larger than {max_bytes:,} bytes")
