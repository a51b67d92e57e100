"""TLS: handshakes that count as connections, and certificates that are reloaded."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from service import values
from service.http.limits import ConnectionLimiter

log = logging.getLogger(__name__)


class Certificate:
    """A certificate and its key, reloaded when their files change."""

    def __init__(self, chain: str, key: str):
        """
        Raises:
            ValueError: the files can't be read, or don't belong together.
        """
        self._files = chain, key
        self._stamps = self._file_stamps()
        self.context = values.tls_context(chain, key)

    def refresh(self) -> None:
        """Reload the files if they have changed; not on the event loop. Files that can't
        be used change nothing, and are logged once."""
        stamps = self._file_stamps()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self.context = values.tls_context(*self._files)
        except ValueError as error:
            log.error("the new TLS certificate can't be used: %s", error)
        else:
            log.info("the TLS certificate was reloaded")

    def _file_stamps(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in self._files]


class Handshake(asyncio.Protocol):
    """A connection until its TLS handshake is complete.

    An event loop that listens with a certificate reports connections only after the
    handshake, so unfinished ones would escape the connection limit. The server therefore
    listens without, and hands each socket to the loop again, with the certificate.
    """

    def __init__(
        self,
        *,
        create_protocol: Callable[..., asyncio.Protocol],
        limiter: ConnectionLimiter,
        certificate: Certificate,
        server_state: Any,
        **options: Any,
    ):
        """
        Args:
            create_protocol: makes the protocol that follows; takes the other arguments, as
                uvicorn's protocols do.
        """
        self._limiter, self._certificate = limiter, certificate
        self._create_protocol = partial(
            create_protocol, server_state=server_state, **options
        )
        self._connections = server_state.connections
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        descriptor = transport.get_extra_info("socket").fileno()
        self._socket = socket.socket(fileno=os.dup(descriptor))
        cast(asyncio.Transport, transport).abort()
        self._connections.add(self)
        if self._limiter.has_room(len(self._connections)):
            self._limiter.mark_idle(self, new=True)
            self._task = asyncio.get_running_loop().create_task(self._shake_hands())
        else:  # there is no way to send an error before the handshake
            self._leave()
            self._socket.close()

    def make_room(self) -> None:
        """Close the connection, whose place another one needs."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    shutdown = make_room  # uvicorn calls it when the service stops

    def _leave(self) -> None:
        self._limiter.mark_active(self)
        self._connections.discard(self)

    async def _shake_hands(self) -> None:
        assert self._socket is not None
        self._socket.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._create_protocol,
                self._socket,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._limiter.head_seconds,
            )
        except OSError:  # no TLS, no version or cipher in common, too slow, or gone
            self._socket.close()
        finally:
            self._leave()
            self._socket = None


def _stamp(path: str) -> tuple[int, ...] | None:
    """A value that differs for a changed file; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
