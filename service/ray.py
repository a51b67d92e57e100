"""The service as a Ray Serve application: `serve run service.ray:build`.

Each replica is the whole service, with a worker for each core that Ray assigns. Ray's
proxy owns the connections and their limits, and calls the replica by ASGI.
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

CORES = 2  # of a replica, unless `workers` is set
STREAM_SECONDS = 60.0  # default: streams reconnect, since a drain waits for them
REQUESTS = 1_000  # at a time per replica, besides streams: it sheds load itself
SLACK_SECONDS = 10.0
REQUEST_ID = b"x-request-id"
# Settings of our own HTTP server, which Ray's proxy replaces.
SERVER_SETTINGS = {
    *("host", "port", "tls_certificate", "tls_key", "max_connections"),
    *("header_seconds", "body_seconds", "keep_alive_seconds"),
    *("max_header_bytes", "max_headers", "drain_seconds"),
}


class Unrolled:
    """A replica of the service."""

    def __init__(self, replica_settings: Settings, source: str = ""):
        """
        Args:
            source: URI of the bundles, such as `s3://...`; "" if they are in a folder.
        """
        self._mirror = None
        logs.setup(replica_settings.log_format, replica_settings.log_level)
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        workers = replica_settings.workers or max(1, int(cores))
        changes: dict[str, Any] = {"workers": workers}
        if source:
            self._mirror = Mirror(source)
            try:
                self._mirror.start(replica_settings.reload_seconds)
            except BaseException:
                self._mirror.close()
                raise
            changes["bundles"] = str(self._mirror.folder)
        self._settings = replica_settings.model_copy(update=changes)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the ASGI app; Ray calls this after `__init__`."""
        spawn.prepare()
        self._service = service = app.create_app(self._settings)

        async def without_request_id(
            scope: Scope, receive: Receive, send: Send
        ) -> None:
            async def send_filtered(message: Message) -> None:
                if message["type"] == "http.response.start":  # Ray's proxy adds one
                    headers = message["headers"]
                    message["headers"] = [h for h in headers if h[0] != REQUEST_ID]
                await send(message)

            await service(scope, receive, send_filtered)

        return without_request_id

    async def check_health(self) -> None:
        """Check the replica; Ray calls this periodically, and before the first request.

        Raises:
            RuntimeError: the replica must be replaced; the message has the reasons.
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
    """Build the Ray Serve application of a `serve` configuration.

    Args:
        args: settings by name, such as `workers: 4`; all others are read from the
            environment.

    Raises:
        SettingsError: a setting is unknown, out of bounds, or one of Ray's proxy.
    """
    args = {name.lower(): value for name, value in args.items()}
    refused = ", ".join(sorted(SERVER_SETTINGS & args.keys()))
    if refused:
        raise SettingsError(f"{refused}: set by Ray's proxy; see http_options")
    source = str(args.get("bundles") or object_store.from_environment())
    if object_store.is_remote(source):
        args["bundles"] = ""  # a URI is not a path
    else:
        source = ""
    loaded = settings.load(**args)
    changes: dict[str, Any] = {}
    if "stream_seconds" not in loaded.model_fields_set:
        changes["stream_seconds"] = STREAM_SECONDS
    if not loaded.state_key.get_secret_value():
        warning = "%sSTATE_KEY is not set: no state token outlives this deployment"
        log.warning(warning, PREFIX)
        changes["state_key"] = SecretStr(secrets.token_hex(32))  # for all replicas
    loaded = loaded.model_copy(update=changes)
    stream_end = loaded.stream_seconds or loaded.stream_idle_seconds
    deployment = serve.deployment(serve.ingress()(Unrolled))
    return deployment.options(
        name="unrolled",
        ray_actor_options={"num_cpus": loaded.workers or CORES},
        max_ongoing_requests=loaded.max_streams + REQUESTS,
        max_queued_requests=REQUESTS,
        graceful_shutdown_timeout_s=max(stream_end, loaded.request_seconds)
        + SLACK_SECONDS,
    ).bind(loaded, source)
