"""A lock on a folder of an object store, which has no file that only one can create.

FOLDER/.claim.DIGEST.ID    of a run that is about to write what the digest is of

A run writes a claim and then looks for those of others. Of two runs one at least sees the
other's, since each has written its own before. The lower digest goes first, the other
takes its claim back and waits: so two of different digests never both go on.
"""

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyarrow.fs import FileSelector, FileSystem

PREFIX = ".claim."
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.2


@contextmanager
def alone(system: FileSystem, folder: str, text: bytes, old: float) -> Iterator[None]:
    """Waits until no run is about to write another text into the folder; none begins to
    before the block ends.

    Args:
        old: seconds after which a claim is of a run that was killed.

    Raises:
        TimeoutError: one was about to for all of `WAIT_SECONDS`.
    """
    digest = hashlib.sha256(text).hexdigest()
    end = time.monotonic() + WAIT_SECONDS
    while True:
        claim = f"{folder}/{PREFIX}{digest}.{uuid.uuid4().hex}"
        with system.open_output_stream(claim) as file:
            file.write(text)
        try:
            rivals = _rivals(system, folder, digest, old)
            while rivals and digest < min(rivals):
                _wait(end)
                rivals = _rivals(system, folder, digest, old)
            if not rivals:
                yield
                return
        finally:
            with suppress(OSError):  # then it grows old
                system.delete_file(claim)
        while _rivals(system, folder, digest, old):
            _wait(end)


def _rivals(system: FileSystem, folder: str, digest: str, old: float) -> set[str]:
    """The digests of the others' claims."""
    since = time.time() - old
    claims = (
        info.base_name.split(".")[2]
        for info in system.get_file_info(FileSelector(folder))
        if info.base_name.startswith(PREFIX) and info.mtime.timestamp() >= since
    )
    return set(claims) - {digest}


def _wait(end: float) -> None:
    if time.monotonic() > end:
        raise TimeoutError
    time.sleep(POLL_SECONDS)
