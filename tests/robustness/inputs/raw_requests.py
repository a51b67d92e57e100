"""RawRequest requests that are not valid HTTP, or that only an attacker sends."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.refusal import UPGRADE

GOOD = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"
HOST = b"Host: here\r\n"
BODY = b'{"sequences": []}'


class RawRequest(NamedTuple):
    """Bytes, and the permitted outcomes."""

    name: str
    data: bytes
    statuses: frozenset[int]  # of the response
    may_close: bool = True  # without a response
    valid: int = 0  # responses with 200 before it


def get(
    *fields: bytes, target: bytes = b"/livez", version: bytes = b"HTTP/1.1"
) -> bytes:
    """A request without a body, with these header lines."""
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"GET %b %b\r\n%b\r\n" % (target, version, lines)


def post(*fields: bytes, body: bytes = BODY) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    kind = b"Content-Type: application/json\r\n"
    return b"POST /classify HTTP/1.1\r\n%b%b%b\r\n%b" % (HOST, kind, lines, body)


def invalid(name: str, data: bytes, *statuses: int) -> RawRequest:
    return RawRequest(name, data, frozenset(statuses or (400,)))


BAD_UPGRADES = {
    "no host": (),
    "two hosts": (b"Host: here", b"Host: there"),
    "a bad host": (b"Host: a/b",),
    "a long head": (b"Host: here", b"A: " + b"b" * 17_000),
    "many fields": (b"Host: here", *[b"A: b"] * 200),
}


def websocket_upgrade(*fields: bytes) -> bytes:
    """The request that opens a WebSocket, with these header lines first."""
    return get(*fields, *UPGRADE, target=b"/stream?model=digits")


def smuggled() -> Iterator[RawRequest]:
    """Request smuggling: ambiguous ends of a body."""
    chunks = b"11\r\n" + BODY + b"\r\n0\r\n\r\n"
    cl, te = b"Content-Length: 17", b"Transfer-Encoding: chunked"
    yield invalid("length and chunks", post(cl, te, body=chunks))
    yield invalid("chunks and length", post(te, cl, body=chunks))
    yield invalid(
        "length of 0 and chunks", post(b"Content-Length: 0", te, body=chunks + GOOD)
    )
    yield invalid("two lengths", post(cl, b"Content-Length: 18"))
    yield invalid("two equal lengths", post(cl, cl))
    yield invalid("lengths in one", post(b"Content-Length: 17, 17"))
    for length in (b"-1", b"+17", b"0x11", b"17 17", b"1e1", b"", b"seventeen", b"9" * 30,
                   b"9" * 5000, b"17;", b"\xb2", b"1_7"):  # fmt: skip
        name = f"length {length[:12]!r}"
        yield invalid(name, post(b"Content-Length: " + length), 400, 413)
    for coding in (b"identity", b"gzip, chunked", b"chunked, chunked", b"chunked, identity",
                   b"xchunked", b"chunked;a=b", b"", b"\x0bchunked", b'"chunked"'):  # fmt: skip
        name = f"coding {coding!r}"
        yield invalid(
            name, post(b"Transfer-Encoding: " + coding, body=chunks), 400, 422
        )
    yield invalid("two codings", post(te, b"Transfer-Encoding: identity", body=chunks))
    yield invalid(
        "coding with a space", post(b"Transfer-Encoding : chunked", body=chunks)
    )
    yield invalid("length with a space", post(b"Content-Length : 17"))
    old = b"POST /classify HTTP/1.0\r\n%b\r\n\r\n" % te
    yield invalid("chunks in 1.0", old + chunks, 400, 422)
    for size in (b"-1", b"0x11", b"g", b"", b" 11", b"11 ", b"11\x00", b"f" * 17, b"1" * 400, b"+11", b"1_1"):  # fmt: skip
        body = size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
        yield invalid(f"chunk size {size[:12]!r}", post(te, body=body), 400, 413, 422)
    for name, body in (
        ("LF after chunk size", b"11\n" + BODY + b"\r\n0\r\n\r\n"),
        ("LF in chunk extension", b"11;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n"),
        ("CR in chunk extension", b"11;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n"),
        ("chunk longer than said", b"11\r\n" + BODY + b"xx\r\n0\r\n\r\n"),
        ("LF after chunk", b"11\r\n" + BODY + b"\n0\r\n\r\n"),
        ("no end of chunk", b"11\r\n" + BODY + b"0\r\n\r\n"),
        ("bad trailer", b"11\r\n" + BODY + b"\r\n0\r\na b: c\r\n\r\n"),
        ("NUL in trailer", b"11\r\n" + BODY + b"\r\n0\r\na: \x00\r\n\r\n"),
    ):
        yield invalid(name, post(te, body=body), 400, 422)
    long = b"11;" + b"a" * 100_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
    yield invalid("long chunk extension", post(te, body=long), 400, 413, 422, 431)
    trailers = b"11\r\n%b\r\n0\r\n%b" % (BODY, b"a: b\r\n" * 200_000)
    yield invalid("endless trailers", post(te, body=trailers), 400, 408, 413, 422, 431)


def heads() -> Iterator[RawRequest]:
    """Invalid header lines."""
    for name, line in (
        ("folded", b"A: b\r\n c"), ("folded by tab", b"A: b\r\n\tc"), ("bare CR", b"A: b\rc"),
        ("CR at the end", b"A: b\r"), ("NUL in value", b"A: b\x00c"), ("NUL in name", b"A\x00: b"),
        ("control", b"A: b\x01c"), ("space in name", b"A b: c"), ("no colon", b"A"), ("no name", b": b"),
        ("name of no ASCII", b"\xc3\xa9: b"), ("bracket in name", b"A[: b"), ("DEL", b"A: b\x7f"),
        ("space first", b" A: b"), ("vertical tab", b"A\x0b: b"),
    ):  # fmt: skip
        yield invalid(name, get(b"Host: here", line), 400)
        if name != "folded" and name != "folded by tab":
            yield invalid(f"{name}, first", get(line, b"Host: here"), 400)
    yield invalid("LF only", b"GET /livez HTTP/1.1\nHost: here\n\n", 200, 400)
    yield invalid("long value", get(b"Host: here", b"A: " + b"b" * 2**20), 431)
    yield invalid("long name", get(b"Host: here", b"A" * 2**20 + b": b"), 431)
    yield invalid(
        "a value over the limit", get(b"Host: here", b"A: " + b"b" * 17_000), 431
    )
    yield invalid("10,000 headers", get(b"Host: here", *[b"A: b"] * 10_000), 431)
    yield invalid("101 headers", get(b"Host: here", *[b"A: b"] * 101), 431)
    yield invalid(
        "a long target", get(b"Host: here", target=b"/" + b"a" * 2**20), 400, 414, 431
    )
    yield invalid(
        "a long query",
        get(b"Host: here", target=b"/livez?" + b"a" * 2**17),
        400,
        414,
        431,
    )
    yield invalid(
        "a long method", b"A" * 10_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400, 431
    )
    yield invalid("blank lines", b"\r\n" * 100_000 + GOOD, 200, 400, 431)


def hosts() -> Iterator[RawRequest]:
    """Missing, repeated and invalid Host (RFC 9112, 3.2)."""
    yield invalid("no host", get(), 400)
    yield invalid("two hosts", get(b"Host: here", b"Host: there"), 400)
    yield invalid("two equal hosts", get(b"Host: here", b"Host: here"), 400)
    for host in (b"a/b", b"[::1", b"a b", b"a@b", b"here:port", b"here:80:80", b"a?b", b"a#b",
                 b"a\\b", b"<a>", b"here:-1", b"\xff", b"here:8 0", b"[here]"):  # fmt: skip
        yield invalid(f"host {host!r}", get(b"Host: " + host), 400)


def lines() -> Iterator[RawRequest]:
    """Invalid request lines, and other protocols."""
    for target in (b"http://elsewhere/livez", b"http://[::1/livez", b"livez", b"*", b"//livez",
                   b"/\x00", b"/\xff", b"/%00", b"/%0a", b"/%0d%0aA: b", b"/a b", b"/\x7f", b"", b"/livez#a",
                   b"/../livez", b"/%2e%2e/livez", b"/livez%", b"/%zz", b"\\livez", b"here:443"):  # fmt: skip
        fits = 200, 400, 404, 405
        yield invalid(
            f"target {target[:20]!r}", get(b"Host: here", target=target), *fits
        )
    for version in (b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"HTTP/1.1.1", b"http/1.1",
                    b"HTTP/1.", b"HTTP/11", b"HTTQ/1.1", b"", b"HTTP/ 1.1", b"HTTP/99999.1"):  # fmt: skip
        data = get(b"Host: here", version=version)
        yield invalid(f"version {version!r}", data)
    for method in (b"CONNECT", b"TRACE", b"PRI", b"get", b"G ET", b"G\x00T", b"", b"GET\t",
                   b"\xc3\xa9"):  # fmt: skip
        data = b"%b /livez HTTP/1.1\r\n%b\r\n" % (method, HOST)
        yield invalid(f"method {method!r}", data, 400, 404, 405)
    yield invalid(
        "CONNECT a host",
        b"CONNECT here:443 HTTP/1.1\r\n%b\r\n" % HOST,
        400,
        404,
        405,
    )
    yield invalid("HTTP/0.9", b"GET /livez\r\n", 400, 408)
    yield invalid("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400)
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(200)
    yield invalid("TLS", hello)
    yield invalid("SSH", b"SSH-2.0-OpenSSH_9.9\r\n")
    yield invalid("zeros", bytes(1000))
    yield invalid("every byte", bytes(range(256)) * 4)
    yield invalid("an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    no_key = get(b"Host: here", b"Connection: Upgrade", b"Upgrade: websocket")
    yield invalid("an upgrade without a key", no_key, 200, 400, 426)
    for name, fields in BAD_UPGRADES.items():
        statuses = (400,) if "host" in name else (431,)
        yield invalid(f"an upgrade of {name}", websocket_upgrade(*fields), *statuses)
    h2c = get(
        b"Host: here",
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    )
    yield invalid("h2c", h2c, 200, 400, 426)


def pipelined() -> Iterator[RawRequest]:
    """Valid requests followed by garbage: the valid ones are answered."""
    for name, tail in (("garbage", b"\x00\x01garbage\r\n\r\n"), ("a bad line", b"G\r\n\r\n"),
                       ("two lengths", post(b"Content-Length: 1", b"Content-Length: 2"))):  # fmt: skip
        for count in (1, 3):
            data = GOOD * count + tail
            yield RawRequest(
                f"{count} valid, {name}", data, frozenset({400}), True, count
            )


def all_requests() -> list[RawRequest]:
    return [*smuggled(), *heads(), *hosts(), *lines(), *pipelined()]
