"""Streams on the wire: `WS /stream`, and JSON lines over `POST /stream`."""

import asyncio
from contextlib import suppress

from fastapi import APIRouter
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.api import schemas
from service.callers.caller import caller_of
from service.errors import NotFound
from service.http import body, cors
from service.http.compression import DecompressingReceive
from service.http.connection import CONNECTION, Connection
from service.http.middleware import header
from service.http.ndjson import NdjsonReader
from service.http.websocket import DIRECT, WebSocket
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
from service.streaming.manager import Streams
from service.streaming.stream import Stream

KINDS = ("application/x-ndjson", "application/jsonl", "application/json")
HEADERS = [
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # asks a proxy to hand on each line
    (b"connection", b"close"),  # the rest of a body is nobody's request
]
# Of RFC 6455 and its registry: normal, violates a policy, service restart.
CODES = {DONE: 1000, IDLE: 1000, FAULTY: 1008, AGED: 1012, STOPPING: 1012}


class StreamRoute:
    """Both, past the framework."""

    path = "/stream"

    def __init__(self, streams: Streams, settings: Settings):
        self.streams = streams
        self._limit, self._settings = settings.stream_message_bytes, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        web_socket = scope["type"] == "websocket"
        if scope["path"] != self.path:
            raise NotFound("there is no WebSocket at this path")
        scope["route"] = self
        if web_socket:
            cors.check_websocket_origin(scope, self._settings)
        else:
            head = body.told(scope)
            head.check(*KINDS)
            if head.coding:
                receive = DecompressingReceive(receive, head.coding)
        stream = self.streams.open(scope["query_string"], _id(scope), caller_of(scope))
        talk = self._web_socket if web_socket else self._lines
        ended = GONE
        try:
            ended = await talk(stream, scope, receive, send)
        except OSError as error:  # what uvicorn raises when the caller has gone
            raise ClientDisconnect from error
        finally:
            told = scope["state"]["log"] = {
                "model": stream.model.metadata.name,
                "messages": stream.messages,
                "steps": stream.state.steps,
                "ended": ended,
            }
            self.streams.close(stream)
            socket = scope.get("extensions", {}).get(DIRECT)
            if socket is not None:  # past whoever else counts them
                told["bytes_out"] = socket.told_bytes

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

        async def begin() -> None:
            await send({"type": "websocket.accept"})

        await receive()  # that it wants to connect
        socket: WebSocket | None = scope.get("extensions", {}).get(DIRECT)
        if socket is None:  # another server than ours
            ended = await AsgiStreamHandler(stream, begin, following, tell).run()
        else:
            await begin()
            talk = SocketStreamHandler(stream, socket)
            socket.listen(talk)
            ended = await talk.ended
        if ended in CODES:
            close = {"type": "websocket.close", "code": CODES[ended], "reason": ended}
            try:
                async with asyncio.timeout(END_SECONDS):
                    await send(close)
            except TimeoutError:  # it waits for the caller to read
                if socket is not None:
                    socket.abort()
        return ended

    async def _lines(
        self, stream: Stream, scope: Scope, receive: Receive, send: Send
    ) -> str:
        kind = "http.response.body"
        lines = NdjsonReader(receive, self._limit, stream.caller.reservation)
        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION)
        if connection is not None:
            connection.wait()

        async def begin() -> None:
            if header(scope, b"expect") is not None:
                await lines.prime()
            start = {"type": "http.response.start", "status": 200, "headers": HEADERS}
            await send(start)
            await send({"type": kind, "body": b"", "more_body": True})

        async def tell(line: bytes) -> None:
            await send({"type": kind, "body": line + b"\n", "more_body": True})

        ended = await AsgiStreamHandler(stream, begin, lines.next_line, tell).run()
        if ended != UNREAD:
            with suppress(ClientDisconnect):  # it has heard all
                await lines.discard()
            await send({"type": kind, "body": b""})
        elif connection is not None:
            connection.abort()
            await asyncio.sleep(0)  # uvicorn hears of it
        return ended


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
