"""The files of a bundle as bytes that are known to be those of its digests.

`bundle.read` compares every file; an engine that then opened one by its name could be
given another, put there in between. So engines are given bytes that were compared
after they were read, or files that are nobody else's.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.bundle.bundle import EXTRA, MOST_BYTES, Bundle


def of(found: Bundle, name: str, most: int = MOST_BYTES) -> bytes:
    """A file's bytes.

    Raises:
        BundleError: they are not those that `bundle.json` has the digest of, or more
            than `most`.
    """
    return found.content(name, most)


@contextmanager
def saved_model(found: Bundle) -> Iterator[Path]:
    """A folder with the SavedModel, private and gone afterwards: TensorFlow takes no
    bytes. It reads all of it while it loads."""
    with tempfile.TemporaryDirectory(prefix="unrolled-") as temporary:
        folder = Path(temporary)
        for name in found.metadata.files:
            path = folder / name
            if not Path(name).is_relative_to(EXTRA):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(of(found, name))
        yield folder
