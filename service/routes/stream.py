"""Streams on the wire: `WS /stream`, and JSON lines over `POST /stream`."""

from fastapi import APIRouter
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .. import bodies, schemas
from ..errors import NotFound, ServiceError, TooLarge
from ..settings import Settings
from ..stream import Stream
from ..streams import Streams
from ..talks import DONE, GONE, UNREAD, AsgiTalk, DirectTalk
from ..web_socket import DIRECT

KINDS = ("application/x-ndjson", "application/jsonl", "application/json")
HEADERS = [
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # asks a proxy to hand on each line
    (b"connection", b"close"),  # the rest of a body is nobody's request
]
CLOSED, AWAY = 1000, 1012  # of RFC 6455 and its registry: normal, service restart


class StreamRoute:
    """Both, past the framework."""

    path = "/stream"

    def __init__(self, streams: Streams, settings: Settings):
        self.streams = streams
        self._limit = settings.stream_message_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        web_socket = scope["type"] == "websocket"
        if scope["path"] != self.path:
            raise NotFound("there is no WebSocket at this path")
        scope["route"] = self
        if not web_socket:
            bodies.check_kind(scope, *KINDS)
        stream = self.streams.open(scope["query_string"], _id(scope))
        talk = self._web_socket if web_socket else self._lines
        ended = GONE
        try:
            ended = await talk(stream, scope, receive, send)
        except OSError as error:  # what uvicorn raises when the caller has gone
            raise ClientDisconnect from error
        finally:
            self.streams.close(stream)
            scope["state"]["log"] = {
                "model": stream.model.metadata.name,
                "messages": stream.messages,
                "steps": stream.state.steps,
                "ended": ended,
            }

    async def _web_socket(
        self, stream: Stream, scope: Scope, receive: Receive, send: Send
    ) -> str:
        async def following() -> bytes:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                raise ClientDisconnect
            text: str | None = message.get("text")
            data: bytes = message["bytes"] if text is None else text.encode()
            return data

        async def tell(line: bytes) -> None:
            await send({"type": "websocket.send", "text": line.decode()})

        await receive()  # that it wants to connect
        await send({"type": "websocket.accept"})
        socket = scope["extensions"].get(DIRECT)
        if socket is None:  # another server than ours
            ended = await AsgiTalk(stream, following, tell).run()
        else:
            talk = DirectTalk(stream, socket)
            socket.listen(talk)
            ended = await talk.ended
        if ended not in (GONE, UNREAD):
            code = CLOSED if ended == DONE else AWAY
            await send({"type": "websocket.close", "code": code, "reason": ended})
        return ended

    async def _lines(
        self, stream: Stream, scope: Scope, receive: Receive, send: Send
    ) -> str:
        kind = "http.response.body"

        async def tell(line: bytes) -> None:
            await send({"type": kind, "body": line + b"\n", "more_body": True})

        start = {"type": "http.response.start", "status": 200, "headers": HEADERS}
        await send(start)
        await send({"type": kind, "body": b"", "more_body": True})  # it has begun
        ended = await AsgiTalk(
            stream, Lines(receive, self._limit).following, tell
        ).run()
        if ended != UNREAD:
            await send({"type": kind, "body": b""})
        return ended


class Lines:
    """The lines of a body as they come."""

    def __init__(self, receive: Receive, limit: int):
        self._receive, self._limit = receive, limit
        self._buffer = bytearray()
        self._looked = 0  # so far there is no line break
        self._skips = self._ended = False

    async def following(self) -> bytes | ServiceError | None:
        """The next that is not empty; an error in the place of one over the limit;
        None after the last.

        Raises:
            ClientDisconnect: the caller has gone.
        """
        while True:
            line = self._cut()
            if line is None:
                if self._ended:
                    return None
                await self._more()
            elif self._skips or len(line) > self._limit:
                self._skips = False
                return TooLarge(f"at most {self._limit} bytes in a message")
            elif line.strip():
                return line

    def _cut(self) -> bytes | None:
        """The line that is whole."""
        end = self._buffer.find(b"\n", self._looked)
        if end < 0 and self._ended and (self._buffer or self._skips):
            end = len(self._buffer)
        if end < 0:
            self._looked = len(self._buffer)
            if self._looked > self._limit:
                self._skips, self._looked = True, 0
                self._buffer.clear()
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._looked = 0
        return line

    async def _more(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._buffer += message.get("body", b"")
        self._ended = not message.get("more_body", False)


def _id(scope: Scope) -> str:
    request_id: str = scope["state"]["request_id"]
    return request_id


def router() -> APIRouter:
    """What OpenAPI says of it; `StreamRoute` answers."""
    api = APIRouter()

    @api.post("/stream", **schemas.stream())
    def stream() -> None:
        """Frames as they come, and the class probabilities so far.

        Both bodies are JSON lines that flow at the same time: a line in, a line out.
        `WS /stream?model=NAME` takes and gives the same messages over a WebSocket.
        """

    return api
