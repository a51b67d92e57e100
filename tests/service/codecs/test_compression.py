"""gzip and deflate, of requests and of responses."""

import contextlib
import gzip
import io
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import compression
from service.codecs.compression import accepted_encoding, compress, decompress
from service.errors import BadEncoding, TooLarge

CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress}
LIMIT = 10_000
BODY = b"some text, and some more text"


def noise(size: int) -> bytes:
    """Incompressible bytes."""
    return bytes((7 * k * k + k // 3) % 251 for k in range(size))


@pytest.mark.parametrize("coding", CODINGS)
class TestDecompress:
    @given(body=st.binary(max_size=5000), times=st.integers(1, 5))
    def test_round_trip(self, coding, body, times):
        """Both directions agree with zlib."""
        body = body * times
        for packed in (compress(body, coding), CODINGS[coding](body)):
            assert decompress(packed, coding, len(body)) == body
        bits = compression.WINDOW_BITS[coding]
        assert zlib.decompress(compress(body, coding), wbits=bits) == body

    @given(body=st.binary(min_size=1, max_size=2000), data=st.data())
    def test_limit(self, coding, body, data):
        """A body over any limit is refused."""
        limit = data.draw(st.integers(0, len(body) - 1))
        with pytest.raises(TooLarge) as caught:
            decompress(CODINGS[coding](body), coding, limit)
        assert str(limit) in caught.value.detail

    @given(
        body=st.binary(max_size=500),
        garbage=st.binary(min_size=1, max_size=500),
        place=st.integers(0, 10**6),
        bit=st.integers(0, 7),
    )
    def test_damaged(self, coding, body, garbage, place, bit):
        """Truncated data, and data with a tail, is refused. Damaged data gives the same
        body or is refused, since it has a checksum; garbage gives at most the limit."""
        packed = CODINGS[coding](body)
        for damaged in (packed[: place % len(packed)], packed + garbage):
            with pytest.raises(BadEncoding):
                decompress(damaged, coding, LIMIT)
        flipped = bytearray(CODINGS[coding](BODY))
        flipped[place % len(flipped)] ^= 1 << bit
        with contextlib.suppress(BadEncoding):
            assert decompress(bytes(flipped), coding, LIMIT) == BODY
        with contextlib.suppress(BadEncoding, TooLarge):
            assert len(decompress(garbage, coding, LIMIT)) <= LIMIT

    def test_other_formats(self, coding):
        """Neither coding is taken for the other, nor raw data for one. An empty body is
        one, and a dictionary is not supported."""
        assert decompress(CODINGS[coding](b""), coding, 0) == b""
        bare = zlib.compress(BODY, wbits=-15)
        stream = zlib.compressobj(zdict=BODY)
        dictionary = stream.compress(BODY) + stream.flush()
        others = [pack(BODY) for name, pack in CODINGS.items() if name != coding]
        for packed in (b"", BODY, bare, dictionary, *others):
            with pytest.raises(BadEncoding, match=coding):
                decompress(packed, coding, LIMIT)

    def test_expansion(self, coding):
        """However far a body expands, no more is decompressed than the limit allows."""
        for members in (1, 3):
            packed = CODINGS[coding](bytes(50 * 2**20)) * members
            tracemalloc.start()
            try:
                with pytest.raises(TooLarge):
                    decompress(packed, coding, 2**16)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 2**20 + 4 * len(packed)

    def test_compress(self, coding):
        """A response of numbers gets smaller, and noise hardly larger."""
        numbers = b"[0.25,0.5,0.25]," * 1000
        assert len(compress(numbers, coding)) < len(numbers) / 10
        assert len(compress(noise(5000), coding)) < 5100


class RecordingStream:
    """A stream of zlib's that records the sizes of its input."""

    def __init__(self, stream, sizes):
        self._stream, self._sizes = stream, sizes

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def decompress(self, data, *args):
        self._sizes.append(len(data))
        return self._stream.decompress(data, *args)


class TestMembers:
    @given(st.lists(st.binary(max_size=200), min_size=1, max_size=6))
    def test_joined(self, parts):
        """Several gzip members are one body, and share the limit."""
        packed, body = b"".join(map(gzip.compress, parts)), b"".join(parts)
        assert decompress(packed, "gzip", len(body)) == body
        if body:
            with pytest.raises(TooLarge):
                decompress(packed, "gzip", len(body) - 1)

    def test_headers(self):
        """A member may have a file name in its header. Deflate has no members."""
        file = io.BytesIO()
        with gzip.GzipFile("name.json", "wb", fileobj=file, mtime=5) as stream:
            stream.write(BODY)
        assert decompress(file.getvalue(), "gzip", LIMIT) == BODY
        with pytest.raises(BadEncoding, match="has data after"):
            decompress(zlib.compress(BODY) * 2, "deflate", LIMIT)

    def test_truncated(self):
        """Every member must be complete."""
        packed = gzip.compress(BODY)
        for end in range(1, len(packed)):
            with pytest.raises(BadEncoding):
                decompress(packed + packed[:end], "gzip", LIMIT)

    def test_cost(self, monkeypatch):
        """The work grows linearly with the members."""

        def work(count):
            sizes = []

            def decompressobj(*args):
                return RecordingStream(zlib.decompressobj(*args), sizes)

            recording = SimpleNamespace(decompressobj=decompressobj, error=zlib.error)
            monkeypatch.setattr(compression, "zlib", recording)
            with contextlib.suppress(BadEncoding, TooLarge):
                decompress(gzip.compress(b"") * count, "gzip", LIMIT)
            return sum(sizes)

        assert work(20_000) <= 3 * work(10_000)


HEADERS = {
    None: (
        *(None, "", ",", ";", ";q=1", "identity", "*", "*;q=1", "br", "zstd, br"),
        *("gzipped", "x-gzip", "gzip;q=0", "gzip;q=0.", "gzip;q=0.0", "gzip;q=0.000"),
        *("gzip;Q=0", "gzip ; q=0", "gzip;\tq=0", "*, gzip;q=0", "gzip;q=high"),
    ),
    "gzip": (
        *("gzip", "deflate, gzip", "gzip,deflate", " GZip ", "gzip, deflate, br, zstd"),
        *("br;q=1.0, gzip;q=0.8, *;q=0.1", "gzip;q=0.001", "gzip;q=0.10", "gzip;q=1."),
        *("gzip;q=1.000", "gzip;Q=0.5", "deflate;q=0, gzip"),
    ),
    "deflate": ("deflate", "gzip;q=0, deflate", "identity;q=0, deflate;q=0.5"),
}


def test_accepted_encoding():
    """The response's coding is one that the header accepts, and gzip before deflate."""
    for coding, headers in HEADERS.items():
        for header in headers:
            assert accepted_encoding(header) == coding, header


@given(st.text(max_size=200))
def test_any_header(header):
    """Any header gives a supported coding, or none."""
    assert accepted_encoding(header) in (None, *CODINGS)
