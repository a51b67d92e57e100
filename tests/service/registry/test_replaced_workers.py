"""The versions that a worker's replacement loads and serves."""

import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.pool import pool
from tests.support.servers import SECONDS, wait
from tests.support.streams import NdjsonStream, WebSocketStream
from tests.support.versions import GOOD, blocked, put, versioned_service

TRANSPORTS = [WebSocketStream, NdjsonStream]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_restart_delay(monkeypatch):
    """Workers are replaced without a pause."""
    monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)


def lose(service):
    """End a worker, without waiting for its replacement."""
    workers = service.registry._pool
    lost = workers.workers.all[0]
    with lost.jobs.dup() as jobs:
        jobs.shutdown(socket.SHUT_RDWR)
        wait(lambda: lost not in workers.workers.all, "it is missed")


def kill(service, seconds=SECONDS):
    """End a worker, and wait for its replacement."""
    size = service.registry._pool.size
    lose(service)
    wait(lambda: service.registry._pool.size == size, "another serves", seconds)


class TestWorkers:
    def test_replaced(self, tmp_path):
        """A worker's replacement loads only the versions that are served."""
        with versioned_service(tmp_path, 1, workers=2, labels={"stable": 1}) as service:
            for version in (2, 3):
                service.put(version)
                service.wait_served(version)
            wait(lambda: service.loaded == [1, 1, 3, 3], "both have both")
            loads = service.loads
            kill(service)
            assert service.loads == loads + 2
            wait(lambda: service.loaded == [1, 1, 3, 3], "both have both")
            for _ in range(10):
                service.assert_served(3)
                service.assert_served(1, "made@stable")
            service.put(4)
            service.wait_served(4)
            wait(lambda: service.loaded == [1, 1, 4, 4], "the new one swaps, too")

    def test_replaced_while_gone(self, tmp_path):
        """If a name is gone from the disk, a new worker serves the others."""
        folder = put(tmp_path / "else" / "bundles", 4, name="alpha")
        with versioned_service(tmp_path, 1) as service:
            os.rename(folder.parent, service.root / "alpha")
            service.wait_served(4, "alpha@4")
            shutil.move(service.root / "made", tmp_path / "away")
            service.wait_scanned()
            service.assert_served(1)
            kill(service, seconds=2)
            service.assert_served(4, "alpha")

    def test_replaced_by_another(self, tmp_path, caplog):
        """A new worker never answers with what replaced a bundle on disk since, under the
        former digest."""
        with versioned_service(tmp_path, 1, reload_seconds=0) as service:
            service.put(1, weights=11)
            lose(service)
            workers, died = service.registry._pool, "a new worker died"
            wait(lambda: workers.size or died in caplog.messages, "another comes")
            response = service.http.post("/classify", json=GOOD)
            if response.status_code != 503:
                service.assert_served(1)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_stream_survives(self, tmp_path, kind):
        """A stream with a former version continues in the workers that have it, when
        another worker is replaced."""
        with (
            versioned_service(tmp_path, 1, workers=2) as service,
            kind(service.url, "model=made") as client,
        ):
            client.ask([[7]])
            service.put(2)
            service.wait_served(2)
            service.wait_scanned()
            kill(service)
            (other_engine,) = (e for e in service.engines[2:4] if e() is not None)
            with ThreadPoolExecutor(1) as thread, blocked(other_engine):
                thread.submit(service.http.post, "/classify", json=GOOD)
                busy = service.registry.get("made").admission
                wait(
                    lambda: busy.wait_estimate.steps == 1,
                    "the one that has both is busy",
                )
                client.send({"frames": [[7]]})
                service.wait_scanned()
            assert "probabilities" in client.receive()

    def test_gone_while_loading(self, tmp_path):
        """A version that is removed just when it has been loaded leaves nothing that new
        workers would load."""
        with versioned_service(tmp_path, 1) as service:
            folder = service.root / "made" / "2"
            workers = service.registry._pool
            load = workers.load

            def load_and_lose(*args, **kwargs):
                loaded = load(*args, **kwargs)
                shutil.rmtree(folder)
                return loaded

            workers.load = load_and_lose
            service.put(2)
            wait(lambda: not folder.exists(), "it is loaded, and gone")
            workers.load = load
            service.wait_scanned()
            assert len(workers.workers._models) == 1

    def test_loads_too_long(self, tmp_path):
        """A version that does not load in time in a new worker is reported as broken, and
        served by the others, until it is loaded on request."""
        with versioned_service(
            tmp_path, 1, workers=2, load_seconds=1, admin=True
        ) as service:
            service.gate.clear()
            try:
                kill(service)
                wait(lambda: service.broken, "it is reported")
                reason = f"{service.root / 'made' / '1'}: did not load within 1 s"
                assert service.broken == {"made@1": reason}
                service.wait_scanned()
                service.assert_served(1)
                assert service.loaded == [1]
                assert service.registry._pool.size == 2
            finally:
                service.gate.set()
            assert service.admin("load") == 200
            assert service.broken == {}
            service.assert_served(1)
            wait(lambda: service.loaded == [1, 1], "both have it")

    def test_loads_in_time_again(self, tmp_path):
        """If no worker has it any more it is loaded like a new version."""
        with versioned_service(tmp_path, 1, load_seconds=1) as service:
            service.gate.clear()
            try:
                lose(service)
                wait(
                    lambda: service.registry._pool.workers.load_failures,
                    "it takes too long",
                )
            finally:
                service.gate.set()
            service.wait_status("made", 200)
            service.assert_served(1)
            assert service.broken == {}
