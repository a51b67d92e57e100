"""The service on Ray Serve: `serve run service.ray:build`, or `deploy/ray.yaml`.

Each replica is the whole service, with a worker for each core that Ray gives it. What
it is told by Ray's proxy is ASGI: the connections, and so their limits, are Ray's.
"""

import asyncio
import logging
import secrets
from typing import Any

import ray
from pydantic import SecretStr
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import app, settings
from service.bulk import object_store
from service.bulk.object_store import Mirror
from service.pool import spawn
from service.settings import PREFIX, Settings, SettingsError
from service.telemetry import logs

log = logging.getLogger(__name__)

CORES = 2  # of a replica, unless more or fewer are asked for
STREAM_SECONDS = 60.0  # after which streams go on elsewhere: a drain waits for them
REQUESTS = 1_000  # of a replica at a time, besides its streams: it knows best
SLACK_SECONDS = 10.0
REQUEST_ID = b"x-request-id"
# Of the server in whose place Ray's proxy is.
APART = {
    *("host", "port", "tls_certificate", "tls_key", "max_connections"),
    *("header_seconds", "body_seconds", "keep_alive_seconds"),
    *("max_header_bytes", "max_headers", "drain_seconds"),
}


class Unrolled:
    """A replica."""

    def __init__(self, given: Settings, source: str = ""):
        """
        Args:
            source: where the bundles are, if not in a folder: `s3://...`.
        """
        self._mirror = None
        logs.setup(given.log_format, given.log_level)
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        changes: dict[str, Any] = {"workers": given.workers or max(1, int(cores))}
        if "bundles" not in given.model_fields_set:
            changes["bundles"] = settings.SHIPPED  # as they lie on this node
        if source:
            self._mirror = Mirror(source)
            try:
                self._mirror.start(given.reload_seconds)
            except BaseException:
                self._mirror.close()
                raise
            changes["bundles"] = self._mirror.folder
        self._settings = given.model_copy(update=changes)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray asks for it when this has been made."""
        spawn.prepare()
        self._service = service = app.create_app(self._settings)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            async def tell(message: Message) -> None:
                if message["type"] == "http.response.start":  # Ray's proxy adds it
                    given = message["headers"]
                    message["headers"] = [h for h in given if h[0] != REQUEST_ID]
                await send(message)

            await service(scope, receive, tell)

        return answer

    async def check_health(self) -> None:
        """Ray asks now and then, and before it sends the first request.

        Raises:
            RuntimeError: it must be replaced; with the reasons.
        """
        registry = self._service.registry
        while not (registry.complete or registry.failed):
            await asyncio.sleep(0.05)
        if not registry.ready:
            raise RuntimeError("; ".join(registry.not_ready_reasons()))
        if not registry.alive:
            raise RuntimeError("no worker lives")

    def __del__(self) -> None:
        if self._mirror is not None:
            self._mirror.close()


def build(args: dict[str, Any]) -> Application:
    """The application of a `serve` configuration.

    Args:
        args: settings, by their names: `workers: 4`. Others are read from the
            environment, as ever.

    Raises:
        SettingsError: one is unknown, out of bounds, or Ray's affair.
    """
    args = {name.lower(): value for name, value in args.items()}
    apart = ", ".join(sorted(APART & args.keys()))
    if apart:
        raise SettingsError(f"{apart}: of Ray's proxy; see http_options")
    source = str(args.get("bundles") or object_store.setting())
    if object_store.elsewhere(source):
        args["bundles"] = settings.SHIPPED  # in the place of what is no path
    else:
        source = ""
    given = settings.load(**args)
    changes: dict[str, Any] = {}
    if "stream_seconds" not in given.model_fields_set:
        changes["stream_seconds"] = STREAM_SECONDS
    if not given.state_key.get_secret_value():
        told = "%sSTATE_KEY is not set: no state token outlives this deployment"
        log.warning(told, PREFIX)
        changes["state_key"] = SecretStr(secrets.token_hex(32))  # for all replicas
    given = given.model_copy(update=changes)
    ends = given.stream_seconds or given.stream_idle_seconds
    deployment = serve.deployment(serve.ingress()(Unrolled))
    return deployment.options(
        name="unrolled",
        ray_actor_options={"num_cpus": given.workers or CORES},
        max_ongoing_requests=given.max_streams + REQUESTS,
        max_queued_requests=REQUESTS,
        graceful_shutdown_timeout_s=max(ends, given.request_seconds) + SLACK_SECONDS,
    ).bind(given, source)
