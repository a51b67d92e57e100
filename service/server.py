"""uvicorn, told how to stop."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from service import os_resources
from service.app import Service
from service.http.connection import Connection
from service.http.limits import ConnectionLimiter
from service.http.tls import Certificate, Handshake
from service.http.websocket import WebSocket
from service.settings import Settings

log = logging.getLogger(__name__)

STREAM_SECONDS = 2.0  # for streams to end
SPARE_FILES = 200  # descriptors for all that is no connection
KEPT_FILES = 24  # of these, for what is opened later: bundles, workers, new connections
ACCEPT_SOCKETS = 16


class Server(uvicorn.Server):
    """A server whose clean stop ends with exit code 0.

    uvicorn raises the signal again when it is done, so that a stop that was asked
    for looks like a crash (exit code 143) to whoever started the process.
    """

    def __init__(
        self,
        app: Service,
        config: uvicorn.Config,
        limiter: ConnectionLimiter,
        settings: Settings,
        certificate: Certificate | None = None,
    ):
        """
        Args:
            certificate: with which TLS is spoken; None: it isn't.
        """
        super().__init__(config)
        self._app, self._limiter, self._certificate = app, limiter, certificate
        self._drain_seconds = settings.drain_seconds
        self._reload_seconds = settings.reload_seconds
        self._told = self._at_once = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told:  # twice: wait for nothing and nobody
            logging.shutdown()
            os._exit(1)
        self._told = True
        # Who types Ctrl-C is no orchestrator that still sends requests.
        self._at_once = sig == signal.SIGINT or not self.started
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # A worker in the midst of a tick is not interrupted for each request that
        # comes: its caches cost more than the moment that the request waits.
        with contextlib.suppress(OSError, AttributeError):  # not on this system
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os_resources.configure_allocator()
        _allow_files(self._limiter.limit + SPARE_FILES)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with so many doors to the same queue of connections.

        libuv takes one connection in each turn of the loop. Under overload a turn
        takes long, and the queue would overflow: clients, and probes, would wait for
        their first packet's second try.
        """
        self.config.ssl = None  # handshakes are ours; see `Handshake`
        if self._certificate is not None and self._reload_seconds:
            self._refreshing = asyncio.create_task(self._refresh(self._certificate))
        await super().startup(sockets)
        config, loop = self.config, asyncio.get_running_loop()
        protocol = partial(
            config.http_protocol_class,  # type: ignore[call-arg]
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for door in [sock for one in self.servers for sock in one.sockets]:
            for _ in range(ACCEPT_SOCKETS - 1):
                same = socket.socket(fileno=os.dup(door.fileno()))
                server = await loop.create_server(
                    protocol, sock=same, backlog=config.backlog
                )
                self.servers.append(server)
        left = _files_left() - KEPT_FILES
        if left < self._limiter.limit:
            self._limiter.limit = max(1, int(left))
            told = (
                "the limit of open files allows %d connections, fewer than the setting"
            )
            log.warning(told, self._limiter.limit)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ready = self._app.registry.ready
        self._app.stopping()  # /readyz says so
        self._limiter.draining = True  # who asks again does so elsewhere
        at_once = self._at_once or not ready
        until = time.monotonic() + (0 if at_once else self._drain_seconds)
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
        # While the port is open: callers of streams are told before they are cut off.
        await self._app.drain(STREAM_SECONDS)
        await super().shutdown(sockets)

    async def _refresh(self, certificate: Certificate) -> None:
        """Look at the certificate's files now and then."""
        while True:
            await asyncio.sleep(self._reload_seconds)
            await asyncio.to_thread(certificate.refresh)

    def stop(self) -> None:
        """Stop, and serve no longer until then."""
        self._at_once = self.should_exit = True


def _allow_files(wanted: int) -> None:
    """Allow so many open descriptors, which shells often limit to 1,024."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on this system
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _files_left() -> float:
    """Returns how many more descriptors may be opened; infinite where none knows."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return soft - len(os.listdir("/proc/self/fd"))
    return math.inf


def create_server(app: Service, settings: Settings) -> Server:
    """A server of the app; nothing runs yet."""
    limiter = ConnectionLimiter(settings, app.metrics, app.shed, app.budget)
    http: Callable[..., asyncio.Protocol] = partial(Connection, limiter=limiter)
    certificate = None
    if settings.tls_certificate:
        certificate = Certificate(settings.tls_certificate, settings.tls_key)
        http = partial(Handshake, make=http, limiter=limiter, certificate=certificate)
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
            http=http,  # type: ignore[arg-type]
            ws=WebSocket,
            ws_max_size=settings.stream_message_bytes,
            # Costs more time than messages take, and memory for each stream.
            ws_per_message_deflate=False,
            ssl_certfile=settings.tls_certificate or None,
            ssl_keyfile=settings.tls_key or None,
            timeout_keep_alive=settings.keep_alive_seconds,
        ),
        limiter,
        settings,
        certificate,
    )
