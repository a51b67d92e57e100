"""Split a file of any size into shards, each of which any machine can read alone.

.jsonl, .ndjson   an object per line, {"frames": [[...], ...]} and optionally "id"; other
                  members are ignored. A shard is the lines that begin within its bytes.
.parquet          a sequence per row: the column frames, a list of lists of numbers, and
                  optionally id. A shard is a row group, whose size is limited.

Texts and records are lines, too (see encoded_lines). Steps may also be objects (in Parquet: structs), which are matched by the names of the
features. A table with a row or line for each step, and every other format of training,
is a `TableFile`.
"""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet
from pyarrow.fs import FileSystem, FileType, LocalFileSystem

from model.bundle.metadata import Metadata
from model.bundle.records import RecordSchema
from model.bundle.vocabulary import Vocabulary
from model.datasets import readers
from service.bulk import encoded_lines, object_store
from service.bulk.encoded_lines import EncodedLinesFile
from service.bulk.json_lines import JsonLinesFile
from service.bulk.nested_parquet import ParquetFile
from service.bulk.rows import ShardedFile
from service.bulk.tables import TableFile

LINES = (".jsonl", ".ndjson")


def absolute(location: str) -> str:
    """An absolute path, or the URI itself."""
    if object_store.is_remote(location):
        return location
    return str(Path(location).absolute())


def filesystem(location: str) -> tuple[FileSystem, str]:
    """The file system of a path or a URI, and the path within it.

    Raises:
        ValueError, OSError: the URI is invalid, or can't be reached.
    """
    if not object_store.is_remote(location):
        return LocalFileSystem(), absolute(location)
    try:
        system, path = FileSystem.from_uri(location)
    except (pa.ArrowException, ImportError) as error:
        # PyArrow's message may repeat the URI.
        message = object_store.without_credentials(f"{location}: {error}")
        raise ValueError(message) from None
    return system, path


def stamp(location: str) -> tuple[int, int]:
    """Size and modification time of a file.

    Raises:
        ValueError, OSError: no such file.
    """
    system, path = filesystem(location)
    info = system.get_file_info(path)
    if info.type != FileType.File:
        name = object_store.without_credentials(location)
        raise FileNotFoundError(f"{name}: no such file on this machine")
    return info.size, info.mtime_ns or 0


def open_file(
    location: str,
    metadata: Metadata,
    encoding: Vocabulary | RecordSchema | None = None,
) -> ShardedFile:
    """Open a file by its ending, for a network.

    Args:
        encoding: of a network that reads text or records.

    Raises:
        ValueError, OSError: no such file, an unknown format, or a table that does not fit
            the network.
    """
    size, _ = stamp(location)
    system, path = filesystem(location)
    suffix, schema = Path(path).suffix.lower(), None
    if isinstance(encoding, RecordSchema):
        schema = encoding
    if encoding is not None and (schema is None or suffix in LINES):
        known = ", ".join(encoded_lines.SUFFIXES)
        if suffix not in encoded_lines.SUFFIXES:
            reason = f"no text in {suffix!r} files; known are {known}"
            raise ValueError(f"{path}: {reason}")
        plain = suffix == ".txt"
        return EncodedLinesFile(system, path, size, metadata, encoding, plain=plain)
    if suffix not in readers.FORMATS:
        known = ", ".join(readers.FORMATS)
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    features = metadata.input.names
    try:
        if suffix in LINES:
            lines = JsonLinesFile(system, path, size, features)
            if not lines.has_steps():
                return lines
        elif suffix == ".parquet" and schema is None:
            with system.open_input_file(path) as file:
                names = parquet.ParquetFile(file).schema_arrow.names
            if "frames" in names:
                return ParquetFile(system, path, features)
        return TableFile(system, path, metadata, schema)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: {error}") from None
