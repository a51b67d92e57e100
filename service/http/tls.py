"""TLS: handshakes that count as connections, and certificates that are read again."""

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
    """A certificate and its key, as their files have them.

    New connections get the newest one that can be read.
    """

    def __init__(self, chain: str, key: str):
        """
        Raises:
            ValueError: the files can't be read, or don't belong together.
        """
        self._files = chain, key
        self._stamp = self._stamped()
        self.context = values.tls_context(chain, key)

    def refresh(self) -> None:
        """Read the files again if they have changed; not on the event loop. What can't
        be read changes nothing, and is logged once."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.context = values.tls_context(*self._files)
        except ValueError as error:
            log.error("the new TLS certificate can't be used: %s", error)
        else:
            log.info("the TLS certificate was read again")

    def _stamped(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in self._files]


class Handshake(asyncio.Protocol):
    """A connection until its handshake is done; then another protocol's.

    An event loop that listens with a certificate shows connections only after that, so
    that half handshakes would count nowhere. So it listens without, and is given each
    socket again, with the certificate.
    """

    def __init__(
        self,
        *,
        make: Callable[..., asyncio.Protocol],
        limiter: ConnectionLimiter,
        certificate: Certificate,
        server_state: Any,
        **named: Any,
    ):
        """
        Args:
            make: takes the rest, as uvicorn's protocols do.
        """
        self._limiter, self._certificate = limiter, certificate
        self._make = partial(make, server_state=server_state, **named)
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
        else:  # nothing can be told before the handshake
            self._leave()
            self._socket.close()

    def make_room(self) -> None:
        """Close the connection: another needs its place."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    shutdown = make_room  # uvicorn's, when the service stops

    def _leave(self) -> None:
        self._limiter.mark_active(self)
        self._connections.discard(self)

    async def _shake_hands(self) -> None:
        assert self._socket is not None
        self._socket.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                self._socket,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._limiter.head_seconds,
            )
        except OSError:  # no TLS, none that both speak, too slow, or gone
            self._socket.close()
        finally:
            self._leave()
            self._socket = None


def _stamp(path: str) -> tuple[int, ...] | None:
    """Tells a file from the one that was there before; None where there is none."""
    try:
        told = os.stat(path)
    except OSError:
        return None
    return told.st_ino, told.st_mtime_ns, told.st_size
