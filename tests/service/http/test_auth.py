"""Keys, their rates, web pages of other sites, TLS, and what may be switched off."""

import hashlib
import json
import socket
import ssl
import time
from contextlib import contextmanager, suppress

import httpx
import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service import __main__ as main
from service import settings as settings_module
from service.client import Client
from service.http import auth as module
from service.http.auth import PUBLIC_PATHS
from service.settings import Settings
from tests.support.servers import SECONDS, running, send, wait

FIRST, SECOND = "first-key", "sëcond-key"
BODY = json.dumps({"sequences": [[[1, 2, 3]]]})
PATHS = ["/classify", "/label", "/stream?model=walks", "/v1/models/walks:predict"]
PATHS += ["/v2/models/walks/infer", "/v2/repository/index", "/nowhere"]
READ = ["/models", "/metrics", "/docs", "/openapi.json", "/v1/models/walks", "/v2"]
ODD = [
    "/%2Flivez",
    "/livez/",
    "/livez/x",
    "/Livez",
    "/livez%2f..%2fclassify",
    "/readyz;a",
]


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def guarded(bundles):
    keys = f"me:{digest(FIRST)},{digest(SECOND).upper()}"
    settings = Settings(port=0, bundles=bundles / "walks", api_keys=keys)
    with running(settings) as made:
        yield made


def assert_refused(response):
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert FIRST not in response.text


class TestKeys:
    @pytest.mark.parametrize("path", PATHS + READ + ODD)
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_none(self, guarded, path, method):
        """Without a key nothing is answered, whatever is asked."""
        assert_refused(guarded.http.request(method, path, content=BODY))

    @pytest.mark.parametrize("path", [*sorted(PUBLIC_PATHS), "/playground/main.js"])
    def test_open(self, guarded, path):
        """Probes need none, nor does the page that asks for one."""
        assert guarded.http.get(path).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-API-Key": FIRST},
            {"Authorization": f"Bearer {FIRST}"},
            {"Authorization": f"bearer  {FIRST}", "X-API-Key": FIRST},
            {"X-API-Key": SECOND.encode()},
        ],
    )
    def test_right(self, guarded, headers):
        """Each of the keys opens everything, in either header."""
        for path in ("/classify", "/models", "/metrics", "/v2", "/v1/models/walks"):
            ask = guarded.http.post if path == "/classify" else guarded.http.get
            more = {"content": BODY} if path == "/classify" else {}
            assert ask(path, headers=headers, **more).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
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
        ],
    )
    def test_wrong(self, guarded, headers):
        """Anything else opens nothing; nor does a key in the address."""
        address = f"/classify?key={FIRST}"
        assert_refused(guarded.http.post(address, content=BODY, headers=headers))

    def test_two(self, guarded):
        """Two keys are none, also in one header that is there twice."""
        head = f"GET /models HTTP/1.1\r\nHost: a\r\nX-API-Key: {FIRST}\r\n"
        status, _, _ = send(guarded.url, (head + "X-API-Key: other\r\n\r\n").encode())
        assert status == 401

    def test_whose(self, guarded, caplog):
        """The log has the name of the key, and never the key."""
        caplog.set_level("INFO", logger="service")
        guarded.http.post("/classify", content=BODY, headers={"X-API-Key": FIRST})
        record = next(r for r in caplog.records if getattr(r, "key", "") == "me")
        assert record.route == "/classify"
        assert FIRST not in str([r.__dict__ for r in caplog.records])

    def test_dialects(self, guarded):
        """A dialect is refused in its own form."""
        for path in ("/v1/models/walks", "/v2/models/walks"):
            assert set(guarded.http.get(path).json()) == {"error"}

    def test_stream(self, guarded):
        """A WebSocket needs one like all else."""
        address = guarded.url.replace("http", "ws") + "/stream?model=walks"
        with pytest.raises(InvalidStatus) as caught, connect(address):
            pass
        assert caught.value.response.status_code == 401
        with connect(address, additional_headers={"X-API-Key": FIRST}) as stream:
            assert stream.protocol

    def test_client(self, guarded):
        """The client and the commands send one."""
        headers = {"X-API-Key": FIRST}
        with Client(guarded.url, headers=headers) as client:
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

    def test_made(self, bundles):
        """`key` makes one, and what the setting must have for it."""
        result = CliRunner().invoke(main.app, ["key", "me"])
        key, setting = (line.rpartition(" ")[2] for line in result.output.splitlines())
        value = setting.removeprefix("UNROLLED_API_KEYS=")
        assert value == f"me:{digest(key)}"
        assert Settings(api_keys=value)


