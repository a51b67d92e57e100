"""How much memory the sequences of a compressed file may take.

A thousand bytes of Parquet or NPZ can stand for gigabytes of one number. So what such a
file says of its sizes is compared with this bound before anything is decompressed. Text
takes as many characters as it holds numbers: JSON Lines, CSV and .ts have no bound.
"""

from pathlib import Path

from model.datasets.readers import errors

MAX_BYTES = 2**30  # 134 million numbers of NPZ in float32; UEA's largest file has 54


def check(path: Path, place: str | None, what: str, size: int) -> None:
    """Compares bytes of memory with the bound.

    Raises:
        ReadError: there are more.
    """
    if size > MAX_BYTES:
        most = f"at most {MAX_BYTES:,}; a larger set can be JSON Lines or CSV"
        told = f"{what} would take {size:,} bytes of memory, {most}"
        raise errors.ReadError(path, place, told)
