"""Over TLS: half handshakes, and a certificate that is renewed under load."""

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
from tests.robustness.harness.service import Service, free_port, launch

NETWORK = "digits"
HOST = "127.0.0.1"
CONNECTIONS, HEADER_SECONDS = 100, 3
CLIENTS = 4  # honest ones
SLACK_SECONDS = 2.0


class Issued:
    """A certificate in files, and who trusts it."""

    def __init__(self, folder: Path):
        self._authority = trustme.CA()
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self.renew()

    def renew(self) -> None:
        made = self._authority.issue_cert(HOST)
        for part, file in (
            (made.private_key_pem, self.key),
            (made.cert_chain_pems[0], self.chain),
        ):
            new = file.with_suffix(".new")
            part.write_to_path(new)
            new.rename(file)

    @property
    def trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context


@row("B9", "half TLS handshakes; a certificate renewed under load", full=450)
def half_handshakes(tally: Tally, amount: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        issued = Issued(Path(folder))
        with _serving(Path(folder), issued) as service:
            with _honest(tally, service, issued):
                _silent(tally, service, amount)
            with _honest(tally, service, issued):
                _renewed(tally, service, issued)
            tally.check(service.process.poll() is None, "the service has ended")


@contextmanager
def _serving(folder: Path, issued: Issued) -> Iterator[Service]:
    service = launch(
        folder,
        port=free_port(),
        bundles=reference.folder(NETWORK),
        tls_certificate=issued.chain,
        tls_key=issued.key,
        max_connections=CONNECTIONS,
        header_seconds=HEADER_SECONDS,
        reload_seconds=0.2,
    )
    try:
        end = time.monotonic() + 60
        with httpx.Client(verify=issued.trusted) as client:
            while time.monotonic() < end:
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
def _honest(tally: Tally, service: Service, issued: Issued) -> Iterator[None]:
    """Others keep asking, half of them over a new connection each time."""
    over = threading.Event()
    asked = reference.some(NETWORK, 20, 20)
    told: list[int | str] = []

    def ask(keeps: bool) -> None:
        client = httpx.Client(verify=issued.trusted, timeout=10)
        while not over.is_set():
            for one in asked:
                try:
                    url = _url(service, one.path)
                    answer = client.post(url, content=one.body, headers=JSON)
                    told.append(answer.status_code)
                except httpx.HTTPError as error:
                    told.append(repr(error))
                if not keeps:
                    client.close()
                    client = httpx.Client(verify=issued.trusted, timeout=10)
                if over.wait(0.02):
                    break
        client.close()

    threads = [threading.Thread(target=ask, args=(n % 2 == 0,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for one in told:
        tally.check(one == 200, f"an honest request got {one}")


JSON = {"Content-Type": "application/json"}


def _silent(tally: Tally, service: Service, amount: int) -> None:
    """Connections that never shake hands are closed in time, or make room."""
    with ExitStack() as opened:
        begun = time.monotonic()
        made = []
        for _ in range(amount):
            one = opened.enter_context(socket.create_connection((HOST, service.port)))
            one.sendall(b"\x16\x03\x01\x02\x00")  # a record's head, and no more
            made.append(one)
        for one in made:
            left = begun + HEADER_SECONDS + SLACK_SECONDS - time.monotonic()
            one.settimeout(max(left, 0.01))
            try:
                closed = one.recv(1) == b""
            except ConnectionError:
                closed = True
            except TimeoutError:
                closed = False
            tally.check(closed, f"a half handshake is open after {HEADER_SECONDS} s")


def _renewed(tally: Tally, service: Service, issued: Issued) -> None:
    def serial() -> str:
        with (
            socket.create_connection((HOST, service.port)) as plain,
            issued.trusted.wrap_socket(plain, server_hostname=HOST) as shaken,
        ):
            return str((shaken.getpeercert() or {})["serialNumber"])

    before = serial()
    issued.renew()
    begun = time.monotonic()
    while serial() == before and time.monotonic() < begun + 10:
        time.sleep(0.1)
    tally.check(serial() != before, "the renewed certificate is not used")
    tally.figure("renewed after s", time.monotonic() - begun)
