"""ASGI middleware around every request: its id, log line, metrics and error responses.

A WebSocket counts as a request whose response is 101, unless it is refused.
"""

import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.callers.caller import Caller, identify
from service.callers.memory_budget import MemoryBudget
from service.errors import MEDIA_TYPE, InternalError, ServiceError
from service.telemetry.metrics import Metrics
from service.telemetry.traces import Traces

log = logging.getLogger("service.request")

Headers = list[tuple[bytes, bytes]]
ErrorResponse = tuple[int, str, bytes]  # status, media type and body
STATUS_LINE = b"HTTP/1.1 200 OK\r\n"
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RawEndpoint(Protocol):
    """An endpoint outside FastAPI."""

    path: str

    async def __call__(self, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        """The headers and the body of a response with status 200."""
        ...


class RawEndpoints(Protocol):
    """Raw endpoints by path."""

    def get(self, path: str, /) -> RawEndpoint | None: ...


def problem_details(error: ServiceError, request_id: str) -> ErrorResponse:
    """An error as problem details (RFC 9457)."""
    return error.status, MEDIA_TYPE, error.body(request_id)


class RequestMiddleware:
    """The outermost ASGI middleware.

    Uses the client's `X-Request-ID` if it is short and plain, otherwise makes one, and
    returns it. Turns every `ServiceError` into an error response. Any other exception is
    logged in full and answered with a bare 500.
    """

    def __init__(
        self,
        app: ASGIApp,
        raw_endpoints: RawEndpoints,
        render_error: Callable[[ServiceError, str], ErrorResponse] = problem_details,
        *,
        metrics: Metrics,
        check: Callable[[Scope], None],
        budget: MemoryBudget,
        traces: Traces | None = None,
    ):
        """
        Args:
            raw_endpoints: whose paths bypass `app`.
            render_error: makes the response to an error, with the request's id.
            check: called first; raises the error of a request that may not enter.
            budget: of the bytes buffered for all callers.
            traces: None: no spans are recorded.
        """
        self._app, self._metrics, self._raw_endpoints = app, metrics, raw_endpoints
        self._render_error, self._check, self._budget = render_error, check, budget
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _REQUEST_TYPES:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        status, size = 0, 0
        caller: Caller | None = None

        async def send_response(message: Message) -> None:
            nonlocal status, size
            kind = message["type"]
            if kind in ("http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                header = (b"x-request-id", request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
            else:
                size += len(message.get("body") or message.get("text") or b"")
            if kind in _HTTP_RESPONSE and scope["type"] == "websocket":
                message["type"] = f"websocket.{kind}"
            await send(message)

        try:
            self._check(scope)
            scope["state"]["caller"] = caller = identify(scope, self._budget)
            endpoint = self._raw_endpoints.get(scope["path"])
            if endpoint is not None:
                scope["route"] = endpoint
                headers, body = await endpoint(scope, receive)
                headers.append((b"x-request-id", request_id.encode()))
                status, size = 200, len(body)
                await send_response_at_once(send, headers, body)
            else:
                await self._app(scope, receive, send_response)
        except ClientDisconnect:
            pass  # nobody reads a response
        except Exception as error:
            if status:
                raise  # too late for another response
            # No variable: an error that this frame holds would hold this frame.
            await self._send_error(
                as_service_error(error, request_id), request_id, send_response
            )
        finally:
            if caller is not None:
                caller.reservation.release()
            self._record(scope, request_id, status, size, started)

    async def _send_error(
        self, error: ServiceError, request_id: str, send: Send
    ) -> None:
        self._metrics.refused.labels(error.slug).inc()
        status, media_type, body = self._render_error(error, request_id)
        headers = {
            "content-type": media_type,
            "content-length": str(len(body)),
            **error.headers,
        }
        raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        start = {"type": "http.response.start", "status": status, "headers": raw}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def _record(
        self, scope: Scope, request_id: str, status: int, size: int, started: float
    ) -> None:
        """Count, trace and log a request."""
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope.get("method", "GET")
        method = method if method in _METHODS else "other"
        # 499, as in nginx: the client went before there was a response.
        code = status or scope["state"].get("refused", 499)
        histogram = self._metrics.requests.labels(method, route, str(code))
        histogram.observe(seconds)
        probe = route in _PROBES and code < 500
        span: dict[str, str] = {}
        if self._traces is not None and not probe:
            caller: Caller | None = scope["state"].get("caller")
            inference = caller.inference if caller is not None else None
            span = self._traces.record(scope, route, code, started, inference)
        level = logging.DEBUG if probe else logging.INFO
        if not log.isEnabledFor(level):
            return
        extra: dict[str, Any] = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": code,
            "duration_ms": round(1000 * seconds, 2),
            "bytes_in": _content_length(scope),
            "bytes_out": size,
            **span,
            **scope["state"].get("log", {}),
        }
        if "key" in scope["state"]:
            extra["key"] = scope["state"]["key"].name
        log.log(level, "request", extra=extra)


async def send_response_at_once(send: Send, headers: Headers, body: bytes) -> None:
    """Send a response with status 200 to a `POST` request.

    uvicorn's own `send` checks each header by two regular expressions, and runs once for
    the head and once for the body; that takes a tenth of a small request's CPU time.

    Args:
        headers: with the content length; their names and values are valid.
    """
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle) or cycle.flow.write_paused:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    elif not cycle.disconnected:
        parts = [STATUS_LINE]
        for name, value in (*cycle.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join(parts))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


def as_service_error(error: Exception, request_id: str) -> ServiceError:
    """The error to show the client. A failure of the service's own is logged."""
    if not isinstance(error, ServiceError):
        log.exception("unhandled", extra={"request_id": request_id})
        return InternalError("an internal error; the log has it under the request's id")
    if isinstance(error, InternalError):
        log.error("failed", exc_info=error.__cause__, extra={"request_id": request_id})
    return error


def header(scope: Scope, name: bytes) -> str | None:
    """The first header with this (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


_REQUEST_TYPES = frozenset({"http", "websocket"})
_HTTP_RESPONSE = frozenset({"http.response.start", "http.response.body"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES = frozenset(
    {"/", "/livez", "/healthz", "/readyz", "/metrics"}
    | {"/v2/health/live", "/v2/health/ready"}
)
_random = random.Random()  # request ids need not be hard to guess


def _request_id(scope: Scope) -> str:
    value = header(scope, b"x-request-id") or ""
    return value if REQUEST_ID.fullmatch(value) else f"{_random.getrandbits(64):016x}"


def _content_length(scope: Scope) -> int:
    value = header(scope, b"content-length") or "0"
    return int(value) if value.isdecimal() and len(value) < 16 else 0
