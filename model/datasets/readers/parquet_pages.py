"""Read the sizes of a Parquet file's pages from their headers, before decoding.

Arrow trusts these headers where they differ from the footer, so the footer alone limits
nothing: a footer with two bytes changed made Arrow take 10 GiB for a file of 27 KB. A
header is a struct in Thrift's compact protocol, which Arrow doesn't expose to Python.

PageHeader    2: bytes  3: bytes compressed  5, 8: data page {1: values}
"""

from typing import Any

BYTES, COMPRESSED, DATA, VALUES = 2, 3, (5, 8), 1
MAX_DEPTH = 4  # of nested structs: a header, a page's, its statistics
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, STRUCT = 0, 1, 2, 3, 7, 8, 12
INTEGERS = (4, 5, 6)
SLACK = 100  # Arrow reads so many bytes past a column chunk of some old writers

Fields = dict[int, Any]


def measure_chunk(file: Any, column: Any) -> tuple[int, int]:
    """Measure the pages of a column chunk, found by Arrow's metadata of the column.

    Raises:
        OSError: the chunk can't be read.
        ValueError: it holds no pages.
    """
    starts = (column.dictionary_page_offset, column.data_page_offset)
    start = min(place for place in starts if place)
    chunk = file.read_at(column.total_compressed_size + SLACK, start)
    return measure_pages(chunk, column.num_values)


def measure_pages(chunk: bytes, count: int) -> tuple[int, int]:
    """Return how many values a chunk's pages hold, and their decompressed bytes.

    Stops at the page that completes `count` values.

    Raises:
        ValueError: the bytes are not pages.
    """
    at = values = size = 0
    try:
        while values < count and at < len(chunk):
            header, at = _struct(chunk, at, MAX_DEPTH)
            data = [header[kind] for kind in DATA if kind in header]
            counts = (header[BYTES], header[COMPRESSED], *(d[VALUES] for d in data))
            if min(counts) < 0:
                raise ValueError("a page of a negative size")
            values += sum(counts[2:])
            size += header[BYTES]
            at += header[COMPRESSED]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"no header of a page: {error}") from None
    return values, size


def _struct(data: bytes, at: int, depth: int) -> tuple[Fields, int]:
    """Return a struct's fields by number, and the position of its end."""
    if not depth:
        raise ValueError("a header of a page is nested too deeply")
    fields: Fields = {}
    number = 0
    while True:
        head, at = data[at], at + 1
        kind, step = head & 15, head >> 4
        if kind == STOP:
            return fields, at
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        if kind in (TRUE, FALSE):
            continue
        if kind in INTEGERS:
            fields[number], at = _integer(data, at)
        elif kind == STRUCT:
            fields[number], at = _struct(data, at, depth - 1)
        elif kind == BINARY:
            length, at = _varint(data, at)
            at += length
        elif kind in (BYTE, DOUBLE):
            at += 1 if kind == BYTE else 8
        else:
            raise ValueError(f"a header of a page has a field of type {kind}")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Read a signed integer: 0, -1, 1, -2, ... are written as 0, 1, 2, 3, ..."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number of a page is of over 64 bits")
