"""Under overload: refusals that cost next to nothing.

To refuse a request in the usual way takes a third of the time that it takes to serve
it: parsed HTTP, a task, a line of the log. When ten times as much comes as can be
computed, that is more than there is. So once requests are refused, plain ones that
would be refused too are answered from their bytes, for as long as that lasts.
"""

import asyncio
import logging
import random
import time

from service.codecs import fast_json
from service.errors import MEDIA_TYPE, Overloaded
from service.http.auth import ApiKeyAuth
from service.registry.catalog import TASKS, Catalog
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

LASTS_SECONDS = 0.1  # after a refusal
TELL_SECONDS = 1.0  # between lines of the log
HEADS = {f"POST /{task} HTTP/1.1\r\n".encode(): task for task in TASKS}
LONGEST_HEAD = 4096
TIMEOUT = b"x-request-timeout-ms"
# With one of these in its head a request is not plain.
ODD = frozenset(
    {b"connection", b"expect", b"transfer-encoding", b"content-encoding", b"upgrade"}
    | {b"origin", b"x-request-id"}
)


class Shedding:
    """Answers what needs no thought."""

    def __init__(self, catalog: Catalog, gate: ApiKeyAuth, metrics: Metrics):
        self._catalog, self._gate = catalog, gate
        self._refused = metrics.refused.labels(Overloaded.slug)
        self._requests = metrics.requests
        self._count = 0  # since the last line of the log
        self._timer: asyncio.TimerHandle | None = None

    def answer(self, data: bytes, connection: int) -> bytes | None:
        """The refusal of a whole plain request that would be refused; else None.

        Args:
            data: what came over a connection that is idle.
            connection: the number of that.
        """
        task = HEADS.get(data[: data.find(b"\n", 0, 64) + 1])
        if task is None:
            return None
        begun = time.perf_counter()
        model = self._catalog.find(fast_json.peek_model_name(data), task)
        if (
            model is None
            or begun > model.admission.wait_estimate.refused + LASTS_SECONDS
        ):
            return None
        headers = _headers(data)
        share = None if headers is None else self._gate.share(headers)
        if headers is None or share is None:
            return None
        left = _milliseconds(headers)
        if left is None:
            return None
        refusal = model.admission.overload(1, begun + left / 1000, (share, connection))
        if refusal is None:
            model.admission.wait_estimate.reserve(len(data))
            return None
        model.admission.wait_estimate.refused = begun
        self._refused.inc()
        model.admission.statistics.record_failure(0.0)
        answered = self._requests.labels("POST", f"/{task}", "503")
        answered.observe(time.perf_counter() - begun)
        self._tell()
        return _written(refusal)

    def _tell(self) -> None:
        self._count += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(TELL_SECONDS, self._told)

    def _told(self) -> None:
        log.warning("overloaded", extra={"refused": self._count})
        self._count, self._timer = 0, None


def _headers(data: bytes) -> dict[bytes, bytes] | None:
    """The fields of a plain request; None: it is not plain, or not whole."""
    end = data.find(b"\r\n\r\n", 0, LONGEST_HEAD)
    if end < 0:
        return None
    headers = {}
    _, *lines = data[:end].split(b"\r\n")
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.lower()] = value.strip()
    if len(headers) < len(lines) or not ODD.isdisjoint(headers):
        return None
    length = headers.get(b"content-length", b"")
    if b"host" not in headers or not length.isdigit() or len(length) > 9:
        return None
    return headers if int(length) == len(data) - end - 4 else None


def _milliseconds(headers: dict[bytes, bytes]) -> float | None:
    """The time that a request gives (infinite where it says nothing); None: who
    knows."""
    given = headers.get(TIMEOUT)
    if given is None:
        return float("inf")
    return int(given) if given.isdigit() and len(given) < 9 else None


def _written(refusal: Overloaded) -> bytes:
    request_id = f"{random.getrandbits(64):016x}"
    body = refusal.body(request_id)
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
        f"retry-after: {refusal.headers['Retry-After']}\r\n\r\n"
    )
    return head.encode() + body