class TestRate:
    def test_bucket(self, monkeypatch):
        """A key has as many requests as its rate, at once or one after another, then
        is told when the next may come."""
        now = [100.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        key = module.ApiKey("me", b"", 2.0)
        for _ in range(2):
            key.take()
        with pytest.raises(module.RateLimited) as caught:
            key.take()
        assert caught.value.headers == {"Retry-After": "1"}
        now[0] += 0.5
        key.take()
        with pytest.raises(module.RateLimited):
            key.take()
        now[0] += 1000
        for _ in range(2):
            key.take()
        with pytest.raises(module.RateLimited):
            key.take()

    def test_each(self, bundles):
        """Each key has its own; probes have none."""
        keys = f"a:{digest(FIRST)},b:{digest(SECOND)}"
        limits = {"api_keys": keys, "rate_per_key": 0.01}
        settings = Settings(port=0, bundles=bundles / "walks", **limits)
        with running(settings) as made:
            for key in (FIRST, SECOND):
                headers = {"X-API-Key": key.encode()}
                assert made.http.get("/models", headers=headers).status_code == 200
                response = made.http.get("/models", headers=headers)
                assert response.status_code == 429
                assert response.json()["type"] == "urn:unrolled:error:rate-limited"
                assert 0 < int(response.headers["retry-after"]) <= 100
            for _ in range(5):
                assert made.http.get("/readyz").status_code == 200


ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def shared(bundles):
    keys = f"me:{digest(FIRST)}"
    settings = Settings(
        port=0, bundles=bundles / "walks", cors_origins=ORIGIN, api_keys=keys
    )
    with running(settings) as made:
        yield made


class TestOrigins:
    def test_asks_before(self, shared):
        """A browser that asks before, without a key, is told what is allowed, of the
        one origin and of no other."""
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, x-api-key",
        }
        told = shared.http.options("/classify", headers=asked | {"Origin": ORIGIN})
        assert told.status_code == 200
        assert told.headers["access-control-allow-origin"] == ORIGIN
        assert "x-api-key" in told.headers["access-control-allow-headers"].lower()
        other = {"Origin": "https://example.com"}
        told = shared.http.options("/classify", headers=asked | other)
        assert told.status_code == 400
        assert "access-control-allow-origin" not in told.headers

    @pytest.mark.parametrize("key", [FIRST, "wrong"])
    def test_answers(self, shared, key):
        """Answers and refusals may be read by pages of that origin only, which send
        no cookies."""
        for origin in (ORIGIN, "https://example.com"):
            headers = {"Origin": origin, "X-API-Key": key}
            told = shared.http.post("/classify", content=BODY, headers=headers)
            assert told.status_code == (200 if key == FIRST else 401)
            allowed = told.headers.get("access-control-allow-origin")
            assert allowed == (ORIGIN if origin == ORIGIN else None)
            assert "access-control-allow-credentials" not in told.headers

    def test_none(self, guarded):
        """Without the setting no page is told anything."""
        headers = {"Origin": ORIGIN, "X-API-Key": FIRST}
        told = guarded.http.get("/models", headers=headers)
        assert told.status_code == 200
        assert "access-control-allow-origin" not in told.headers

    @pytest.mark.parametrize(
        ("origin", "opens"),
        [
            (None, True),
            (ORIGIN, True),
            ("HERE", True),
            ("https://example.com", False),
            ("null", False),
            ("http://[::1", False),
            ("", False),
        ],
    )
    def test_sockets(self, shared, origin, opens):
        """A page opens a WebSocket only if it is ours, or of that origin."""
        address = shared.url.replace("http", "ws") + "/stream?model=walks"
        headers = {"X-API-Key": FIRST}
        if origin is not None:
            headers["Origin"] = shared.url if origin == "HERE" else origin
        if opens:
            with connect(address, additional_headers=headers) as stream:
                assert stream.protocol
            return
        with pytest.raises(InvalidStatus) as caught:
            connect(address, additional_headers=headers)
        assert caught.value.response.status_code == 403


