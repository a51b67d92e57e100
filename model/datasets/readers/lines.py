"""The lines of a text file, each with its number."""

from collections.abc import Iterator
from pathlib import Path

from model.datasets.readers import errors


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (1, first line), (2, second line), ...; ends of line are kept."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, _decode(path, number, raw)
    except OSError as error:
        raise errors.ReadError(path, None, error.strerror or str(error)) from None


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        # Spreadsheets put a byte order mark before the first line.
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise errors.ReadError(path, number, "not UTF-8 text") from None
