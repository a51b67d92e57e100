"""OpenTelemetry traces: a span for each request, with child spans for its stages.

Configured by the standard variables (https://opentelemetry.io/docs/specs/otel/
configuration/sdk-environment-variables/), and off unless one of them names an endpoint.
Attributes follow the semantic conventions for HTTP.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from starlette.types import Scope

from model.bundle.metadata import Metadata
from service.settings import SettingsError
from service.telemetry import server_timing

INSTALL = "needs the extra `otel`: pip install 'WHEEL[otel]'"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SUPPORTED_PROTOCOL = "http/protobuf"
SHUTDOWN_SECONDS = 2.0  # to send the last spans when the service stops
CONTEXT_HEADERS = frozenset({b"traceparent", b"tracestate"})  # the W3C's Trace Context


class InferenceSummary(NamedTuple):
    """The computation of a request, and its times. Durations are in seconds; points in time
    are of `time.perf_counter`."""

    metadata: Metadata
    sequences: int
    steps: int
    rows: int  # of the engine call that computed the last step
    read: float  # duration, until it was submitted
    submitted: float
    started: float  # the first engine call
    ended: float  # the last engine call
    write: float  # duration of encoding the response


class Traces:
    """Records spans, and sends them from a thread of their own."""

    @classmethod
    def from_environment(cls, version: str) -> Self | None:
        """Traces as the variables say, or None if they are off.

        Raises:
            SettingsError: as `Traces`.
        """
        variable = os.environ.get
        if variable("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        exporter = variable("OTEL_TRACES_EXPORTER", "").strip().lower()
        endpoint = any(map(variable, ENDPOINTS))
        enabled = exporter == "otlp" or (not exporter and endpoint)
        return cls(version) if enabled else None

    def __init__(self, version: str):
        """
        Raises:
            SettingsError: the packages are missing, or the protocol is not supported.
        """
        for name in PROTOCOLS:
            protocol = os.environ.get(name, SUPPORTED_PROTOCOL).strip()
            if protocol not in ("", SUPPORTED_PROTOCOL):
                raise SettingsError(
                    f"{name}: must be {SUPPORTED_PROTOCOL}, not {protocol}"
                )
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
                OTLPSpanExporter,
            )
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import (
                TraceContextTextMapPropagator,
            )
        except ModuleNotFoundError as error:
            raise SettingsError(f"OTEL_*: {error.name} is missing: {INSTALL}") from None
        # Its warnings repeat the headers of a caller, even of one without a valid key.
        logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
        resource = Resource.create({"service.version": version})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "unrolled"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("unrolled", version)
        self._propagator = TraceContextTextMapPropagator()
        self._server, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def record(
        self,
        scope: Scope,
        route: str,
        status: int,
        started: float,
        inference: InferenceSummary | None,
    ) -> dict[str, str]:
        """Record the span of a request that has just ended.

        Args:
            started: of `time.perf_counter`.

        Returns:
            The ids of its trace and its span, for the log.
        """
        # Converts to wall-clock time, which spans have.
        epoch = time.time_ns() - int(1e9 * time.perf_counter())

        def wall_clock(seconds: float) -> int:
            return epoch + int(1e9 * seconds)

        attributes = _attributes(scope, route, status)
        if inference is not None:
            metadata = inference.metadata
            attributes |= {
                "unrolled.model.name": metadata.name,
                "unrolled.model.version": metadata.version,
                "unrolled.sequences": inference.sequences,
                "unrolled.steps": inference.steps,
                "unrolled.batch.size": inference.rows,
            }
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in CONTEXT_HEADERS
        }
        span = self._tracer.start_span(
            f"{scope.get('method', 'GET')} {route}",
            self._propagator.extract(carrier),
            self._server,
            attributes,
            start_time=wall_clock(started),
        )
        context = span.get_span_context()
        if span.is_recording():
            if inference is not None:
                self._add_stages(span, inference, wall_clock)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(self._failed)
        span.end(wall_clock(time.perf_counter()))
        return {
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
        }

    def _add_stages(
        self,
        span: Any,
        inference: InferenceSummary,
        wall_clock: Callable[[float], int],
    ) -> None:
        """Add the stages of `Server-Timing` as child spans."""
        from opentelemetry.trace import set_span_in_context

        parent = set_span_in_context(span)
        now = time.perf_counter()
        times = (
            (inference.submitted - inference.read, inference.submitted),
            (inference.submitted, inference.started),
            (inference.started, inference.ended),
            (now - inference.write, now),
        )
        for name, (started, ended) in zip(server_timing.STAGES, times, strict=True):
            start_time = wall_clock(started)
            stage = self._tracer.start_span(name, parent, start_time=start_time)
            stage.end(wall_clock(ended))

    def close(self) -> None:
        """Send the last spans, within a short time. Not on the event loop."""
        # Without a collector the exporter takes its own time; nothing waits for that.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(SHUTDOWN_SECONDS)


def _attributes(scope: Scope, route: str, status: int) -> dict[str, Any]:
    """OpenTelemetry's semantic conventions for an HTTP server."""
    websocket = scope["type"] == "websocket"
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    attributes: dict[str, Any] = {
        "http.request.method": "GET" if websocket else scope["method"],
        "http.response.status_code": status,
        "http.route": route,
        "url.scheme": scheme,
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if scope.get("server"):
        attributes["server.address"], attributes["server.port"] = scope["server"]
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    return attributes
