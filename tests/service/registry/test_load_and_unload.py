"""Loads and unloads on request, and the thread that does them."""

import asyncio

import httpx
import pytest

from tests.support.servers import SECONDS, wait
from tests.support.versions import POISON, put, versioned_service


def index(service):
    """The name, version and state of every model."""
    models = service.http.post("/v2/repository/index").json()
    return [(m["name"], m["version"], m["state"]) for m in models]


class TestRepository:
    """Loads and unloads on request, while the service never scans by itself."""

    @pytest.fixture
    def service(self, tmp_path):
        with versioned_service(tmp_path, 1, admin=True, reload_seconds=0) as service:
            yield service

    def test_load(self, service):
        """A load serves a new version at once."""
        service.put(2)
        service.assert_served(1)
        assert service.admin("load") == 200
        service.assert_served(2)
        assert index(service) == [("made", "2", "READY")]

    def test_unload(self, service):
        """An unloaded name is not served, whatever is in its folder, until it is loaded
        again; the service stays ready."""
        assert service.admin("unload") == 200
        assert service.status("made") == service.status("made@1") == 404
        body = service.http.get("/models").json()
        assert (body["models"], body["broken"]) == ([], {})
        assert service.http.get("/readyz").status_code == 200
        assert index(service) == [("made", "", "UNAVAILABLE")]
        assert service.admin("unload") == 404
        wait(lambda: service.loaded == [], "the workers drop it", seconds=1)
        service.put(2)
        assert service.admin("load") == 200
        service.assert_served(2)
        assert index(service) == [("made", "2", "READY")]
        wait(lambda: service.loaded == [2], "the workers drop it")

    @pytest.mark.slow
    def test_unload_stays(self, tmp_path):
        """The service does not load an unloaded name by itself."""
        with versioned_service(tmp_path, 1, admin=True) as service:
            assert service.admin("unload") == 200
            service.put(2)
            service.wait_scanned()
            assert service.status("made") == 404

    @pytest.mark.slow
    def test_broken(self, service):
        """Loading a broken version fails with the reason and changes nothing; the index
        shows it, and once repaired it is loaded."""
        service.put(2, weights=POISON)
        response = service.http.post("/v2/repository/models/made/load")
        assert response.status_code == 503
        assert "poison" in response.json()["error"]
        service.assert_served(1)
        assert index(service) == [("made", "1", "READY"), ("made", "2", "UNAVAILABLE")]
        service.put(2)
        assert service.admin("load") == 200
        service.assert_served(2)
        assert index(service) == [("made", "2", "READY")]

    @pytest.mark.slow
    def test_unknown(self, service):
        """An unknown name is 404."""
        for name in ("nobody", "made@1", "1"):
            assert service.admin("load", name) == 404
            assert service.admin("unload", name) == 404

    @pytest.mark.slow
    def test_broken_unloaded(self, service):
        """A broken version that is removed while its name is unloaded does not prevent a
        load."""
        service.put(2, weights=POISON)
        assert service.admin("load") == 503
        assert service.admin("unload") == 200
        service.remove(2)
        assert service.admin("load") == 200
        assert service.broken == {}

    @pytest.mark.slow
    def test_another_folder(self, tmp_path):
        """A model is unloaded by its own name, not its folder's."""
        root = tmp_path / "bundles"
        put(root, 1, name="other")
        options = {"root": root, "admin": True, "reload_seconds": 0}
        with versioned_service(tmp_path, **options) as service:
            service.assert_served(1, "other")
            assert service.admin("unload", "other") == 200


@pytest.mark.slow
class TestThread:
    """The thread that loads."""

    def test_disconnect(self, tmp_path):
        """A client that disconnects during its load changes nothing; the load of one that
        disconnected before is not done; the next one is."""

        async def disconnect():
            transport = httpx.ASGITransport(service.app)
            async with httpx.AsyncClient(
                transport=transport, base_url=service.url
            ) as http:
                path = "/v2/repository/models/made/load"
                tasks = [asyncio.create_task(http.post(path)) for _ in range(2)]
                while service.tries[-1] != "2":
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()  # as an ASGI server does
                await asyncio.wait(tasks)

        with versioned_service(tmp_path, 1, admin=True, reload_seconds=0) as service:
            service.gate.clear()
            service.put(2)
            asyncio.run(asyncio.wait_for(disconnect(), SECONDS))
            service.gate.set()
            service.wait_served(2)
            service.put(3)
            assert service.admin("load") == 200
            service.assert_served(3)
            assert len(service.scans) == 3  # at the start, of the first, of the last

    @pytest.mark.parametrize("error", [MemoryError, SystemExit])
    def test_survives(self, tmp_path, error):
        """After any exception in a scan, or in a load on request, the next one finds what is
        new."""
        failures = [error("injected")]

        def fail():
            if failures:
                raise failures.pop()

        with versioned_service(tmp_path, 1, admin=True) as service:
            service.hooks.append(fail)
            wait(lambda: not failures, "a scan fails")
            service.put(2)
            service.wait_served(2)
        failures.append(error("injected"))
        with versioned_service(tmp_path, admin=True, reload_seconds=0) as service:
            service.hooks.append(fail)
            assert service.admin("load") >= 500
            service.put(3)
            assert service.admin("load") == 200
            service.assert_served(3)
