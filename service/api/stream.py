"""Live streams: `WS /stream`, and NDJSON over `POST /stream`."""

import asyncio
from contextlib import suppress

from fastapi import APIRouter
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.api import operations
from service.callers.caller import caller_of
from service.codecs.compression import DecompressingReceive
from service.errors import NotFound
from service.http import cors
from service.http.body import BodyHeaders
from service.http.connection import CONNECTION, Connection
from service.http.middleware import header
from service.http.ndjson import NdjsonReader
from service.http.websocket import WEBSOCKET, WebSocket
from service.settings import Settings
from service.streaming.handlers import (
    AGED,
    DONE,
    END_SECONDS,
    FAULTY,
    GONE,
    IDLE,
    STOPPING,
    UNREAD,
    AsgiStreamHandler,
    SocketStreamHandler,
)
from service.streaming.manager import StreamManager
from service.streaming.stream import RETIRED, Stream

MEDIA_TYPES = ("application/x-ndjson", "application/jsonl", "application/json")
HEADERS = [
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # asks a proxy to pass on each line
    (b"connection", b"close"),  # the rest of the body is not another request
]
# Of RFC 6455 and its registry: normal closure, policy violation, service restart.
CLOSE_CODES = {
    **{DONE: 1000, IDLE: 1000, FAULTY: 1008, AGED: 1012, STOPPING: 1012},
    RETIRED: 1012,
}


class StreamRoute:
    """The ASGI app at `/stream`, for both transports."""

    path = "/stream"

    def __init__(self, streams: StreamManager, settings: Settings):
        self.streams = streams
        self._limit, self._settings = settings.stream_message_bytes, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = scope["type"] == "websocket"
        if scope["path"] != self.path:
            raise NotFound("there is no WebSocket at this path")
        scope["route"] = self
        if websocket:
            cors.check_websocket_origin(scope, self._settings)
        else:
            headers = BodyHeaders.of(scope)
            headers.check(*MEDIA_TYPES)
            if headers.coding:
                receive = DecompressingReceive(receive, headers.coding)
        query, request_id = scope["query_string"], scope["state"]["request_id"]
        stream = self.streams.open(query, request_id, caller_of(scope))
        serve = self._serve_websocket if websocket else self._serve_ndjson
        ended = GONE
        try:
            ended = await serve(stream, scope, receive, send)
        except OSError as error:  # uvicorn raises it when the client has gone
            raise ClientDisconnect from error
        finally:
            fields = scope["state"]["log"] = {
                "model": stream.model.metadata.name,
                "messages": stream.messages,
                "steps": stream.state.steps,
                "ended": ended,
            }
            self.streams.close(stream)
            socket = scope.get("extensions", {}).get(WEBSOCKET)
            if socket is not None:  # the middleware does not see its messages
                fields["bytes_out"] = socket.sent_bytes

    async def _serve_websocket(
        self, stream: Stream, scope: Scope, receive: Receive, send: Send
    ) -> str:
        async def receive_message() -> bytes:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                raise ClientDisconnect
            text: str | None = message.get("text")
            data: bytes = message["bytes"] if text is None else text.encode()
            return data

        async def send_line(line: bytes) -> None:
            await send({"type": "websocket.send", "text": line.decode()})

        async def accept() -> None:
            await send({"type": "websocket.accept"})

        await receive()  # "websocket.connect"
        socket: WebSocket | None = scope.get("extensions", {}).get(WEBSOCKET)
        if socket is None:  # another server than ours
            ended = await AsgiStreamHandler(
                stream, accept, receive_message, send_line
            ).run()
        else:
            await accept()
            handler = SocketStreamHandler(stream, socket)
            socket.attach(handler)
            ended = await handler.ended
        if ended in CLOSE_CODES:
            code = CLOSE_CODES[ended]
            try:
                async with asyncio.timeout(END_SECONDS):
                    await send(
                        {"type": "websocket.close", "code": code, "reason": ended}
                    )
            except TimeoutError:  # the client does not read
                if socket is not None:
                    socket.abort()
        return ended

    async def _serve_ndjson(
        self, stream: Stream, scope: Scope, receive: Receive, send: Send
    ) -> str:
        body = "http.response.body"
        reader = NdjsonReader(receive, self._limit, stream.caller.reservation)
        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION)
        if connection is not None:
            connection.mark_streaming()

        async def begin() -> None:
            if header(scope, b"expect") is not None:
                await reader.prime()
            start = {"type": "http.response.start", "status": 200, "headers": HEADERS}
            await send(start)
            await send({"type": body, "body": b"", "more_body": True})

        async def send_line(line: bytes) -> None:
            await send({"type": body, "body": line + b"\n", "more_body": True})

        ended = await AsgiStreamHandler(
            stream, begin, reader.next_line, send_line
        ).run()
        if ended != UNREAD:
            with suppress(ClientDisconnect):  # it has read all
                await reader.discard()
            await send({"type": body, "body": b""})
        elif connection is not None:
            connection.transport.abort()
            await asyncio.sleep(0)  # uvicorn learns of it in the next turn
        return ended


def router() -> APIRouter:
    """The route, declared for OpenAPI; `StreamRoute` answers."""
    api = APIRouter()

    @api.post(
        "/stream",
        summary="Classify or label a sequence while it happens",
        **operations.stream(),
    )
    def stream() -> None:
        """Return class probabilities while the steps of a sequence arrive.

        Both bodies are NDJSON, and are sent at the same time: a line in, a line out.
        `WS /stream?model=NAME` has the same messages over a WebSocket.
        """

    return api
