"""TensorFlow without the lines that it writes to stderr while it is imported.

They come from before its own log level counts, so only the file descriptor can
hold them back. What goes wrong still shows: an import that fails raises.
"""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Send the process' stderr nowhere; other threads' too, so keep it short."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
