"""Traces of the service on Ray Serve: the same spans, behind Ray's proxy."""

import httpx
import pytest

import tests.support.ray as ray_fixtures
from tests.service.telemetry.test_traces import BODY, PARENT, STAGES, Collector
from tests.support.servers import SECONDS, wait

pytestmark = [pytest.mark.ray, ray_fixtures.needs_ray]


def test_traced(bundles, tmp_path, monkeypatch):
    """A replica continues the client's trace, which Ray's proxy passes on."""
    with Collector().listening() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with ray_fixtures.behind(tmp_path, bundles=bundles / "walks") as url:
            response = httpx.post(
                f"{url}/classify",
                json=BODY,
                headers={"traceparent": PARENT},
                timeout=SECONDS,
                trust_env=False,
            )
            assert response.status_code == 200, response.text
            wait(lambda: collector.spans, "the spans are exported")
            span, stages = collector.wait_for("POST /classify")
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert [stage.name for stage in stages] == STAGES
