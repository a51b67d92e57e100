"""Import TensorFlow without the lines that it writes to stderr meanwhile.

It writes them before its log level takes effect, so the file descriptor is redirected.
A failing import still raises its exception.
"""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Discard stderr meanwhile, for the whole process: all threads are affected."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
