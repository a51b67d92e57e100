"""Bundles that are served, defaults, and the errors that clients get before and after."""

import shutil
import threading

import httpx
import pytest

from model.bundle import bundle
from service import errors
from service.pool.pool import Pool
from service.registry.state_tokens import State
from service.settings import Settings
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import SECONDS, running, value, wait
from tests.support.versions import flip, loaded_registry

GOOD = {"sequences": [[[1, 2, 3]]]}


class TestFound:
    def test_highest_version(self, root):
        """The highest version is served, by number and not by letter."""
        for version in ("2", "9", "10"):
            copy_bundle(root / "walks" / "1", root / "walks" / version, version=version)
        (root / "walks" / "latest").mkdir()
        (root / "walks" / ".11").mkdir()
        with loaded_registry(root) as (registry, calls, _):
            assert registry.ready
            assert calls == []
            assert registry.get("walks").metadata.version == "10"
            assert registry.get("walks").bundle.folder == root / "walks" / "10"

    def test_highest_version_is_broken(self, root):
        """A broken highest version is a failure, not replaced silently."""
        copy_bundle(root / "walks" / "1", root / "walks" / "2", version="2")
        flip(root / "walks" / "2" / "saved_model.pb")
        with loaded_registry(root) as (registry, calls, _):
            assert calls == [False]
            assert str(root / "walks" / "2") in registry.not_ready_reasons()[0]

    @pytest.mark.parametrize("part", ["walks", "walks/1"])
    def test_one_bundle(self, root, part):
        """The folder may be a single bundle, or the folder of its versions."""
        with loaded_registry(root / part) as (registry, _, _):
            assert registry.ready
            assert list(registry.models) == ["walks"]

    def test_warm(self, root):
        """Engines have run with small and large sizes before the first request."""
        sizes = []

        class RecordingEngine(OnnxEngine):
            def step(self, frames, lengths, state):
                sizes.append(frames.shape[:2])
                return super().step(frames, lengths, state)

        with loaded_registry(root, RecordingEngine) as (registry, _, _):
            assert registry.ready
            assert {(1, 1), (1, 128), (8, 128)} <= set(sizes)


class TestDefaults:
    @pytest.fixture
    def more(self, root):
        copy_bundle(root / "walks" / "1", root / "also" / "1", name="also")
        return root

    def test_first(self, more):
        """By default the first model of the task, by name, is the default."""
        with loaded_registry(more) as (registry, _, _):
            assert registry.choose(None, "classify").metadata.name == "also"
            assert registry.choose(None, "label").metadata.name == "tags"

    def test_by_setting(self, more):
        """A setting chooses another, for its task only."""
        with loaded_registry(more, default_classify="walks") as (registry, _, _):
            assert registry.choose(None, "classify").metadata.name == "walks"
            assert registry.choose("also", "classify").metadata.name == "also"
            assert registry.choose(None, "label").metadata.name == "tags"

    @pytest.mark.parametrize("task", ["classify", "label"])
    @pytest.mark.parametrize("other", [True, False], ids=["other-task", "nobody"])
    def test_wrong(self, root, task, other):
        """A default of the other task, or without a bundle, is a failure that names the
        setting."""
        name = {"classify": "tags", "label": "walks"}[task] if other else "nobody"
        with loaded_registry(root, **{f"default_{task}": name}) as (registry, calls, _):
            assert calls == [False]
            assert not registry.ready
            (reason,) = registry.not_ready_reasons()
            assert f"UNROLLED_DEFAULT_{task.upper()}" in reason
            assert name in reason

    def test_none_of_the_task(self, root):
        """Without any model of a task its requests are 404."""
        shutil.rmtree(root / "tags")
        with loaded_registry(root) as (registry, _, _):
            assert registry.ready
            with pytest.raises(errors.UnknownModel) as caught:
                registry.choose(None, "label")
            assert "label" in caught.value.detail


class TestStates:
    def test_streamable(self, root, bundles):
        """Streamable models are listed, of one task or both; the error for another model
        names those of its task."""
        copy_bundle(bundles / "both" / "1", root / "both" / "1")
        with loaded_registry(root) as (registry, _, _):
            assert registry.streamable() == ["tags", "walks"]
            assert registry.streamable("label") == ["tags"]
            for name in ("tags", "walks"):
                registry.check_streamable(registry.get(name))
            with pytest.raises(errors.NotStreamable, match=r"label .*: tags$"):
                registry.check_streamable(registry.get("both"))

    def test_none(self, bundles):
        """If there is none, the error says so."""
        with loaded_registry(bundles / "both") as (registry, _, _):
            assert registry.streamable() == []
            with pytest.raises(errors.NotStreamable, match=r"label .*: none$"):
                registry.check_streamable(registry.get("both"))

    @pytest.mark.parametrize("key", ["", "a key of the tests"])
    def test_key(self, root, caplog, key):
        """One key signs for all models; without one the log says so once, and names the
        setting."""
        with (
            caplog.at_level("INFO"),
            loaded_registry(root, state_key=key) as (registry, _, _),
        ):
            assert registry.ready
        lines = [r for r in caplog.records if "UNROLLED_STATE_KEY" in r.getMessage()]
        assert [r.levelname for r in lines] == ([] if key else ["INFO"])

    def test_digest(self, root, bundles):
        """Tokens belong to the bundle as it was loaded: a later change on disk does not
        matter."""
        with loaded_registry(root) as (registry, _, _):
            tokens = registry.get("walks").tokens
            state = State(3, bytes(4 * 20))
            token = tokens.sign(state)
            shutil.rmtree(root / "walks")
            folder = copy_bundle(
                bundles / "walks" / "1", root / "walks" / "1", dropout=0.25
            )
            assert tokens.verify(token) == state
            assert registry.get("walks").digest != bundle.read(folder).digest


