"""Sizes of a Parquet file's pages, read from their headers before they are decoded.

Arrow goes by these where they differ from the footer, so a footer alone bounds nothing:
one of two bytes less made it take 10 GiB for a file of 27 KB. A header is a struct of
Thrift's compact protocol, of which Arrow gives Python nothing.

PageHeader    2: bytes  3: bytes compressed  5, 8: data page {1: values}
"""

from typing import Any

BYTES, COMPRESSED, DATA, VALUES = 2, 3, (5, 8), 1
DEEPEST = 4  # structs within one another: a header, a page's, its statistics
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, STRUCT = 0, 1, 2, 3, 7, 8, 12
INTEGERS = (4, 5, 6)
SLACK = 100  # bytes that Arrow reads past a column of some old writers

Fields = dict[int, Any]


def measure_chunk(file: Any, about: Any) -> tuple[int, int]:
    """Returns what `measure_pages` does, of a column chunk that Arrow's metadata describe.

    Raises:
        OSError: it can't be read.
        ValueError: there are no pages.
    """
    starts = (about.dictionary_page_offset, about.data_page_offset)
    start = min(place for place in starts if place)
    chunk = file.read_at(about.total_compressed_size + SLACK, start)
    return measure_pages(chunk, about.num_values)


def measure_pages(chunk: bytes, count: int) -> tuple[int, int]:
    """Returns how many values the pages of a column chunk hold, up to the page with which
    there are `count` of them, and the bytes that these take decompressed.

    Raises:
        ValueError: they are no pages.
    """
    at = values = size = 0
    try:
        while values < count and at < len(chunk):
            header, at = _struct(chunk, at, DEEPEST)
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


def _struct(data: bytes, at: int, deepest: int) -> tuple[Fields, int]:
    """Returns a struct's fields by their numbers, and where it ends."""
    if not deepest:
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
            fields[number], at = _struct(data, at, deepest - 1)
        elif kind == BINARY:
            length, at = _varint(data, at)
            at += length
        elif kind in (BYTE, DOUBLE):
            at += 1 if kind == BYTE else 8
        else:
            raise ValueError(f"a header of a page has a field of type {kind}")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A signed integer: 0, -1, 1, -2, ... are written as 0, 1, 2, 3, ..."""
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
