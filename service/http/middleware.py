"""Around every request: its id, its log line, its metrics, its errors.

A WebSocket is a request whose answer is 101, unless it is refused.
"""

import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.callers.caller import Caller, identify
from service.callers.memory_budget import MemoryBudget
from service.errors import MEDIA_TYPE, InternalError, ServiceError
from service.http.traces import Traces
from service.telemetry.metrics import Metrics

log = logging.getLogger("service.request")

Headers = list[tuple[bytes, bytes]]
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RawEndpoint(Protocol):
    """What answers a path past the framework."""

    path: str

    async def __call__(self, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        """The headers and the body of a good answer."""
        ...


ErrorResponse = tuple[int, str, bytes]  # a refusal's status, media type and body


def problem_details(error: ServiceError, request_id: str) -> ErrorResponse:
    """The problem's details (RFC 9457)."""
    return error.status, MEDIA_TYPE, error.body(request_id)


class RawEndpoints(Protocol):
    """Those that there are, by path."""

    def get(self, path: str, /) -> RawEndpoint | None: ...


class RequestMiddleware:
    """ASGI middleware, outermost.

    Takes the caller's `X-Request-ID` if it is short and plain, else makes one, and
    returns it. Turns every `ServiceError` into problem details; any other exception
    is logged in full and told as a bare 500. The paths in `direct` go past `app`.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        direct: RawEndpoints,
        told: Callable[[ServiceError, str], ErrorResponse] = problem_details,
        *,
        check: Callable[[Scope], None],
        budget: MemoryBudget,
        traces: Traces | None = None,
    ):
        """
        Args:
            traces: makes spans of requests; None: there are none.
            check: raises what a request is to be refused with, before all else.
            budget: of what is held for callers.
            told: what a refusal looks like; it is given the request's id too.
        """
        self._app, self._metrics, self._direct = app, metrics, direct
        self._told, self._check, self._budget = told, check, budget
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in _KINDS:
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {}).update(request_id=request_id, begun=begun)
        status, size = 0, 0
        caller: Caller | None = None

        async def answer(message: Message) -> None:
            nonlocal status, size
            kind = message["type"]
            if kind in ("http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                header = (b"x-request-id", request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
            else:
                size += len(message.get("body") or message.get("text") or b"")
            if kind in _REFUSED and scope["type"] == "websocket":
                message["type"] = f"websocket.{kind}"
            await send(message)

        try:
            self._check(scope)
            scope["state"]["caller"] = caller = identify(scope, self._budget)
            direct = self._direct.get(scope["path"])
            if direct is not None:
                scope["route"] = direct
                headers, body = await direct(scope, receive)
                headers.append((b"x-request-id", request_id.encode()))
                status, size = 200, len(body)
                start = {"type": "http.response.start", "status": status}
                await send(start | {"headers": headers})
                await send({"type": "http.response.body", "body": body})
            else:
                await self._app(scope, receive, answer)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            if status:
                raise  # too late for another answer
            await self.refuse(as_service_error(error, request_id), request_id, answer)
        finally:
            if caller is not None:
                caller.reservation.release()
            self._record(scope, request_id, status, size, begun)

    async def refuse(self, error: ServiceError, request_id: str, send: Send) -> None:
        """Answer with what is wrong."""
        self._metrics.refused.labels(error.slug).inc()
        status, kind, body = self._told(error, request_id)
        headers = {
            "content-type": kind,
            "content-length": str(len(body)),
            **error.headers,
        }
        raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        start = {"type": "http.response.start", "status": status, "headers": raw}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def _record(
        self, scope: Scope, request_id: str, status: int, size: int, begun: float
    ) -> None:
        seconds = time.perf_counter() - begun
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope.get("method", "GET")
        method = method if method in _METHODS else "other"
        # 499, as nginx has it: the caller went before there was an answer.
        code = status or scope["state"].get("refused", 499)
        child = self._metrics.requests.labels(method, route, str(code))
        child.observe(seconds)
        probe = route in _PROBES and code < 500
        span: dict[str, str] = {}
        if self._traces is not None and not probe:
            span = self._traces.record(scope, route, code, begun)
        level = logging.DEBUG if probe else logging.INFO
        if not log.isEnabledFor(level):
            return
        extra: dict[str, Any] = {
            "request_id": request_id,
            "method": method,
            "route": route,
            "status": code,
            "duration_ms": round(1000 * seconds, 2),
            "bytes_in": _length(scope),
            "bytes_out": size,
            **span,
            **scope["state"].get("log", {}),
        }
        if "key" in scope["state"]:
            extra["key"] = scope["state"]["key"].name
        log.log(level, "request", extra=extra)


def as_service_error(error: Exception, request_id: str) -> ServiceError:
    """A failure as the refusal that the caller is told; our own mistakes are logged."""
    if not isinstance(error, ServiceError):
        log.exception("unhandled", extra={"request_id": request_id})
        return InternalError("an error of the service; its log has the id")
    if isinstance(error, InternalError):
        log.error("failed", exc_info=error.__cause__, extra={"request_id": request_id})
    return error


_KINDS = frozenset({"http", "websocket"})
_REFUSED = frozenset({"http.response.start", "http.response.body"})
_random = random.Random()  # an id need not be hard to guess
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES = frozenset(
    {"/", "/livez", "/healthz", "/readyz", "/metrics"}
    | {"/v2/health/live", "/v2/health/ready"}
)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id") or ""
    return given if REQUEST_ID.fullmatch(given) else f"{_random.getrandbits(64):016x}"


def _length(scope: Scope) -> int:
    given = header(scope, b"content-length") or "0"
    return int(given) if given.isdecimal() and len(given) < 16 else 0
