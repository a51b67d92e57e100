"""Row B9: incomplete TLS handshakes, and a certificate renewed under load."""

import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import trustme

from tests.robustness.harness import reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, launch

MODEL = "digits"
HOST = "127.0.0.1"
MAX_CONNECTIONS, HEADER_SECONDS = 100, 3
CLIENTS = 4  # honest ones
SLACK_SECONDS = 2.0
JSON = {"Content-Type": "application/json"}


class Certificate:
    """A certificate in files, and the context of clients that trust it."""

    def __init__(self, folder: Path):
        self._authority = trustme.CA()
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.context = ssl.create_default_context()
        self._authority.configure_trust(self.context)
        self.renew()

    def renew(self) -> None:
        certificate = self._authority.issue_cert(HOST)
        for pem, file in (
            (certificate.private_key_pem, self.key),
            (certificate.cert_chain_pems[0], self.chain),
        ):
            new = file.with_suffix(".new")
            pem.write_to_path(new)
            new.rename(file)


@row("B9", "Incomplete TLS handshakes; a certificate renewed under load", full=450)
def tls_handshakes(tally: Tally, amount: int) -> None:
    """Connections without a handshake are closed in time, honest clients are served
    meanwhile, and a renewed certificate is used without a restart."""
    with tempfile.TemporaryDirectory() as folder:
        certificate = Certificate(Path(folder))
        with _serving(Path(folder), certificate) as service:
            with _honest_clients(tally, service, certificate):
                _incomplete_handshakes(tally, service, amount)
            with _honest_clients(tally, service, certificate):
                _renew(tally, service, certificate)
            tally.check(service.process.poll() is None, "the service has ended")


@contextmanager
def _serving(folder: Path, certificate: Certificate) -> Iterator[Service]:
    service = launch(
        folder,
        bundles=reference.bundle_folder(MODEL),
        tls_certificate=certificate.chain,
        tls_key=certificate.key,
        max_connections=MAX_CONNECTIONS,
        header_seconds=HEADER_SECONDS,
        reload_seconds=0.2,
    )
    try:
        deadline = time.monotonic() + 60
        with httpx.Client(verify=certificate.context) as client:
            while time.monotonic() < deadline:
                with suppress(httpx.HTTPError):
                    if client.get(_url(service, "/readyz")).status_code == 200:
                        break
                time.sleep(0.1)
        yield service
    finally:
        service.stop()


def _url(service: Service, path: str) -> str:
    return f"https://{HOST}:{service.port}{path}"


@contextmanager
def _honest_clients(
    tally: Tally, service: Service, certificate: Certificate
) -> Iterator[None]:
    """Clients that send requests during the block, half of them over a new connection
    each time; every request must get 200."""
    ended = threading.Event()
    requests = reference.requests(MODEL, 20, 20)
    statuses: list[int | str] = []

    def run(keep_alive: bool) -> None:
        client = httpx.Client(verify=certificate.context, timeout=10)
        while not ended.is_set():
            for request in requests:
                try:
                    url = _url(service, request.path)
                    response = client.post(url, content=request.body, headers=JSON)
                    statuses.append(response.status_code)
                except httpx.HTTPError as error:
                    statuses.append(repr(error))
                if not keep_alive:
                    client.close()
                    client = httpx.Client(verify=certificate.context, timeout=10)
                if ended.wait(0.02):
                    break
        client.close()

    threads = [threading.Thread(target=run, args=(n % 2 == 0,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    for status in statuses:
        tally.check(status == 200, f"an honest request got {status}")


def _incomplete_handshakes(tally: Tally, service: Service, amount: int) -> None:
    """Connections that never complete a handshake are closed in time, or evicted."""
    with ExitStack() as stack:
        start = time.monotonic()
        connections = []
        for _ in range(amount):
            connection = socket.create_connection((HOST, service.port))
            connections.append(stack.enter_context(connection))
            connection.sendall(b"\x16\x03\x01\x02\x00")  # the head of a record
        for connection in connections:
            left = start + HEADER_SECONDS + SLACK_SECONDS - time.monotonic()
            connection.settimeout(max(left, 0.01))
            try:
                closed = connection.recv(1) == b""
            except ConnectionError:
                closed = True
            except TimeoutError:
                closed = False
            tally.check(
                closed, f"an incomplete handshake is open after {HEADER_SECONDS} s"
            )


def _renew(tally: Tally, service: Service, certificate: Certificate) -> None:
    def serial() -> str:
        with (
            socket.create_connection((HOST, service.port)) as plain,
            certificate.context.wrap_socket(plain, server_hostname=HOST) as secure,
        ):
            return str((secure.getpeercert() or {})["serialNumber"])

    before = serial()
    certificate.renew()
    start = time.monotonic()
    while serial() == before and time.monotonic() < start + 10:
        time.sleep(0.1)
    tally.check(serial() != before, "the renewed certificate is not used")
    tally.figure("renewed after s", time.monotonic() - start)
