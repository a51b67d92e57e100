"""Files and folders that a stranger may have written: read within limits.

Under a bundle's names may lie anything. A FIFO would hold up whoever opens it, a device
has no end, and a folder may lead to all of the machine.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from errno import EFBIG
from pathlib import Path

# Opening waits for nobody at the other end, and gives us no terminal.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CHUNK = 2**20


class BundleError(ValueError):
    """A folder that is no whole, unchanged bundle; the text says what is wrong."""


def read(path: Path, most: int) -> bytes:
    """Returns the bytes of a regular file, or of one that a link leads to.

    Raises:
        OSError: it can't be opened or read.
        BundleError: it is no regular file, or larger than `most` bytes.
    """
    return b"".join(_pieces(path, most, most))


def digest(path: Path, most: int) -> str:
    """Returns the SHA-256 of such a file. Raises what `read` does."""
    found = hashlib.sha256()
    for piece in _pieces(path, most, CHUNK):
        found.update(piece)
    return found.hexdigest()


def walk(folder: Path, most: int) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yields everything under a folder, with its path from there; follows no link.

    Raises:
        OSError: a folder can't be listed.
        BundleError: there are more than `most` entries.
    """
    waiting, left = [""], most
    while waiting:
        inner = waiting.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    raise BundleError(f"{folder}: has more than {most:,} entries")
                yield inner + entry.name, entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{inner}{entry.name}/")


def listed(folder: Path, most: int) -> list["os.DirEntry[str]"]:
    """Returns the entries of one folder.

    Raises:
        OSError: it can't be listed, or has more than `most` entries.
    """
    found: list[os.DirEntry[str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(found) == most:
                raise OSError(EFBIG, f"has more than {most:,} entries", str(folder))
            found.append(entry)
    return found


def _pieces(path: Path, most: int, size: int) -> Iterator[bytes]:
    _check(path, os.stat(path), most)  # before: a device may act on being opened
    with open(path, "rb", opener=_open) as file:
        about = os.fstat(file.fileno())
        _check(path, about, most)
        left = about.st_size
        while left and (piece := file.read(min(left, size))):
            left -= len(piece)
            yield piece
        if left or file.read(1):  # longer than it says: also some files of /proc
            raise BundleError(f"{path}: has changed while it was read")


def _open(path: str, _: int) -> int:
    return os.open(path, FLAGS)


def _check(path: Path, about: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise BundleError(f"{path}: is not a regular file")
    if about.st_size > most:
        raise BundleError(f"{path}: is larger than {most:,} bytes")
