"""The `Server-Timing` header: how long each stage of a prediction took.

The format is that of the W3C's Server Timing. Traces have the same stages as spans.
"""

STAGES = ("parse", "queue", "infer", "serialize")
_TEMPLATE = ", ".join(f"{stage};dur=%.3f" for stage in STAGES).encode()


def header(*seconds: float) -> tuple[bytes, bytes]:
    """Returns the header for the seconds of each stage; it states milliseconds."""
    return b"server-timing", _TEMPLATE % tuple([1000 * s for s in seconds])
