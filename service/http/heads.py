"""What a request's head may say, before or beside its parser."""

import re

# Of RFC 9110, 7.2: a name or an address, and perhaps a port.
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]*)(:[0-9]*)?")
H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n|$)", re.IGNORECASE)


def without_h2c(data: bytes) -> bytes:
    """A request without the wish to go on in HTTP/2 (RFC 9110, 7.8: it may be passed
    over). Some clients begin with it, and the parser takes it for the last request."""
    end = data.find(b"\r\n\r\n") if b"h2c" in data else -1
    return H2C.sub(b"", data[:end]) + data[end:] if end > 0 else data
