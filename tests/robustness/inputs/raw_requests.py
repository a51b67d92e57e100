"""Raw requests that are no HTTP, or HTTP that only an attacker sends."""

from collections.abc import Iterator
from typing import NamedTuple

GOOD = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"
HOST = b"Host: here\r\n"
BODY = b'{"sequences": []}'


class Raw(NamedTuple):
    """Bytes, and what may come of them."""

    name: str
    data: bytes
    statuses: frozenset[int]  # of the first answer
    may_close: bool = True  # without an answer
    good: int = 0  # answers of 200 before that


def get(
    *fields: bytes, target: bytes = b"/livez", version: bytes = b"HTTP/1.1"
) -> bytes:
    """A request without a body, of these header lines."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"GET %b %b\r\n%b\r\n" % (target, version, lines)


def post(*fields: bytes, body: bytes = BODY) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    kind = b"Content-Type: application/json\r\n"
    return b"POST /classify HTTP/1.1\r\n%b%b%b\r\n%b" % (HOST, kind, lines, body)


def bad(name: str, data: bytes, *statuses: int, close: bool = True) -> Raw:
    return Raw(name, data, frozenset(statuses or (400,)), close)


UPGRADES = {
    "no host": (),
    "two hosts": (b"Host: here", b"Host: there"),
    "a bad host": (b"Host: a/b",),
    "a long head": (b"Host: here", b"A: " + b"b" * 17_000),
    "many fields": (b"Host: here", *[b"A: b"] * 200),
}


def ask_for(*fields: bytes) -> bytes:
    """A WebSocket."""
    upgrade = (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
    )
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    return get(*fields, *upgrade, key, target=b"/stream?model=digits")


def smuggled() -> Iterator[Raw]:
    """Where a body ends must never be a matter of opinion."""
    chunks = b"11\r\n" + BODY + b"\r\n0\r\n\r\n"
    cl, te = b"Content-Length: 17", b"Transfer-Encoding: chunked"
    yield bad("length and chunks", post(cl, te, body=chunks))
    yield bad("chunks and length", post(te, cl, body=chunks))
    yield bad(
        "length of 0 and chunks", post(b"Content-Length: 0", te, body=chunks + GOOD)
    )
    yield bad("two lengths", post(cl, b"Content-Length: 18"))
    yield bad("two equal lengths", post(cl, cl))
    yield bad("lengths in one", post(b"Content-Length: 17, 17"))
    for length in (b"-1", b"+17", b"0x11", b"17 17", b"1e1", b"", b"seventeen", b"9" * 30,
                   b"9" * 5000, b"17;", b"\xb2", b"1_7"):  # fmt: skip
        name = f"length {length[:12]!r}"
        yield bad(name, post(b"Content-Length: " + length), 400, 413)
    for coding in (b"identity", b"gzip, chunked", b"chunked, chunked", b"chunked, identity",
                   b"xchunked", b"chunked;a=b", b"", b"\x0bchunked", b'"chunked"'):  # fmt: skip
        name = f"coding {coding!r}"
        yield bad(name, post(b"Transfer-Encoding: " + coding, body=chunks), 400, 422)
    yield bad("two codings", post(te, b"Transfer-Encoding: identity", body=chunks))
    yield bad("coding with a space", post(b"Transfer-Encoding : chunked", body=chunks))
    yield bad("length with a space", post(b"Content-Length : 17"))
    old = b"POST /classify HTTP/1.0\r\n%b\r\n\r\n" % te
    yield bad("chunks in 1.0", old + chunks, 400, 422)
    for size in (b"-1", b"0x11", b"g", b"", b" 11", b"11 ", b"11\x00", b"f" * 17, b"1" * 400, b"+11", b"1_1"):  # fmt: skip
        given = size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
        yield bad(f"chunk size {size[:12]!r}", post(te, body=given), 400, 413, 422)
    for name, given in (
        ("LF after chunk size", b"11\n" + BODY + b"\r\n0\r\n\r\n"),
        ("LF in chunk extension", b"11;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n"),
        ("CR in chunk extension", b"11;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n"),
        ("chunk longer than said", b"11\r\n" + BODY + b"xx\r\n0\r\n\r\n"),
        ("LF after chunk", b"11\r\n" + BODY + b"\n0\r\n\r\n"),
        ("no end of chunk", b"11\r\n" + BODY + b"0\r\n\r\n"),
        ("bad trailer", b"11\r\n" + BODY + b"\r\n0\r\na b: c\r\n\r\n"),
        ("NUL in trailer", b"11\r\n" + BODY + b"\r\n0\r\na: \x00\r\n\r\n"),
    ):
        yield bad(name, post(te, body=given), 400, 422)
    long = b"11;" + b"a" * 100_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    yield bad("long chunk extension", post(te, body=long), 400, 413, 422, 431)
    trailers = b"11\r\n%b\r\n0\r\n%b" % (BODY, b"a: b\r\n" * 200_000)
    yield bad("endless trailers", post(te, body=trailers), 400, 408, 413, 422, 431)


def heads() -> Iterator[Raw]:
    """Header lines."""
    for name, line in (
        ("folded", b"A: b\r\n c"), ("folded by tab", b"A: b\r\n\tc"), ("bare CR", b"A: b\rc"),
        ("CR at the end", b"A: b\r"), ("NUL in value", b"A: b\x00c"), ("NUL in name", b"A\x00: b"),
        ("control", b"A: b\x01c"), ("space in name", b"A b: c"), ("no colon", b"A"), ("no name", b": b"),
        ("name of no ASCII", b"\xc3\xa9: b"), ("bracket in name", b"A[: b"), ("DEL", b"A: b\x7f"),
        ("space first", b" A: b"), ("vertical tab", b"A\x0b: b"),
    ):  # fmt: skip
        yield bad(name, get(b"Host: here", line), 400)
        if name != "folded" and name != "folded by tab":
            yield bad(f"{name}, first", get(line, b"Host: here"), 400)
    yield bad("LF only", b"GET /livez HTTP/1.1\nHost: here\n\n", 200, 400)
    yield bad("long value", get(b"Host: here", b"A: " + b"b" * 2**20), 431)
    yield bad("long name", get(b"Host: here", b"A" * 2**20 + b": b"), 431)
    yield bad("a value over the limit", get(b"Host: here", b"A: " + b"b" * 17_000), 431)
    yield bad("10,000 headers", get(b"Host: here", *[b"A: b"] * 10_000), 431)
    yield bad("101 headers", get(b"Host: here", *[b"A: b"] * 101), 431)
    yield bad(
        "a long target", get(b"Host: here", target=b"/" + b"a" * 2**20), 400, 414, 431
    )
    yield bad(
        "a long query",
        get(b"Host: here", target=b"/livez?" + b"a" * 2**17),
        400,
        414,
        431,
    )
    yield bad(
        "a long method", b"A" * 10_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400, 431
    )
    yield bad("blank lines", b"\r\n" * 100_000 + GOOD, 200, 400, 431)


def hosts() -> Iterator[Raw]:
    """Host, missing or twice or no name (RFC 9112, 3.2)."""
    yield bad("no host", get(), 400)
    yield bad("two hosts", get(b"Host: here", b"Host: there"), 400)
    yield bad("two equal hosts", get(b"Host: here", b"Host: here"), 400)
    for host in (b"a/b", b"[::1", b"a b", b"a@b", b"here:port", b"here:80:80", b"a?b", b"a#b",
                 b"a\\b", b"<a>", b"here:-1", b"\xff", b"here:8 0", b"[here]"):  # fmt: skip
        yield bad(f"host {host!r}", get(b"Host: " + host), 400)


def lines() -> Iterator[Raw]:
    """Request lines."""
    for target in (b"http://elsewhere/livez", b"http://[::1/livez", b"livez", b"*", b"//livez",
                   b"/\x00", b"/\xff", b"/%00", b"/%0a", b"/%0d%0aA: b", b"/a b", b"/\x7f", b"", b"/livez#a",
                   b"/../livez", b"/%2e%2e/livez", b"/livez%", b"/%zz", b"\\livez", b"here:443"):  # fmt: skip
        fits = 200, 400, 404, 405
        yield bad(f"target {target[:20]!r}", get(b"Host: here", target=target), *fits)
    for version in (b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"HTTP/1.1.1", b"http/1.1",
                    b"HTTP/1.", b"HTTP/11", b"HTTQ/1.1", b"", b"HTTP/ 1.1", b"HTTP/99999.1"):  # fmt: skip
        given = get(b"Host: here", version=version)
        yield bad(f"version {version!r}", given, 400)
    for method in (b"CONNECT", b"TRACE", b"PRI", b"get", b"G ET", b"G\x00T", b"", b"GET\t",
                   b"\xc3\xa9"):  # fmt: skip
        data = b"%b /livez HTTP/1.1\r\n%b\r\n" % (method, HOST)
        yield bad(f"method {method!r}", data, 400, 404, 405)
    yield bad(
        "CONNECT a host",
        b"CONNECT here:443 HTTP/1.1\r\n%b\r\n" % HOST,
        400,
        404,
        405,
    )
    yield bad("HTTP/0.9", b"GET /livez\r\n", 400, 408)
    yield bad("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400)
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(200)
    yield bad("TLS", hello)
    yield bad("SSH", b"SSH-2.0-OpenSSH_9.9\r\n")
    yield bad("zeros", bytes(1000))
    yield bad("every byte", bytes(range(256)) * 4)
    yield bad("an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    keyless = get(b"Host: here", b"Connection: Upgrade", b"Upgrade: websocket")
    yield bad("an upgrade without a key", keyless, 200, 400, 426)
    for name, fields in UPGRADES.items():
        statuses = (400,) if "host" in name else (431,)
        yield bad(f"an upgrade of {name}", ask_for(*fields), *statuses)
    h2c = get(
        b"Host: here",
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    )
    yield bad("h2c", h2c, 200, 400, 426)


def pipelined() -> Iterator[Raw]:
    """Good requests, and garbage behind them: the good ones are answered."""
    for name, tail in (("garbage", b"\x00\x01garbage\r\n\r\n"), ("a bad line", b"G\r\n\r\n"),
                       ("two lengths", post(b"Content-Length: 1", b"Content-Length: 2"))):  # fmt: skip
        for count in (1, 3):
            data = GOOD * count + tail
            yield Raw(f"{count} good, {name}", data, frozenset({400}), True, count)


def every() -> list[Raw]:
    parts = smuggled(), heads(), hosts(), lines(), pipelined()
    return [one for part in parts for one in part]
