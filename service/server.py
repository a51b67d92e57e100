"""The HTTP server: uvicorn, with our connections, TLS, and a graceful shutdown."""

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
from service.cli import address
from service.http.connection import Connection
from service.http.limits import ConnectionLimiter
from service.http.tls import Certificate, Handshake
from service.http.websocket import WebSocket
from service.settings import PREFIX, Settings, SettingsError

log = logging.getLogger(__name__)

STREAM_SECONDS = 2.0  # for open streams to end
OTHER_FILES = 200  # descriptors for everything but connections
RESERVED_FILES = 24  # of these, for later: bundles, workers, new connections
ACCEPT_SOCKETS = 16
# Without so many the service could not start, or replace a worker.
FILES, FILES_PER_WORKER = 64, 10


class Server(uvicorn.Server):
    """A server that exits with code 0 after a graceful shutdown.

    uvicorn raises the signal again at its end, so that a requested shutdown looks like a
    crash (exit code 143) to whatever started the process.
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
            certificate: for TLS; None: plain HTTP.
        """
        super().__init__(config)
        self._app, self._limiter, self._certificate = app, limiter, certificate
        self._settings = settings
        self._signalled = self._skip_draining = self._announced = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled:  # a second signal: exit at once
            logging.shutdown()
            os._exit(1)
        self._signalled = True
        # Ctrl-C comes from a person, not from an orchestrator that still sends requests.
        self._skip_draining = sig == signal.SIGINT or not self.started
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # Keeps the kernel from interrupting a worker's batch for every request: a cold
        # CPU cache costs more than the moment that the request waits.
        with contextlib.suppress(OSError, AttributeError):  # not on this system
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os_resources.configure_allocator()
        _raise_file_limit(self._limiter.limit + OTHER_FILES)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on several sockets that share one queue of connections.

        libuv accepts one connection per socket in each turn of the event loop. Under
        overload a turn takes long, and the queue would overflow: clients and probes would
        have to wait until they retransmit their first packet.
        """
        self.config.ssl = None  # see `Handshake`
        if self._certificate is not None and self._settings.reload_seconds:
            self._refreshing = asyncio.create_task(self._refresh(self._certificate))
        await super().startup(sockets)
        config, loop = self.config, asyncio.get_running_loop()
        protocol = partial(
            config.http_protocol_class,  # type: ignore[call-arg]
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for listener in [sock for server in self.servers for sock in server.sockets]:
            for _ in range(ACCEPT_SOCKETS - 1):
                duplicate = socket.socket(fileno=os.dup(listener.fileno()))
                server = await loop.create_server(
                    protocol, sock=duplicate, backlog=config.backlog
                )
                self.servers.append(server)
        left = _files_left() - RESERVED_FILES
        if left < self._limiter.limit:
            self._limiter.limit = max(1, int(left))
            log.warning(
                "the limit of open files allows only %d connections, fewer than the setting",
                self._limiter.limit,
            )

    async def on_tick(self, counter: int) -> bool:
        """Say where the service is, once it is ready."""
        if not self._announced and self._app.registry.ready:
            self._announced = True
            log.info("serving on %s", self._url())
        return await super().on_tick(counter)

    def _url(self) -> str:
        """The address for a client on this machine."""
        port = self.servers[0].sockets[0].getsockname()[1]
        certificate = str(self._settings.tls_certificate or "")
        names = {"HOST": self._settings.host, "PORT": str(port)}
        names["TLS_CERTIFICATE"] = certificate
        return address.default_url({f"{PREFIX}{k}": v for k, v in names.items()})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, end the streams, and close the connections."""
        ready = self._app.registry.ready
        self._app.registry.drain()  # /readyz fails from now on
        self._limiter.draining = True  # clients reconnect, elsewhere
        draining = ready and not self._skip_draining
        deadline = time.monotonic() + (self._settings.drain_seconds if draining else 0)
        while time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        # While the port is open: streams get their last line before they are closed.
        await self._app.streams.stop(STREAM_SECONDS)
        await super().shutdown(sockets)

    async def _refresh(self, certificate: Certificate) -> None:
        """Reload the certificate when its files change."""
        while True:
            await asyncio.sleep(self._settings.reload_seconds)
            await asyncio.to_thread(certificate.refresh)

    def stop(self) -> None:
        """Shut down without draining."""
        self._skip_draining = self.should_exit = True


def _raise_file_limit(files: int) -> None:
    """Allow so many open descriptors. Shells often limit them to 1,024."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on this system
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = files if hard == resource.RLIM_INFINITY else min(files, hard)
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _files_left() -> float:
    """How many more descriptors may be opened; infinite if it is unknown."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return soft - len(os.listdir("/proc/self/fd"))
    return math.inf


def check_file_limit(settings: Settings) -> None:
    """Check that enough files may be open to start.

    Raises:
        SettingsError: the system's limit is too low.
    """
    workers = settings.workers or os_resources.available_cores()
    needed, allowed = (
        FILES + FILES_PER_WORKER * workers,
        os_resources.open_files_allowed(),
    )
    if allowed < needed:
        raise SettingsError(
            f"the system allows {allowed:.0f} open files, and the service needs {needed}:"
            " raise the limit (ulimit -n)"
        )


def create_server(app: Service, settings: Settings) -> Server:
    """A server for the app, which does not run yet."""
    shed = app.shedder.refuse
    limiter = ConnectionLimiter(settings, app.metrics, shed, app.budget)
    http: Callable[..., asyncio.Protocol] = partial(Connection, limiter=limiter)
    certificate = None
    if settings.tls_certificate:
        certificate = Certificate(settings.tls_certificate, settings.tls_key)
        http = partial(
            Handshake, create_protocol=http, limiter=limiter, certificate=certificate
        )
    return Server(
        app,
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here depends on the client's address
            timeout_graceful_shutdown=settings.grace_seconds,
            interface="asgi3",
            http=http,  # type: ignore[arg-type]
            ws=WebSocket,
            ws_max_size=settings.stream_message_bytes,
            # Compression takes more time than the messages, and memory for each stream.
            ws_per_message_deflate=False,
            ssl_certfile=settings.tls_certificate or None,
            ssl_keyfile=settings.tls_key or None,
            timeout_keep_alive=settings.keep_alive_seconds,
        ),
        limiter,
        settings,
        certificate,
    )
