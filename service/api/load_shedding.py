"""Load shedding: cheap refusals under overload, before HTTP is parsed.

An ordinary refusal (parsed HTTP, a task, a log line) takes a third of the time of a
response. At ten times the load that can be served, that is more time than there is.
While requests are being refused, plain ones that would be refused too are answered from
their raw bytes.
"""

import asyncio
import logging
import random
import time

from service.codecs import fast_json
from service.errors import MEDIA_TYPE, Overloaded
from service.http.auth import ApiKeyAuth
from service.pool.pool import Pool
from service.registry.catalog import TASKS, Catalog
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

SHED_SECONDS = 0.1  # after a refusal
LOG_SECONDS = 1.0  # between log lines
REQUEST_LINES = {f"POST /{task} HTTP/1.1\r\n".encode(): task for task in TASKS}
MAX_HEAD_BYTES = 4096
TIMEOUT = b"x-request-timeout-ms"
# A request with one of these headers is not plain.
UNUSUAL_HEADERS = frozenset(
    {b"connection", b"expect", b"transfer-encoding", b"content-encoding", b"upgrade"}
    | {b"origin", b"x-request-id"}
)


class LoadShedder:
    """Refuses requests from their raw bytes."""

    def __init__(
        self, catalog: Catalog, auth: ApiKeyAuth, pool: Pool, metrics: Metrics
    ):
        self._catalog, self._auth, self._pool = catalog, auth, pool
        self._refused = metrics.refused.labels(Overloaded.slug)
        self._requests = metrics.requests
        self._count = 0  # since the last log line
        self._timer: asyncio.TimerHandle | None = None

    def refuse(self, data: bytes, connection: int) -> bytes | None:
        """The HTTP response to a complete, plain request that is refused; None for every
        other request.

        Args:
            data: received on an idle connection.
            connection: its number.
        """
        task = REQUEST_LINES.get(data[: data.find(b"\n", 0, 64) + 1])
        if task is None:
            return None
        now = time.perf_counter()
        recently = now - SHED_SECONDS
        if self._pool.last_refusal < recently:
            return None
        body = data[data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) :]
        model = self._catalog.tasks[task].find(*fast_json.peek(body))
        if model is None or model.admission.wait_estimate.refused < recently:
            return None
        headers = _parse_headers(data)
        owner = None if headers is None else self._auth.quota_owner(headers)
        if headers is None or owner is None:
            return None
        timeout = _timeout_ms(headers)
        if timeout is None:
            return None
        caller, deadline = (owner, connection), now + timeout / 1000
        refusal = model.admission.overload(1, deadline, caller)
        if refusal is None:
            model.admission.wait_estimate.reserve(len(data))
            return None
        model.admission.wait_estimate.refused = self._pool.last_refusal = now
        self._refused.inc()
        model.admission.statistics.record_failure(0.0)
        requests = self._requests.labels("POST", f"/{task}", "503")
        requests.observe(time.perf_counter() - now)
        self._count += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOG_SECONDS, self._log)
        return _response(refusal)

    def _log(self) -> None:
        log.warning("overloaded", extra={"refused": self._count})
        self._count, self._timer = 0, None


def _parse_headers(data: bytes) -> dict[bytes, bytes] | None:
    """The headers of a request, or None if it is not plain or not complete."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        return None
    headers = {}
    _, *lines = data[:end].split(b"\r\n")
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.lower()] = value.strip()
    if len(headers) < len(lines) or not UNUSUAL_HEADERS.isdisjoint(headers):
        return None
    length = headers.get(b"content-length", b"")
    if b"host" not in headers or not length.isdigit() or len(length) > 9:
        return None
    return headers if int(length) == len(data) - end - 4 else None


def _timeout_ms(headers: dict[bytes, bytes]) -> float | None:
    """The timeout of a request, infinite by default; None if it is not valid."""
    value = headers.get(TIMEOUT)
    if value is None:
        return float("inf")
    return int(value) if value.isdigit() and len(value) < 9 else None


def _response(refusal: Overloaded) -> bytes:
    request_id = f"{random.getrandbits(64):016x}"
    body = refusal.body(request_id)
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: {MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
        f"retry-after: {refusal.headers['Retry-After']}\r\n\r\n"
    )
    return head.encode() + body
