"""Cross-origin requests: web pages of other sites."""

import hashlib
import json

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.http import cors
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import running

KEY = "first-key"
BODY = json.dumps({"sequences": [[[1, 2, 3]]]})
ORIGIN, OTHER = "https://example.org", "https://example.com"


@pytest.fixture(scope="module")
def service(bundles):
    """A service that pages of one origin may call, with a key."""
    settings = Settings(
        port=0,
        bundles=bundles / "walks",
        cors_origins=ORIGIN,
        api_keys=f"me:{hashlib.sha256(KEY.encode()).hexdigest()}",
    )
    with running(settings, load_engine=OnnxEngine) as service:
        yield service


def test_preflight(service):
    """A browser's preflight request needs no key, and succeeds only for the origin."""
    headers = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-api-key",
    }
    response = service.http.options("/classify", headers=headers | {"Origin": ORIGIN})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    allowed = response.headers["access-control-allow-headers"]
    assert "x-api-key" in allowed.lower()
    response = service.http.options("/classify", headers=headers | {"Origin": OTHER})
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


def test_responses(service):
    """Pages of the origin may read responses and errors; cookies are never allowed.
    Without the setting no page may."""
    for key, status in ((KEY, 200), ("wrong", 401)):
        for origin in (ORIGIN, OTHER):
            headers = {"Origin": origin, "X-API-Key": key}
            response = service.http.post("/classify", content=BODY, headers=headers)
            assert response.status_code == status
            allowed = response.headers.get("access-control-allow-origin")
            assert allowed == (ORIGIN if origin == ORIGIN else None)
            assert "access-control-allow-credentials" not in response.headers
    app = object()
    assert cors.with_cors(app, Settings()) is app


def test_websockets(service):
    """A page may open a WebSocket only if it is the service's own or of the origin."""
    address = service.url.replace("http", "ws") + "/stream?model=walks"
    for origin in (None, ORIGIN, service.url):
        headers = {"X-API-Key": KEY}
        if origin is not None:
            headers["Origin"] = origin
        with connect(address, additional_headers=headers) as stream:
            assert stream.protocol
    for origin in (OTHER, "null", "http://[::1", ""):
        headers = {"X-API-Key": KEY, "Origin": origin}
        with pytest.raises(InvalidStatus) as caught:
            connect(address, additional_headers=headers)
        assert caught.value.response.status_code == 403
