"""What the protocols of other servers have in common here: paths by patterns, bodies
of any media type, answers that may be compressed, errors as `{"error": text}`.

A dialect translates: its requests are computed as those of `/classify` are.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from starlette.types import Receive, Scope, Send

from service.callers.caller import Caller, caller_of
from service.codecs.process import INLINE_BYTES
from service.errors import MAX_ERRORS, MethodNotAllowed, ServiceError
from service.http import compression, deadlines
from service.http.body import BodyReader
from service.http.middleware import ErrorResponse, Headers, header

JSON = "application/json"


class Reply(NamedTuple):
    """A good answer."""

    body: bytes
    kind: str = JSON
    # Only predictions: tritonclient's aio inflates nothing else.
    compressible: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()


def reply(value: Any) -> Reply:
    """The JSON of a value."""
    return Reply(orjson.dumps(value))


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and what its path names."""

    scope: Scope
    receive: Receive
    bodies: BodyReader
    until: float  # when its caller waits no longer; infinite where it doesn't say
    named: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """As the catalog takes it: a name, with the version or label of the path."""
        which = self.named.get("version") or self.named.get("label")
        name = self.named["model"] or ""
        return name if which is None else f"{name}@{which.lstrip('0') or which}"

    def header(self, name: bytes) -> str | None:
        return header(self.scope, name)

    @property
    def caller(self) -> Caller:
        return caller_of(self.scope)

    async def body(self) -> Callable[[], Awaitable[bytes]]:
        """As `BodyReader.read`; its media type says nothing.

        Raises:
            UnsupportedMedia, TooLarge, BufferFull, ClientDisconnect: as there.
        """
        return await self.bodies.read(self.scope, self.receive)


Handler = Callable[[Call], Awaitable[Reply]]


class Path:
    """What answers at the paths of a pattern; a `RawEndpoint` of the middleware."""

    def __init__(
        self,
        path: str,
        pattern: str,
        bodies: BodyReader,
        ignore_case: bool,
        **handlers: Handler,
    ):
        """
        Args:
            path: as logs and metrics name it.
            handlers: by method, in small letters.
        """
        self.path, self._bodies = path, bodies
        self.pattern = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        self._handlers = {method.upper(): one for method, one in handlers.items()}

    async def __call__(self, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            allowed = ", ".join(self._handlers)
            raise MethodNotAllowed(f"use {allowed}", headers={"Allow": allowed})
        matched = self.pattern.fullmatch(scope["path"])
        assert matched is not None
        call = Call(
            scope,
            receive,
            self._bodies,
            deadlines.requested_deadline(scope),
            matched.groupdict(),
        )
        return await _compressed(call, await handler(call))


class Paths:
    """All of a dialect's, tried in turn."""

    def __init__(self, bodies: BodyReader, *, ignore_case: bool = False):
        self._bodies, self._ignore_case = bodies, ignore_case
        self._paths: list[Path] = []

    def add(self, path: str, pattern: str, **handlers: Handler) -> None:
        made = Path(path, pattern, self._bodies, self._ignore_case, **handlers)
        self._paths.append(made)

    def get(self, path: str) -> Path | None:
        for one in self._paths:
            if one.pattern.fullmatch(path):
                return one
        return None


def error_response(error: ServiceError, _: str) -> ErrorResponse:
    """As clients of these protocols take it. What the numbers or members of a request
    are at fault for is 400 there."""
    told = "; ".join(f"{e.path} {e.message}" for e in error.errors[:MAX_ERRORS])
    text = f"{error.detail}: {told}" if told else error.detail
    status = 400 if error.status == 422 else error.status
    return status, JSON, orjson.dumps({"error": text})


def error_app(
    error: type[ServiceError], detail: str
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """What answers where no path matches."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        # Each time another one: an exception keeps what it has passed through.
        raise error(detail)

    return refuse


async def _compressed(call: Call, answer: Reply) -> tuple[Headers, bytes]:
    headers = [(b"content-type", answer.kind.encode()), *answer.headers]
    body = answer.body
    coding = None
    if answer.compressible and len(body) >= compression.MIN_BYTES:
        coding = compression.accepted_encoding(call.header(b"accept-encoding"))
        headers.append((b"vary", b"accept-encoding"))
    if coding is not None:
        if len(body) <= INLINE_BYTES:
            body = compression.compress(body, coding)
        else:
            body = await asyncio.to_thread(compression.compress, body, coding)
        call.caller.reservation.resize(len(body))
        headers.append((b"content-encoding", coding.encode()))
    headers.append((b"content-length", b"%d" % len(body)))
    return headers, body
