"""Traces: the spans of requests, as a collector receives them over OTLP."""

import http.server
import json
import logging
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from websockets.sync.client import connect

from service.settings import Settings, SettingsError
from service.telemetry.traces import Traces
from tests.support.bundles import OnnxEngine
from tests.support.servers import running, wait

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAGES = ["parse", "queue", "infer", "serialize"]
BODY = {"sequences": [[[1, 2, 3]] * 4, [[1, 2, 3]] * 2]}
TENSOR = {"name": "frames", "shape": [1, 2, 3], "datatype": "FP32", "data": [0.5] * 6}


class Collector:
    """Receives spans over HTTP, like OpenTelemetry's collector."""

    def __init__(self):
        self.spans, self.resources = [], []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers["content-length"])
                request = ExportTraceServiceRequest.FromString(self.rfile.read(size))
                for spans in request.resource_spans:
                    collector.resources.append(_attributes(spans.resource))
                    for scope in spans.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def listening(self):
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def wait_for(self, name):
        """The only span of this name, and its children in order of time."""
        wait(lambda: any(span.name == name for span in self.spans), f"{name} comes")
        (parent,) = [span for span in self.spans if span.name == name]
        children = [s for s in self.spans if s.parent_span_id == parent.span_id]
        return parent, sorted(children, key=lambda span: span.start_time_unix_nano)


def _attributes(span):
    values = ((pair.key, pair.value) for pair in span.attributes)
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values}


@pytest.fixture(scope="module")
def collector():
    with Collector().listening() as listening:
        yield listening


@pytest.fixture(scope="module")
def traced(bundles, collector):
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
            settings = Settings(port=0, bundles=bundles, default_label="tags")
            service = stack.enter_context(running(settings, load_engine=OnnxEngine))
        yield service


def test_invalid_state(traced, caplog):
    """An invalid `tracestate` is answered like none, and no line of the log repeats it."""
    headers = {"traceparent": PARENT, "tracestate": "secret=a,secret=b,SECRET"}
    with caplog.at_level(logging.INFO):
        assert traced.http.get("/models", headers=headers).is_success
    assert caplog.records
    assert "secret" not in caplog.text.lower()


def test_classify(traced, collector, caplog):
    """A request's span is a child of its client's; it has the model, the size, and child
    spans of its stages. The log line has its ids."""
    before = time.time_ns()
    with caplog.at_level(logging.INFO, "service.request"):
        response = traced.http.post(
            "/classify", json=BODY, headers={"traceparent": PARENT, "tracestate": "a=b"}
        )
    assert response.status_code == 200
    span, stages = collector.wait_for("POST /classify")
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]
    assert span.trace_state == "a=b"
    assert span.kind == span.SPAN_KIND_SERVER
    assert before <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert span.end_time_unix_nano <= time.time_ns()
    expected = {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "url.path": "/classify",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.port": httpx.URL(traced.url).port,
        "client.address": "127.0.0.1",
        "unrolled.model.name": "walks",
        "unrolled.model.version": "1",
        "unrolled.sequences": 2,
        "unrolled.steps": 6,
    }
    attributes = _attributes(span)
    assert expected.items() <= attributes.items()
    assert attributes["unrolled.batch.size"] in (1, 2)
    assert [stage.name for stage in stages] == STAGES
    timing = dict(
        p.split(";dur=") for p in response.headers["server-timing"].split(", ")
    )
    for stage in stages:
        assert span.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.end_time_unix_nano <= span.end_time_unix_nano
        duration = (stage.end_time_unix_nano - stage.start_time_unix_nano) / 1e6
        assert duration == pytest.approx(float(timing[stage.name]), abs=0.01)
    record = caplog.records[-1]
    assert (record.trace_id, record.span_id) == (
        span.trace_id.hex(),
        span.span_id.hex(),
    )
    resource = collector.resources[0]
    assert resource["service.name"] == "unrolled"
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize(
    ("path", "route", "body"),
    [
        (
            "/v2/models/walks/versions/1/infer",
            "/v2/models/{model}/infer",
            {"inputs": [TENSOR]},
        ),
        (
            "/v1/models/walks:predict",
            "/v1/models/{model}:predict",
            {"instances": [{"frames": [[1, 2, 3]]}]},
        ),
    ],
)
def test_other_protocols(traced, collector, path, route, body):
    """So are requests of other servers' protocols; without a parent here."""
    response = traced.http.post(path, json=body)
    assert response.status_code == 200, response.text
    span, stages = collector.wait_for(f"POST {route}")
    assert not span.parent_span_id
    assert _attributes(span)["url.path"] == path
    assert [stage.name for stage in stages] == STAGES


def test_stream(traced, collector):
    """A WebSocket is one span, as long as it is open."""
    with connect(f"{traced.url.replace('http', 'ws')}/stream?model=walks") as stream:
        stream.send(json.dumps({"frames": [[1, 2, 3]]}))
        stream.recv()
    span, _ = collector.wait_for("GET /stream")
    assert _attributes(span)["http.response.status_code"] == 101


def test_refused(traced, collector):
    """An error has a span, which is marked as failed for 5xx. Probes have none."""
    for path in ("/livez", "/readyz", "/metrics"):
        assert traced.http.get(path).status_code == 200
    assert traced.http.post("/label", json={}).status_code == 422
    headers = {"X-Request-Timeout-Ms": "1"}
    steps = {"sequences": [[[1, 2, 3]] * 9_000] * 20, "model": "both"}
    traced.http.post("/label", json=steps, headers=headers)

    def by_status():
        return {
            _attributes(span)["http.response.status_code"]: span
            for span in collector.spans
            if span.name == "POST /label"
        }

    wait(lambda: {422, 504} <= by_status().keys(), "both come")
    spans = by_status()
    assert spans[422].status.code == 0
    assert spans[504].status.code == 2
    assert _attributes(spans[504])["error.type"] == "504"
    names = [span.name for span in collector.spans]
    assert not any("livez" in name or "readyz" in name for name in names)


@pytest.mark.slow
def test_no_collector(bundles, monkeypatch):
    """Without a collector requests are answered, and a stop does not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with running(Settings(port=0, bundles=bundles / "walks")) as service:
            assert service.http.post("/classify", json=BODY).status_code == 200
            service.server.stop()
            begun = time.monotonic()
        assert time.monotonic() - begun < 6  # the exporter would take 10


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a"},
    ],
)
def test_off(monkeypatch, variables):
    """Traces are off unless the standard variables name an endpoint."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Traces.from_environment("1") is None


def test_not_supported(monkeypatch):
    """An unsupported protocol, or a missing package, is an error at the start."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with monkeypatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL.*grpc"):
            Traces.from_environment("1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(SettingsError, match=r"WHEEL\[otel\]"):
        Traces.from_environment("1")
