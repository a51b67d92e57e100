"""An HTTP connection: uvicorn's, with few writes and no upgrade in between."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .gathered import Gathered

ABORT = "unrolled.abort"  # ASGI extension: hang up at once


class Connection(HttpToolsProtocol):
    """uvicorn writes head and body of an answer apart: two system calls, and a client
    that is woken twice."""

    _deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Gathered(transport))
        self._extensions = {ABORT: {"abort": transport.abort}}

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]

    def data_received(self, data: bytes) -> None:
        if not self._deaf:
            super().data_received(data)

    def handle_websocket_upgrade(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Sent behind a request that has no answer yet, which would never hear of
            # its connection again.
            self._deaf = True
            self.cycle.keep_alive = False
            return
        super().handle_websocket_upgrade()
