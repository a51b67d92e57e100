"""API keys and their rates, and what settings switch off."""

import hashlib
import json

import numpy as np
import pytest
from typer.testing import CliRunner
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service import __main__ as main
from service import settings as settings_module
from service.client import Client
from service.http import auth
from service.http.auth import PUBLIC_PATHS
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import running, send

FIRST, SECOND = "first-key", "sëcond-key"
BODY = json.dumps({"sequences": [[[1, 2, 3]]]})
PATHS = [
    *("/classify", "/label", "/stream?model=walks", "/v1/models/walks:predict"),
    *("/v2/models/walks/infer", "/v2/repository/index", "/nowhere", "/models"),
    *("/metrics", "/docs", "/openapi.json", "/v1/models/walks", "/v2", "/%2Flivez"),
    *("/livez/", "/livez/x", "/Livez", "/livez%2f..%2fclassify", "/readyz;a"),
]


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


def serve(bundles, **settings):
    settings = Settings(port=0, bundles=bundles / "walks", **settings)
    return running(settings, load_engine=OnnxEngine)


@pytest.fixture(scope="module")
def guarded(bundles):
    keys = f"me:{digest(FIRST)},{digest(SECOND).upper()}"
    with serve(bundles, api_keys=keys) as service:
        yield service


def assert_unauthorized(response):
    assert response.status_code == 401, response.url
    assert response.headers["www-authenticate"] == "Bearer"
    assert FIRST not in response.text


