"""uvicorn, told how to stop."""

import contextlib
import logging
import os
import socket
from types import FrameType

import uvicorn

from .app import Service
from .connection import Connection
from .settings import Settings
from .web_socket import WebSocket

DRAIN_SECONDS = 2.0  # for streams to end


class Server(uvicorn.Server):
    """A server whose clean stop ends with exit code 0.

    uvicorn raises the signal again when it is done, so that a stop that was asked
    for looks like a crash (exit code 143) to whoever started the process.
    """

    def __init__(self, app: Service, config: uvicorn.Config):
        super().__init__(config)
        self.drain = app.drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # told twice: wait for nothing and nobody
            logging.shutdown()
            os._exit(1)
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # A worker in the midst of a tick is not interrupted for each request that
        # comes: its caches cost more than the moment that the request waits.
        with contextlib.suppress(OSError, AttributeError):  # not on this system
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        super().run(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # While the port is open: callers of streams are told before they are cut off.
        await self.drain(DRAIN_SECONDS)
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Stop as if told by a signal."""
        self.should_exit = True


def make(app: Service, settings: Settings) -> Server:
    """A server of the app; nothing runs yet."""
    return Server(
        app,
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here depends on who asks
            timeout_graceful_shutdown=settings.grace_seconds,
            interface="asgi3",
            http=Connection,
            ws=WebSocket,
            ws_max_size=settings.stream_message_bytes,
            # Costs more time than messages take, and memory for each stream.
            ws_per_message_deflate=False,
        ),
    )
