"""A small router for the protocols of other servers: routes by regular expression,
bodies of any media type, compressed responses, errors as `{"error": text}`."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from starlette.types import Receive, Scope, Send

from service.callers.caller import Caller, caller_of
from service.codecs import compression
from service.codecs.compression import Body
from service.codecs.process import INLINE_BYTES
from service.errors import MAX_ERRORS, InvalidRequest, MethodNotAllowed, ServiceError
from service.http import deadlines
from service.http.body import BodyReader
from service.http.middleware import ErrorResponse, Headers, header
from service.registry.catalog import Model

JSON = "application/json"


class Response(NamedTuple):
    """A successful response."""

    body: bytes
    media_type: str = JSON
    # Only predictions: tritonclient's asyncio client decompresses nothing else.
    compressible: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_response(value: Any) -> Response:
    return Response(orjson.dumps(value))


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and the parameters in its path."""

    scope: Scope
    receive: Receive
    body_reader: BodyReader
    deadline: float  # of its header; infinite without one
    path_params: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's reference for the catalog: its name, with the path's version or
        label."""
        version = self.path_params.get("version") or self.path_params.get("label")
        name = self.path_params["model"] or ""
        if version is None:
            return name
        return f"{name}@{version.lstrip('0') or version}"

    def header(self, name: bytes) -> str | None:
        return header(self.scope, name)

    @property
    def caller(self) -> Caller:
        return caller_of(self.scope)

    async def body(self) -> Body:
        """Read the body, of any media type; see `BodyReader.read`.

        Raises:
            ServiceError, ClientDisconnect: see there.
        """
        return await self.body_reader.read(self.scope, self.receive)


Handler = Callable[[Request], Awaitable[Response]]


class Route:
    """The handlers of one path, by method; a `RawEndpoint` of the middleware."""

    def __init__(
        self,
        path: str,
        pattern: str,
        body_reader: BodyReader,
        ignore_case: bool,
        **handlers: Handler,
    ):
        """
        Args:
            path: for logs and metrics.
            handlers: by method, in lower case.
        """
        self.path, self._body_reader = path, body_reader
        self.pattern = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        self._handlers = {method.upper(): h for method, h in handlers.items()}

    async def __call__(self, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            allowed = ", ".join(self._handlers)
            raise MethodNotAllowed(f"use {allowed}", headers={"Allow": allowed})
        match = self.pattern.fullmatch(scope["path"])
        assert match is not None
        deadline = deadlines.requested_deadline(scope)
        request = Request(
            scope, receive, self._body_reader, deadline, match.groupdict()
        )
        return await _compress(request, await handler(request))


class Router:
    """All routes of a protocol; the first that matches handles a request."""

    def __init__(self, body_reader: BodyReader, *, ignore_case: bool = False):
        self._body_reader, self._ignore_case = body_reader, ignore_case
        self._routes: list[Route] = []

    def add(self, path: str, pattern: str, **handlers: Handler) -> None:
        """Add a route; arguments as of `Route`."""
        self._routes.append(
            Route(path, pattern, self._body_reader, self._ignore_case, **handlers)
        )

    def get(self, path: str) -> Route | None:
        for route in self._routes:
            if route.pattern.fullmatch(path):
                return route
        return None


def error_response(error: ServiceError, _: str) -> ErrorResponse:
    """An error in the form that clients of these protocols expect, which has 400 in place
    of 422."""
    text = error.detail
    if error.errors:
        fields = [f"{e.path} {e.message}" for e in error.errors[:MAX_ERRORS]]
        text = f"{text}: {'; '.join(fields)}"
    status = 400 if error.status == 422 else error.status
    return status, JSON, orjson.dumps({"error": text})


def error_app(
    error: type[ServiceError], detail: str
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI application that raises an error, for paths without a route."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # A new one each time: an exception keeps the frames that it passed.
        raise error(detail)

    return app


async def _compress(request: Request, response: Response) -> tuple[Headers, bytes]:
    headers = [(b"content-type", response.media_type.encode()), *response.headers]
    body, encoding = response.body, None
    if response.compressible and len(body) >= compression.MIN_BYTES:
        encoding = compression.accepted_encoding(request.header(b"accept-encoding"))
        headers.append((b"vary", b"accept-encoding"))
    if encoding is not None:
        if len(body) <= INLINE_BYTES:
            body = compression.compress(body, encoding)
        else:
            body = await asyncio.to_thread(compression.compress, body, encoding)
        request.caller.reservation.resize(len(body))
        headers.append((b"content-encoding", encoding.encode()))
    headers.append((b"content-length", b"%d" % len(body)))
    return headers, body


def refuse_text(model: Model) -> None:
    """Refuse a model that reads text or records, on a route for numbers.

    Raises:
        InvalidRequest: names the route that takes it.
    """
    if model.reads != "frames":
        about = model.metadata
        raise InvalidRequest(
            f"{about.name} reads {model.reads}: use POST /{about.task}"
        )