class TestKeys:
    def test_missing(self, guarded):
        """Without a key every request is refused, but for probes and the page that asks
        for a key."""
        for path in PATHS:
            for method in ("GET", "POST", "DELETE"):
                response = guarded.http.request(method, path, content=BODY)
                assert_unauthorized(response)
        for path in (*PUBLIC_PATHS, "/playground/main.js"):
            assert guarded.http.get(path).status_code == 200

    def test_valid(self, guarded):
        """Each key admits to everything, in either header."""
        for headers in (
            {"X-API-Key": FIRST},
            {"Authorization": f"Bearer {FIRST}"},
            {"Authorization": f"bearer  {FIRST}", "X-API-Key": FIRST},
            {"X-API-Key": SECOND.encode()},
        ):
            for path in ("/models", "/metrics", "/v2", "/v1/models/walks"):
                assert guarded.http.get(path, headers=headers).status_code == 200
            response = guarded.http.post("/classify", content=BODY, headers=headers)
            assert response.status_code == 200

    def test_invalid(self, guarded):
        """Anything else is refused, also a key in the address, and two keys."""
        for headers in (
            {"X-API-Key": ""},
            {"X-API-Key": FIRST[:-1]},
            {"X-API-Key": FIRST + "x"},
            {"X-API-Key": FIRST.upper()},
            {"X-API-Key": digest(FIRST)},
            {"X-API-Key": b"\xff\xfe"},
            {"Authorization": FIRST},
            {"Authorization": f"Basic {FIRST}"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer x", "X-API-Key": ""},
            {"Authorization": "Bearer wrong", "X-API-Key": FIRST},
            {"Cookie": f"key={FIRST}"},
        ):
            address = f"/classify?key={FIRST}"
            response = guarded.http.post(address, content=BODY, headers=headers)
            assert_unauthorized(response)
        head = f"GET /models HTTP/1.1\r\nHost: a\r\nX-API-Key: {FIRST}\r\n"
        status, _, _ = send(guarded.url, (head + "X-API-Key: other\r\n\r\n").encode())
        assert status == 401

    def test_log(self, guarded, caplog):
        """The log has the name of a key, and never the key."""
        caplog.set_level("INFO", logger="service")
        guarded.http.post("/classify", content=BODY, headers={"X-API-Key": FIRST})
        record = next(r for r in caplog.records if getattr(r, "key", "") == "me")
        assert record.route == "/classify"
        assert FIRST not in str([r.__dict__ for r in caplog.records])

    def test_compat(self, guarded):
        """Other protocols have their own form of the error."""
        for path in ("/v1/models/walks", "/v2/models/walks"):
            assert set(guarded.http.get(path).json()) == {"error"}

    def test_websocket(self, guarded):
        """A WebSocket needs a key too."""
        address = guarded.url.replace("http", "ws") + "/stream?model=walks"
        with pytest.raises(InvalidStatus) as caught, connect(address):
            pass
        assert caught.value.response.status_code == 401
        with connect(address, additional_headers={"X-API-Key": FIRST}) as stream:
            assert stream.protocol

    def test_clients(self, guarded):
        """The client and the commands send a key."""
        with Client(guarded.url, headers={"X-API-Key": FIRST}) as client:
            frames = np.ones((3, 3), np.float32)
            assert len(client.classify([frames]).predictions) == 1
            with client.stream("walks") as stream:
                assert stream.send(frames[:1]).steps == 1
        environment = {settings_module.API_KEY: FIRST}
        arguments = ["classify", "-", "--url", guarded.url]
        result = CliRunner().invoke(main.app, arguments, input=BODY, env=environment)
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(main.app, arguments, input=BODY)
        assert result.exit_code == 1
        assert "key" in result.output

    def test_new_key(self):
        """`key` makes a key, and the value of the setting for it."""
        result = CliRunner().invoke(main.app, ["key", "me"])
        key, setting = (line.rpartition(" ")[2] for line in result.output.splitlines())
        value = setting.removeprefix("UNROLLED_API_KEYS=")
        assert value == f"me:{digest(key)}"
        assert Settings(api_keys=value)


class TestQuotaOwner:
    """The load shedder's cheap check agrees with the ordinary one."""

    def test_keys(self):
        keys = f"me:{digest(FIRST)},you:{digest(SECOND)}"
        several = auth.ApiKeyAuth(Settings(api_keys=keys))
        for headers, owner in (
            ({b"x-api-key": FIRST.encode()}, "me"),
            ({b"authorization": f"Bearer {SECOND}".encode()}, "you"),
            ({b"x-api-key": b"wrong"}, None),
            ({b"authorization": f"Basic {FIRST}".encode()}, None),
            ({b"x-api-key": FIRST.encode(), b"authorization": b"Bearer x"}, None),
            ({}, None),
        ):
            assert several.quota_owner(headers) == owner
        only = auth.ApiKeyAuth(Settings(api_keys=f"me:{digest(FIRST)}"))
        assert only.quota_owner({b"x-api-key": FIRST.encode()}) == ""
        assert auth.ApiKeyAuth(Settings()).quota_owner({}) == ""


class TestRate:
    def test_bucket(self, monkeypatch):
        """A key has the requests of a second at once, or one after another. Then it is
        refused with the time until the next."""
        now = [100.0]
        monkeypatch.setattr(auth.time, "monotonic", lambda: now[0])
        key = auth.ApiKey("me", b"", 2.0)
        for _ in range(2):
            key.take()
        with pytest.raises(auth.RateLimited) as caught:
            key.take()
        assert caught.value.headers == {"Retry-After": "1"}
        now[0] += 0.5
        key.take()
        with pytest.raises(auth.RateLimited):
            key.take()
        now[0] += 1000
        for _ in range(2):
            key.take()
        with pytest.raises(auth.RateLimited):
            key.take()

    @pytest.mark.slow
    def test_each(self, bundles):
        """Each key has its own rate, and probes have none."""
        keys = f"a:{digest(FIRST)},b:{digest(SECOND)}"
        with serve(bundles, api_keys=keys, rate_per_key=0.01) as service:
            for key in (FIRST, SECOND):
                headers = {"X-API-Key": key.encode()}
                assert service.http.get("/models", headers=headers).status_code == 200
                response = service.http.get("/models", headers=headers)
                assert response.status_code == 429
                assert response.json()["type"] == "urn:unrolled:error:rate-limited"
                assert 0 < int(response.headers["retry-after"]) <= 100
            for _ in range(5):
                assert service.http.get("/readyz").status_code == 200

    def test_needs_keys(self):
        with pytest.raises(ValueError, match="API_KEYS"):
            Settings(rate_per_key=1)


@pytest.mark.slow
def test_switched_off(bundles):
    """Metrics and documentation can be switched off."""
    with serve(bundles, metrics=False, docs=False) as service:
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert service.http.get(path).status_code == 404
        assert service.http.post("/classify", content=BODY).status_code == 200