class Issued:
    """A certificate for this machine, in files."""

    def __init__(self, folder):
        self.authority = trustme.CA()
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.files = {"tls_certificate": str(self.chain), "tls_key": str(self.key)}
        self.renew()

    def renew(self):
        made = self.authority.issue_cert("127.0.0.1")
        made.cert_chain_pems[0].write_to_path(self.chain)
        made.private_key_pem.write_to_path(self.key)

    @property
    def trusted(self):
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def issued(tmp_path):
    return Issued(tmp_path)


@contextmanager
def spoken(bundles, issued, **settings):
    """The service over HTTPS; its port and a client."""
    given = Settings(port=0, bundles=bundles / "walks", **issued.files, **settings)
    with running(given, ready=False) as served:
        url = served.url.replace("http", "https")
        with httpx.Client(base_url=url, verify=issued.trusted) as client:
            wait(lambda: client.get("/readyz").status_code == 200, "it is ready")
            yield httpx.URL(url).port, client


class TestTls:
    def test_spoken(self, bundles, issued):
        """With a certificate HTTPS is spoken, no older than TLS 1.2 and with forward
        secrecy, streams too; and plain HTTP is not."""
        with spoken(bundles, issued) as (port, client):
            assert client.post("/classify", content=BODY).status_code == 200
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/livez")
            address = f"wss://127.0.0.1:{port}/stream?model=walks"
            with connect(address, ssl=issued.trusted) as stream:
                stream.send(json.dumps({"frames": [[1, 2, 3]]}))
                assert json.loads(stream.recv())["steps"] == 1
            old, static = issued.trusted, issued.trusted
            old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            static.maximum_version = ssl.TLSVersion.TLSv1_2
            static.set_ciphers("kRSA")
            for context in (old, static):
                with pytest.raises(httpx.ConnectError):
                    httpx.get(f"https://127.0.0.1:{port}/livez", verify=context)

    def test_half_handshakes(self, bundles, issued):
        """They count as connections, make room for others, and have the time of a
        head."""
        limits = {"max_connections": 10, "header_seconds": 1}
        with spoken(bundles, issued, **limits) as (port, client):
            silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
            try:
                assert client.post("/classify", content=BODY).status_code == 200
                with httpx.Client(verify=issued.trusted) as other:
                    url = f"https://127.0.0.1:{port}/livez"
                    assert other.get(url).status_code == 200
                for one in silent:
                    one.settimeout(SECONDS)
                    with suppress(ConnectionResetError):
                        assert one.recv(1) == b""
            finally:
                for one in silent:
                    one.close()

    def test_renewed(self, bundles, issued):
        """New connections get the newest certificate that can be read; others go on."""

        def serial():
            with (
                socket.create_connection(("127.0.0.1", port)) as plain,
                issued.trusted.wrap_socket(plain, server_hostname="127.0.0.1") as made,
            ):
                return made.getpeercert()["serialNumber"]

        with spoken(bundles, issued, reload_seconds=0.05) as (port, client):
            first = serial()
            issued.key.write_text("no key")
            time.sleep(0.3)
            assert serial() == first
            issued.renew()
            wait(lambda: serial() != first, "the new one is used")
            assert client.get("/livez").status_code == 200

    @pytest.mark.parametrize("key", ["", "missing.pem"])
    def test_refused(self, tmp_path, key):
        """Files that can't be read, and one without the other, are told."""
        with pytest.raises(ValueError, match="TLS_CERTIFICATE"):
            Settings(tls_certificate=str(tmp_path / "chain.pem"), tls_key=key)

    def test_encrypted(self, tmp_path):
        """A key with a pass phrase is told, and nobody is asked for it."""
        made = trustme.CA().issue_cert("here")
        made.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
        given = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
        encrypted = given.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
        (tmp_path / "key.pem").write_bytes(encrypted)
        files = {"tls_certificate": "chain.pem", "tls_key": "key.pem"}
        with pytest.raises(ValueError, match="TLS_KEY: is encrypted"):
            Settings(**{name: str(tmp_path / file) for name, file in files.items()})


def test_rate_without_keys():
    """A rate for keys needs keys."""
    with pytest.raises(ValueError, match="API_KEYS"):
        Settings(rate_per_key=1)


def test_switched_off(bundles):
    """Metrics and the documentation are served unless they are switched off."""
    off = {"metrics": False, "docs": False}
    with running(Settings(port=0, bundles=bundles / "walks", **off)) as made:
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert made.http.get(path).status_code == 404
        assert made.http.post("/classify", content=BODY).status_code == 200
