"""Traces: spans of requests, as a collector gets them over OTLP."""

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
from tests.support.servers import running, wait

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAGES = ["parse", "queue", "infer", "serialize"]
BODY = {"sequences": [[[1, 2, 3]] * 4, [[1, 2, 3]] * 2]}
TENSOR = {"name": "frames", "shape": [1, 2, 3], "datatype": "FP32", "data": [0.5] * 6}


class Collector:
    """Takes spans over HTTP, as OpenTelemetry's collector does."""

    def __init__(self):
        self.spans, self.resources = [], []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers["content-length"])
                told = ExportTraceServiceRequest.FromString(self.rfile.read(size))
                for one in told.resource_spans:
                    collector.resources.append(_attributes(one.resource))
                    for scope in one.scope_spans:
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

    def taken(self, name):
        """The one span of that name, and its children by their begin."""
        wait(lambda: any(one.name == name for one in self.spans), f"{name} comes")
        (found,) = [one for one in self.spans if one.name == name]
        own = [one for one in self.spans if one.parent_span_id == found.span_id]
        return found, sorted(own, key=lambda one: one.start_time_unix_nano)


def _attributes(of):
    values = ((one.key, one.value) for one in of.attributes)
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values}


@pytest.fixture(scope="module")
def collector():
    with Collector().listening() as made:
        yield made


@pytest.fixture(scope="module")
def traced(bundles, collector):
    with ExitStack() as served:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
            settings = Settings(port=0, bundles=bundles, default_label="tags")
            made = served.enter_context(running(settings))
        yield made


def test_classify(traced, collector, caplog):
    """A request is a child of its caller's span, says what was asked and what answered,
    and where its time went; its log line has the ids."""
    before = time.time_ns()
    with caplog.at_level(logging.INFO, "service.request"):
        told = traced.http.post(
            "/classify", json=BODY, headers={"traceparent": PARENT, "tracestate": "a=b"}
        )
    assert told.status_code == 200
    span, stages = collector.taken("POST /classify")
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
    assert [one.name for one in stages] == STAGES
    timing = dict(p.split(";dur=") for p in told.headers["server-timing"].split(", "))
    for one in stages:
        assert span.start_time_unix_nano <= one.start_time_unix_nano
        assert one.end_time_unix_nano <= span.end_time_unix_nano
        spent = (one.end_time_unix_nano - one.start_time_unix_nano) / 1e6
        assert spent == pytest.approx(float(timing[one.name]), abs=0.01)
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
def test_dialects(traced, collector, path, route, body):
    """So are requests of other servers' clients, without a caller's span."""
    told = traced.http.post(path, json=body)
    assert told.status_code == 200, told.text
    span, stages = collector.taken(f"POST {route}")
    assert not span.parent_span_id
    assert _attributes(span)["url.path"] == path
    assert [one.name for one in stages] == STAGES


def test_stream(traced, collector):
    """A WebSocket is one span, as long as it is open."""
    with connect(f"{traced.url.replace('http', 'ws')}/stream?model=walks") as stream:
        stream.send(json.dumps({"frames": [[1, 2, 3]]}))
        stream.recv()
    span, _ = collector.taken("GET /stream")
    assert _attributes(span)["http.response.status_code"] == 101


def test_refused(traced, collector):
    """A refusal has a span; it is a failure if it is the service's. Probes have none."""
    for path in ("/livez", "/readyz", "/metrics"):
        assert traced.http.get(path).status_code == 200
    assert traced.http.post("/label", json={}).status_code == 422
    late = {"X-Request-Timeout-Ms": "1"}
    steps = {"sequences": [[[1, 2, 3]] * 9_000] * 20, "model": "both"}
    traced.http.post("/label", json=steps, headers=late)

    def found():
        return {
            _attributes(one)["http.response.status_code"]: one
            for one in collector.spans
            if one.name == "POST /label"
        }

    wait(lambda: {422, 504} <= found().keys(), "both come")
    assert found()[422].status.code == 0
    assert found()[504].status.code == 2
    assert _attributes(found()[504])["error.type"] == "504"
    assert not any(
        "livez" in one.name or "readyz" in one.name for one in collector.spans
    )


def test_no_collector(bundles, monkeypatch):
    """Where nobody takes them, requests are answered, and a stop is not held up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with running(Settings(port=0, bundles=bundles / "walks")) as made:
            assert made.http.post("/classify", json=BODY).status_code == 200
            made.server.stop()
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
    """They are off unless the standard variables name where they go."""
    for name, given in variables.items():
        monkeypatch.setenv(name, given)
    assert Traces.from_environment("1") is None


def test_impossible(monkeypatch):
    """What can't be done is told at the start."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    with monkeypatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL.*grpc"):
            Traces.from_environment("1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(SettingsError, match=r"unrolled\[otel\]"):
        Traces.from_environment("1")
