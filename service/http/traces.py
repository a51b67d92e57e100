"""OpenTelemetry traces: a span of each request, with what it spent its time on.

Configured by the standard variables (https://opentelemetry.io/docs/specs/otel/
configuration/sdk-environment-variables/); off unless one of them names where spans go.
Attributes follow the semantic conventions of HTTP.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from starlette.types import Scope

from service.callers.caller import Caller, InferenceSummary
from service.settings import SettingsError

EXTRA = "needs the extra: pip install unrolled[otel]"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"
END_SECONDS = 2.0  # for the last spans to be sent, when the service stops
CARRIED = frozenset({b"traceparent", b"tracestate"})  # of the W3C's Trace Context


class Traces:
    """Makes the spans, and sends them from a thread of its own."""

    @classmethod
    def from_environment(cls, version: str) -> Self | None:
        """Returns what makes spans; None where the variables don't say that they are to
        be sent.

        Raises:
            SettingsError: as `Traces`.
        """
        given = os.environ.get
        if given("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return None
        exporter = given("OTEL_TRACES_EXPORTER", "").strip().lower()
        wanted = exporter == "otlp" or (not exporter and any(map(given, ENDPOINTS)))
        return cls(version) if wanted else None

    def __init__(self, version: str):
        """
        Raises:
            SettingsError: the packages are missing, or another protocol is asked for.
        """
        for name in PROTOCOLS:
            protocol = os.environ.get(name, SPOKEN).strip()
            if protocol not in ("", SPOKEN):
                raise SettingsError(f"{name}: only {SPOKEN} is spoken, not {protocol}")
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
            raise SettingsError(f"OTEL_*: {error.name} is missing: {EXTRA}") from None
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
        begun: float,
    ) -> dict[str, str]:
        """Makes the span of a request that has just ended.

        Args:
            begun: when it did, of `time.perf_counter`.

        Returns:
            The ids of its trace and its span, as log lines have them.
        """
        # Of the wall clock; all else is told by the other.
        epoch = time.time_ns() - int(1e9 * time.perf_counter())

        def at(seconds: float) -> int:
            return epoch + int(1e9 * seconds)

        attributes = _attributes(scope, route, status)
        caller: Caller | None = scope["state"].get("caller")
        inference = caller.inference if caller is not None else None
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
            if name in CARRIED
        }
        span = self._tracer.start_span(
            f"{scope.get('method', 'GET')} {route}",
            self._propagator.extract(carrier),
            self._server,
            attributes,
            start_time=at(begun),
        )
        context = span.get_span_context()
        if span.is_recording():
            if inference is not None:
                self._add_stages(span, inference, at)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(self._failed)
        span.end(at(time.perf_counter()))
        return {
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
        }

    def _add_stages(
        self, span: Any, inference: InferenceSummary, at: Callable[[float], int]
    ) -> None:
        """The times of `Server-Timing`, as spans within the request's."""
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(span)
        now = time.perf_counter()
        for name, begun, ended in (
            ("parse", inference.submitted - inference.read, inference.submitted),
            ("queue", inference.submitted, inference.started),
            ("infer", inference.started, inference.ended),
            ("serialize", now - inference.write, now),
        ):
            stage = self._tracer.start_span(name, within, start_time=at(begun))
            stage.end(at(ended))

    def close(self) -> None:
        """Send what is left, for a short time; not on the event loop."""
        # Where nobody listens the exporter takes its own time; nothing waits for it.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(END_SECONDS)


def _attributes(scope: Scope, route: str, status: int) -> dict[str, Any]:
    """By OpenTelemetry's semantic conventions of an HTTP server."""
    websocket = scope["type"] == "websocket"
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    found: dict[str, Any] = {
        "http.request.method": "GET" if websocket else scope["method"],
        "http.response.status_code": status,
        "http.route": route,
        "url.scheme": scheme,
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if scope.get("server"):
        found["server.address"], found["server.port"] = scope["server"]
    if scope.get("client"):
        found["client.address"] = scope["client"][0]
    return found
