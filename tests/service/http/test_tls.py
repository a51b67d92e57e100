"""TLS: versions and ciphers, unfinished handshakes, and renewed certificates."""

import json
import socket
import ssl
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from websockets.sync.client import connect

from service.client import Client, ConnectionLost
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import SECONDS, running, wait

BODY = json.dumps({"sequences": [[[1, 2, 3]]]})


class Certificate:
    """A certificate for this machine, in files, and the authority that issued it."""

    def __init__(self, folder):
        self.authority = trustme.CA()
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.settings = {"tls_certificate": str(self.chain), "tls_key": str(self.key)}
        self.renew()

    def renew(self):
        certificate = self.authority.issue_cert("127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(self.chain)
        certificate.private_key_pem.write_to_path(self.key)

    @property
    def context(self):
        """A client's context that trusts it."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def certificate(tmp_path):
    return Certificate(tmp_path)


@contextmanager
def serve(bundles, certificate, **settings):
    """The port of a service over HTTPS, and a client."""
    settings = Settings(
        port=0, bundles=bundles / "walks", **certificate.settings, **settings
    )
    with running(settings, ready=False, load_engine=OnnxEngine) as service:
        url = service.url.replace("http", "https")
        with httpx.Client(base_url=url, verify=certificate.context) as client:
            wait(lambda: client.get("/readyz").status_code == 200, "it is ready")
            yield httpx.URL(url).port, client


def test_https(bundles, certificate):
    """With a certificate the service speaks HTTPS, for streams too: TLS 1.2 or newer, with
    forward secrecy, and no plain HTTP."""
    with serve(bundles, certificate) as (port, client):
        assert client.post("/classify", content=BODY).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez")
        address = f"wss://127.0.0.1:{port}/stream?model=walks"
        with connect(address, ssl=certificate.context) as stream:
            stream.send(json.dumps({"frames": [[1, 2, 3]]}))
            assert json.loads(stream.recv())["steps"] == 1
        url = f"https://127.0.0.1:{port}"
        with Client(url, verify=certificate.context) as trusting:
            assert trusting.classify([[[1, 2, 3]]]).model == "walks"
            with trusting.stream("walks") as stream:
                assert stream.send([[1, 2, 3]]).steps == 1
        with Client(url, retries=0) as wary, wary.stream("walks") as stream:
            for call in (wary.models, lambda: stream.send([[1, 2, 3]])):
                with pytest.raises(ConnectionLost, match="`verify`"):
                    call()
        old, static = certificate.context, certificate.context
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        static.maximum_version = ssl.TLSVersion.TLSv1_2
        static.set_ciphers("kRSA")
        for context in (old, static):
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"https://127.0.0.1:{port}/livez", verify=context)


@pytest.mark.slow
def test_unfinished_handshakes(bundles, certificate):
    """Unfinished handshakes count as connections, are evicted for others, and have the
    timeout of a head."""
    limits = {"max_connections": 10, "header_seconds": 1}
    with serve(bundles, certificate, **limits) as (port, client):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        try:
            assert client.post("/classify", content=BODY).status_code == 200
            with httpx.Client(verify=certificate.context) as other:
                url = f"https://127.0.0.1:{port}/livez"
                assert other.get(url).status_code == 200
            for connection in silent:
                connection.settimeout(SECONDS)
                with suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        finally:
            for connection in silent:
                connection.close()


@pytest.mark.slow
def test_renewed(bundles, certificate):
    """New connections get the newest certificate that can be used; open ones stay."""

    def serial():
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            certificate.context.wrap_socket(
                plain, server_hostname="127.0.0.1"
            ) as wrapped,
        ):
            return wrapped.getpeercert()["serialNumber"]

    with serve(bundles, certificate, reload_seconds=0.05) as (port, client):
        first = serial()
        certificate.key.write_text("no key")
        time.sleep(0.3)
        assert serial() == first
        certificate.renew()
        wait(lambda: serial() != first, "the new one is used")
        assert client.get("/livez").status_code == 200


def test_unusable_files(tmp_path):
    """Files that are missing, or incomplete, are refused by the settings. So is an
    encrypted key, whose pass phrase nobody could enter."""
    for key in ("", "missing.pem"):
        with pytest.raises(ValueError, match="TLS_CERTIFICATE"):
            Settings(tls_certificate=str(tmp_path / "chain.pem"), tls_key=key)
    certificate = trustme.CA().issue_cert("here")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "key.pem").write_bytes(encrypted)
    files = {"tls_certificate": "chain.pem", "tls_key": "key.pem"}
    with pytest.raises(ValueError, match="TLS_KEY: is encrypted"):
        Settings(**{name: str(tmp_path / file) for name, file in files.items()})
