"""Bodies that aren't compressed as they say, or inflate beyond all bounds."""

import gzip
import zlib
from collections.abc import Iterator

from tests.robustness.harness.service import MIB

WINDOWS = {"gzip": 31, "deflate": 15}


def bomb(coding: str, sent: int, of: bytes = b" ") -> bytes:
    """About so many bytes, which inflate a thousandfold; of one block, repeated, since
    to compress gigabytes takes a minute."""
    made = zlib.compressobj(9, zlib.DEFLATED, WINDOWS[coding])
    text = of * (MIB // len(of))
    head = made.compress(text) + made.flush(zlib.Z_FULL_FLUSH)
    block = made.compress(text) + made.flush(zlib.Z_FULL_FLUSH)
    return head + block * (sent // len(block))


def broken(coding: str, good: bytes) -> Iterator[tuple[str, bytes]]:
    """What is no such stream, or not all of one, or more than one."""
    pack = gzip.compress if coding == "gzip" else zlib.compress
    packed = bytearray(pack(good))
    yield "nothing", b""
    yield "plain", good
    yield "a byte", bytes(packed[:1])
    yield "half", bytes(packed[: len(packed) // 2])
    yield "all but one", bytes(packed[:-1])
    yield "more", bytes(packed) + b"x"
    yield "another coding", gzip.compress(good) if coding != "gzip" else zlib.compress(good)  # fmt: skip
    yield "raw", zlib.compress(good, wbits=-15)
    packed[len(packed) // 2] ^= 0x55
    yield "damaged", bytes(packed)
    packed = bytearray(pack(good))
    packed[-2] ^= 1
    yield "damaged check", bytes(packed)
    yield "once more", pack(pack(good))
    yield "half a bomb's members", pack(b" ") * 65 if coding == "gzip" else b"\x78\x9c"
