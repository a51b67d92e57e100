"""NDJSON bodies: lines in whatever parts they arrive."""

import itertools

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from service.errors import BadEncoding, TooLarge
from service.http import ndjson
from service.http.ndjson import NdjsonReader
from tests.support.servers import anonymous_caller


def cut(data, places):
    """The parts of bytes that are cut at these places."""
    places = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def part(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def read(messages, limit=100):
    """The lines that `NdjsonReader` returns; None in place of errors."""

    async def all_lines():
        queue = list(messages)

        async def receive():
            message = queue.pop(0)
            if isinstance(message, Exception):
                raise message
            return message

        reader = NdjsonReader(receive, limit, anonymous_caller().reservation)
        lines = []
        while (line := await reader.next_line()) is not None:
            lines.append(None if isinstance(line, Exception) else line)
        assert await reader.next_line() is None
        return lines

    return anyio.run(all_lines)


@given(
    st.lists(st.sampled_from([b"a", b"{}", b"\n", b"\r\n", b" ", b"abcdefgh"])),
    st.lists(st.integers(0, 60)),
    st.integers(1, 12),
)
def test_any_parts(pieces, places, limit):
    """However a body is cut, its lines are the same: without blank ones, with an error in
    place of each over the limit, and the last one with or without a line break."""
    body = b"".join(pieces)
    expected = [
        line if len(line) <= limit else None
        for line in body.split(b"\n")
        if line.strip() or len(line) > limit
    ]
    messages = [*map(part, cut(body, places)), part(b"", more=False)]
    assert read(messages, limit) == expected


def test_lines():
    """Lines end with a line feed, or with the body."""
    for body, lines in (
        (b"", []),
        (b"\n\r\n \n", []),
        (b"ab", [b"ab"]),
        (b"ab\r\ncd", [b"ab\r", b"cd"]),
        (b"a\rb", [b"a\rb"]),
        (b"\nab\n\n\ncd\n", [b"ab", b"cd"]),
        (b"12345\n123456\n1", [b"12345", None, b"1"]),
        (b"123456", [None]),
        (b"1" * 1000 + b"\n" + b"2" * 1000, [None] * 2),
    ):
        end = part(b"", more=False)
        assert read([part(body), end], 5) == lines
        assert read([*(part(bytes([byte])) for byte in body), end], 5) == lines


def test_disconnect():
    """A client may go within a line, or between two."""
    start = part(b"ab\nc")
    for messages in ([], [start], [start, part(b"\n")]):
        with pytest.raises(ClientDisconnect):
            read([*messages, {"type": "http.disconnect"}])


def test_last_error(monkeypatch):
    """If the body can't be read on, or has no line for long, an error is the last line."""
    assert read([part(b"a\nb"), BadEncoding("not gzip")]) == [b"a", None]
    monkeypatch.setattr(ndjson, "MAX_EMPTY_BYTES", 100)
    assert read([part(b"a\n"), *[part(b" \n" * 20)] * 10]) == [b"a", None]


def test_long_line_is_dropped():
    """A line over the limit is dropped while it arrives, however long it is."""
    size, count = 2**20, 100
    peak = 0

    async def read_line():
        nonlocal peak
        left = count

        async def receive():
            nonlocal left, peak
            left -= 1
            peak = max(peak, len(reader._buffer))
            return part(b"x" * size, more=left > 0)

        reader = NdjsonReader(receive, 10, anonymous_caller().reservation)
        assert isinstance(await reader.next_line(), TooLarge)
        assert await reader.next_line() is None

    anyio.run(read_line)
    assert peak <= size
