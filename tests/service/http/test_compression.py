"""gzip and deflate, in and out."""

import contextlib
import gzip
import io
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadEncoding, TooLarge
from service.http import compression

CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
LIMIT = 10_000
coding = pytest.mark.parametrize("coding", CODINGS)
BODY = b"some text, and some more text"


def noise(size: int) -> bytes:
    """Bytes that nothing makes smaller."""
    return bytes((7 * k * k + k // 3) % 251 for k in range(size))


@coding
class TestInflate:
    @given(body=st.binary(max_size=5000), times=st.integers(1, 5))
    def test_round_trip(self, coding, body, times):
        """What we compress, and what others do, is inflated to what it was."""
        whole = body * times
        size = len(whole)
        for packed in (compression.compress(whole, coding), CODINGS[coding](whole)):
            assert compression.decompress(packed, coding, size) == whole
        others = zlib.decompress(
            compression.compress(whole, coding), wbits=compression.WINDOW_BITS[coding]
        )
        assert others == whole

    @given(body=st.binary(min_size=1, max_size=2000), data=st.data())
    def test_limit(self, coding, body, data):
        """One byte less than it inflates to is too little, at any limit below."""
        limit = data.draw(st.integers(0, len(body) - 1))
        with pytest.raises(TooLarge) as caught:
            compression.decompress(CODINGS[coding](body), coding, limit)
        assert str(limit) in caught.value.detail

    @given(body=st.binary(max_size=500), data=st.data())
    def test_truncated(self, coding, body, data):
        """A stream that ends too soon is none."""
        packed = CODINGS[coding](body)
        end = data.draw(st.integers(0, len(packed) - 1))
        with pytest.raises(BadEncoding):
            compression.decompress(packed[:end], coding, LIMIT)

    @given(garbage=st.binary(max_size=500))
    def test_garbage(self, coding, garbage):
        """Whatever comes is inflated or refused, and never anything else."""
        try:
            made = compression.decompress(garbage, coding, LIMIT)
        except (BadEncoding, TooLarge):
            return
        assert len(made) <= LIMIT

    @given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
    def test_flipped(self, coding, place, bit):
        """A stream that is damaged gives the same or is refused: it has a checksum."""
        packed = bytearray(CODINGS[coding](BODY))
        packed[place % len(packed)] ^= 1 << bit
        with contextlib.suppress(BadEncoding):
            assert compression.decompress(bytes(packed), coding, LIMIT) == BODY

    @given(garbage=st.binary(min_size=1, max_size=100))
    def test_behind(self, coding, garbage):
        """What stands behind a stream is no part of it, and refused."""
        with pytest.raises(BadEncoding):
            compression.decompress(CODINGS[coding](BODY) + garbage, coding, LIMIT)

    def test_other_coding(self, coding):
        """Neither coding is taken for the other, nor a bare stream for one."""
        bare = zlib.compress(BODY, wbits=-15)
        others = [make(BODY) for name, make in CODINGS.items() if name != coding]
        for packed in (b"", BODY, bare, *others):
            with pytest.raises(BadEncoding, match=coding):
                compression.decompress(packed, coding, LIMIT)

    def test_empty(self, coding):
        """Nothing, compressed, is nothing."""
        assert compression.decompress(CODINGS[coding](b""), coding, 0) == b""

    def test_dictionary(self, coding):
        """A stream that needs a dictionary can't be read."""
        stream = zlib.compressobj(zdict=BODY)
        packed = stream.compress(BODY) + stream.flush()
        with pytest.raises(BadEncoding):
            compression.decompress(packed, coding, LIMIT)

    @pytest.mark.parametrize("members", [1, 3])
    def test_bomb(self, coding, members):
        """Of a bomb no more is made than the limit allows."""
        packed = CODINGS[coding](bytes(50 * 2**20)) * members
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge):
                compression.decompress(packed, coding, 2**16)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**20 + 4 * len(packed)


class Recorded:
    """A stream of zlib's, and how much it was given."""

    def __init__(self, stream, sizes):
        self._stream, self._sizes = stream, sizes

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def decompress(self, data, *more):
        self._sizes.append(len(data))
        return self._stream.decompress(data, *more)


class TestMembers:
    @given(st.lists(st.binary(max_size=200), min_size=1, max_size=6))
    def test_joined(self, parts):
        """Members of gzip, one behind another, are one body."""
        packed = b"".join(map(gzip.compress, parts))
        whole = b"".join(parts)
        assert compression.decompress(packed, "gzip", len(whole)) == whole

    @pytest.mark.parametrize("count", [2, 10])
    def test_limit_of_all(self, count):
        """The limit is that of all members together."""
        packed = gzip.compress(noise(100)) * count
        assert len(compression.decompress(packed, "gzip", 100 * count)) == 100 * count
        with pytest.raises(TooLarge):
            compression.decompress(packed, "gzip", 100 * count - 1)

    def test_truncated(self):
        """Each of them must be whole."""
        packed = gzip.compress(BODY)
        for end in range(1, len(packed)):
            with pytest.raises(BadEncoding):
                compression.decompress(packed + packed[:end], "gzip", LIMIT)

    def test_cost(self, monkeypatch):
        """Twice as many members are twice the work, and not four times."""

        def fed(count):
            sizes = []

            def begin(*given):
                return Recorded(zlib.decompressobj(*given), sizes)

            recording = SimpleNamespace(decompressobj=begin, error=zlib.error)
            monkeypatch.setattr(compression, "zlib", recording)
            with contextlib.suppress(BadEncoding, TooLarge):
                compression.decompress(gzip.compress(b"") * count, "gzip", LIMIT)
            return sum(sizes)

        assert fed(20_000) <= 3 * fed(10_000)

    def test_named(self):
        """A member may have the name of a file and a comment's flags in its header."""
        file = io.BytesIO()
        with gzip.GzipFile("name.json", "wb", fileobj=file, mtime=5) as stream:
            stream.write(BODY)
        assert compression.decompress(file.getvalue(), "gzip", LIMIT) == BODY

    def test_deflate_has_none(self):
        """deflate is one stream."""
        with pytest.raises(BadEncoding, match="has data after"):
            compression.decompress(zlib.compress(BODY) * 2, "deflate", LIMIT)


@coding
def test_deflate(coding):
    """An answer of numbers gets smaller, one of noise hardly larger."""
    numbers = b"[0.25,0.5,0.25]," * 1000
    assert len(compression.compress(numbers, coding)) < len(numbers) / 10
    assert len(compression.compress(noise(5000), coding)) < 5100


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, None),
        ("", None),
        (",", None),
        (";", None),
        (";q=1", None),
        ("identity", None),
        ("*", None),
        ("*;q=1", None),
        ("br", None),
        ("zstd, br", None),
        ("gzipped", None),
        ("x-gzip", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip,deflate", "gzip"),
        (" GZip ", "gzip"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip"),
        ("gzip;q=0.001", "gzip"),
        ("gzip;q=0.10", "gzip"),
        ("gzip;q=1.", "gzip"),
        ("gzip;q=1.000", "gzip"),
        ("gzip;Q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.", None),
        ("gzip;q=0.0", None),
        ("gzip;q=0.000", None),
        ("gzip;Q=0", None),
        ("gzip ; q=0", None),
        ("gzip;\tq=0", None),
        ("*, gzip;q=0", None),
        ("gzip;q=0, deflate", "deflate"),
        ("deflate;q=0, gzip", "gzip"),
        ("identity;q=0, deflate;q=0.5", "deflate"),
    ],
)
def test_accepted(header, coding):
    """The coding that is answered in is one that the header takes, gzip before
    deflate, and none where it takes neither."""
    assert compression.accepted_encoding(header) == coding


@given(st.text(max_size=200))
def test_any_header(header):
    """Whatever the header holds, the answer is a coding of ours or none."""
    assert compression.accepted_encoding(header) in (None, *CODINGS)