class GatedEngine(OnnxEngine):
    """An engine that waits for an event before it loads."""

    gate: threading.Event

    def __init__(self, exported, settings):
        assert self.gate.wait(SECONDS)
        super().__init__(exported, settings)


@pytest.mark.slow
class TestServed:
    def test_before_ready(self, root):
        """Before the models are loaded the service is alive, not ready, and answers 503 with
        Retry-After; then it serves."""
        GatedEngine.gate = threading.Event()
        settings = Settings(port=0, bundles=root)
        with running(settings, ready=False, load_engine=GatedEngine) as service:
            try:
                http = service.http
                assert http.get("/livez").status_code == 200
                assert value(service.metrics(), "unrolled_ready") == 0
                ready = http.get("/readyz")
                assert ready.status_code == 503
                assert ready.json()["reasons"] == ["loading the bundles"]
                assert int(ready.headers["retry-after"]) >= 1
                for method, path in (
                    ("POST", "/classify"),
                    ("POST", "/label"),
                    ("GET", "/models/walks"),
                    ("GET", "/models/walks/report/card.md"),
                ):
                    for body in (GOOD, GOOD | {"model": "walks"}):
                        response = http.request(method, path, json=body)
                        assert response.status_code == 503
                        assert int(response.headers["retry-after"]) >= 1
                        assert response.json()["type"] == "urn:unrolled:error:not-ready"
                body = http.get("/models").json()
                assert (body["models"], body["broken"]) == ([], {})
            finally:
                GatedEngine.gate.set()
            wait(lambda: http.get("/readyz").status_code == 200, "ready")
            assert http.post("/classify", json=GOOD).status_code == 200
            assert value(service.metrics(), "unrolled_ready") == 1

    def test_models_while_loading(self, root):
        """The list of models and the health check work while another model loads."""
        GatedEngine.gate = threading.Event()

        def load(exported, settings):
            kind = GatedEngine if exported.metadata.name == "walks" else OnnxEngine
            return kind(exported, settings)

        settings = Settings(port=0, bundles=root)
        with running(settings, ready=False, load_engine=load) as service:
            try:
                wait(lambda: service.registry.models, "the first model is there")
                seen = []
                while seen[-1:] != [["tags", "walks"]]:
                    response = service.http.get("/models")
                    assert response.status_code == 200
                    names = [model["name"] for model in response.json()["models"]]
                    if not seen:
                        assert names == ["tags"]
                        GatedEngine.gate.set()
                    seen.append(names)
                    assert service.http.get("/livez").status_code == 200
            finally:
                GatedEngine.gate.set()

    @pytest.mark.parametrize("message", ["saved_model.pb", "unexpected file"])
    def test_broken(self, root, message):
        """A broken bundle makes /readyz fail with the reason, but not /livez, even if a
        file's name is not valid text."""
        if message == "saved_model.pb":
            flip(root / "walks" / "1" / "saved_model.pb")
        else:
            open(bytes(root / "walks" / "1") + b"/\xff", "w").close()
        called = threading.Event()
        settings = Settings(port=0, bundles=root)
        with running(
            settings, ready=False, load_engine=OnnxEngine, on_failure=called.set
        ) as service:
            assert called.wait(SECONDS)
            response = service.http.get("/readyz")
            assert response.status_code == 503
            (reason,) = response.json()["reasons"]
            assert message in reason
            response = service.http.post("/classify", json=GOOD | {"model": "walks"})
            assert response.status_code == 503
            assert "broken" in response.json()["detail"]
            assert service.http.get("/livez").status_code == 200

    def test_skip_broken(self, root):
        """With `skip_broken` the others answer, and /models lists the broken bundle with its
        reason."""
        flip(root / "walks" / "1" / "saved_model.pb")
        settings = Settings(port=0, bundles=root, skip_broken=True)
        with running(settings, load_engine=OnnxEngine) as service:
            http = service.http
            assert http.get("/readyz").json() == {"status": "ready", "models": ["tags"]}
            body = http.get("/models").json()
            assert [model["name"] for model in body["models"]] == ["tags"]
            assert list(body["broken"]) == ["walks"]
            assert "saved_model.pb" in body["broken"]["walks"]
            assert http.post("/label", json=GOOD).status_code == 200
            response = http.post("/classify", json=GOOD | {"model": "walks"})
            assert response.status_code == 503
            assert http.post("/classify", json=GOOD).status_code == 404

    def test_no_worker_is_left(self, root, monkeypatch):
        """Without any worker, and none to come, /livez fails, so that the service is
        restarted."""
        settings = Settings(port=0, bundles=root)
        with running(settings, load_engine=OnnxEngine) as service:
            assert service.http.get("/livez").status_code == 200
            monkeypatch.setattr(Pool, "alive", False)
            assert service.http.get("/livez").status_code == 503

    def test_stopping(self, root):
        """While the service stops it is not ready, and nothing is loaded or unloaded."""
        with loaded_registry(root) as (registry, _, _):
            assert registry.ready
            registry.close()
            assert not registry.ready
            assert registry.not_ready_reasons() == ["stopping"]
            assert registry.alive
            for change in (registry.load, registry.unload):
                with pytest.raises(errors.Stopping):
                    change("walks")

    def test_stop_while_loading(self, root):
        """A stop ends the loading, also of the current bundle."""
        GatedEngine.gate = threading.Event()
        with running(
            Settings(port=0, bundles=root), ready=False, load_engine=GatedEngine
        ) as service:
            service.server.stop()
            wait(lambda: service.registry._stop.is_set(), "it stops")
            assert service.registry.not_ready_reasons() == ["stopping"]
            GatedEngine.gate.set()
        assert service.registry.models == {}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{service.url}/livez", timeout=5)
