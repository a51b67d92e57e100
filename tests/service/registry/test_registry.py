"""Bundles that are served, broken ones, and the errors that clients get."""

import json
import re
import shutil
import threading
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from model.bundle import bundle
from service import errors
from service.pool import spawn
from service.pool.pool import Pool
from service.registry.registry import Registry
from service.registry.state_tokens import State
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import SECONDS, running, value, wait

GOOD = {"sequences": [[[1, 2, 3]]]}


@contextmanager
def loading(root, load_engine=OnnxEngine, **settings):
    """A registry that is loading, its calls of `on_failure`, and its metrics."""
    calls = []
    metrics = Metrics()
    settings = Settings(bundles=root, **{"workers": 2} | settings)
    pool = Pool(settings, metrics, spawn.thread({"given": load_engine}))
    pool.start()
    registry = Registry(
        settings, metrics, pool, on_failure=lambda: calls.append(registry.ready)
    )
    registry.start()
    try:
        yield registry, calls, metrics
    finally:
        registry.close()


@contextmanager
def loaded(root, load_engine=OnnxEngine, **settings):
    """The same, once it has finished."""
    with loading(root, load_engine, **settings) as (registry, calls, metrics):
        wait(lambda: registry.complete, "the bundles are loaded")
        if registry.failed:
            registry._thread.join(SECONDS)
        else:
            registry.load("none").exception(SECONDS)  # it has done all before
        yield registry, calls, metrics


@pytest.fixture
def root(bundles, tmp_path):
    """A copy of `walks` and `tags` that can be broken."""
    for name in ("walks", "tags"):
        copy_bundle(bundles / name / "1", tmp_path / "bundles" / name / "1")
    return tmp_path / "bundles"


def flip(path):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_metadata(folder, change):
    """Change `bundle.json`."""
    marker = folder / bundle.MARKER
    fields = json.loads(marker.read_text())
    change(fields)
    marker.write_text(json.dumps(fields))


def reseal(folder):
    """Update the digests of changed files."""
    bundle.seal(
        folder,
        bundle.Metadata.model_validate_json((folder / bundle.MARKER).read_text()),
    )


def change_golden(folder, name, by):
    """Golden answers that no engine gives, with matching digests."""
    with np.load(folder / bundle.GOLDEN) as arrays:
        golden = {key: arrays[key] for key in arrays.files}
    golden[name] = golden[name] + np.float32(by)
    np.savez(folder / bundle.GOLDEN, **golden)
    reseal(folder)


FILES = [
    "saved_model.pb",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
    "assets.extra/network.onnx",
    "assets.extra/golden.npz",
    "assets.extra/report/card.md",
]


def broken(id, change, *messages):
    return pytest.param(change, messages, id=id)


BROKEN = [
    *(broken(f"flipped-{f}", lambda x, f=f: flip(x / f), f, "SHA-256") for f in FILES),
    *(broken(f"missing-{f}", lambda x, f=f: (x / f).unlink(), f) for f in FILES[:1]),
    broken(
        "no-marker", lambda x: (x / bundle.MARKER).unlink(), "assets.extra/bundle.json"
    ),
    broken(
        "empty-marker",
        lambda x: (x / bundle.MARKER).write_text(""),
        "assets.extra/bundle.json",
    ),
    broken(
        "binary-marker",
        lambda x: (x / bundle.MARKER).write_bytes(bytes(range(256))),
        "assets.extra/bundle.json",
    ),
    broken(
        "marker-of-tomorrow",
        lambda x: change_metadata(x, lambda fields: fields.update(format=2)),
        "assets.extra/bundle.json",
        "format",
    ),
    broken(
        "unknown-member",
        lambda x: change_metadata(x, lambda fields: fields.update(tomorrow=1)),
        "assets.extra/bundle.json",
        "tomorrow",
    ),
    broken(
        "wrong-state-size",
        lambda x: change_metadata(x, lambda fields: fields.update(state_size=7)),
        "state_size",
    ),
    broken("one-file-more", lambda x: (x / "extra.py").write_text("1"), "extra.py"),
    broken(
        "one-more-among-variables",
        lambda x: (x / "variables" / ".hidden").write_text("1"),
        "variables/.hidden",
    ),
    broken(
        "link",
        lambda x: (x / "assets.extra/passwd").symlink_to("/etc/passwd"),
        "assets.extra/passwd",
    ),
    broken(
        "file-outside",
        lambda x: change_metadata(
            x, lambda fields: fields["files"].update({"../../../etc/passwd": "0" * 64})
        ),
        "etc/passwd",
    ),
    broken(
        "golden-answers", lambda x: change_golden(x, "probabilities", 1e-3), "golden"
    ),
    broken("golden-states", lambda x: change_golden(x, "state", 1e-3), "golden"),
    broken("golden-nan", lambda x: change_golden(x, "probabilities", np.nan), "golden"),
]


class TestBroken:
    @pytest.mark.parametrize(("change", "messages"), BROKEN)
    def test_skipped(self, root, change, messages):
        """A bundle that is incomplete, changed or wrong is never served, and the reason
        names its file; with `skip_broken` the others are served."""
        change(root / "walks" / "1")
        with loaded(root, skip_broken=True) as (registry, calls, metrics):
            assert calls == []
            assert registry.ready
            assert registry.not_ready_reasons() == []
            assert list(registry.models) == ["tags"]
            assert list(registry.broken) == ["walks"]
            reason = registry.broken["walks"]
            for message in (str(root / "walks" / "1"), *messages):
                assert message in reason
            assert "\n" not in reason
            assert value(metrics.text().decode(), "unrolled_ready") == 1
            with pytest.raises(errors.NotReady):
                registry.get("walks")

    def test_not_skipped(self, root):
        """Without it the service is never ready, and `on_failure` is called once."""
        flip(root / "walks" / "1" / "saved_model.pb")
        with loaded(root) as (registry, calls, metrics):
            assert calls == [False]
            assert registry.failed
            assert not registry.ready
            assert list(registry.broken) == ["walks"]
            (reason,) = registry.not_ready_reasons()
            assert "saved_model.pb" in reason
            assert value(metrics.text().decode(), "unrolled_ready") == 0
            with pytest.raises(errors.NotReady):
                registry.get("walks")

    @pytest.mark.parametrize("member", ["probabilities", "state"])
    def test_engine_is_off(self, root, member):
        """An engine that is off by a thousandth never serves."""

        class Off(OnnxEngine):
            name = "off"

            def step(self, frames, lengths, state):
                probabilities, state = super().step(frames, lengths, state)
                if member == "state":
                    return probabilities, state + np.float32(1e-3)
                return probabilities + np.float32(1e-3), state

        with loaded(root, Off) as (registry, calls, _):
            assert calls == [False]
            assert not registry.models
            assert len(registry.not_ready_reasons()) == 2
            for reason in registry.not_ready_reasons():
                assert re.search(r"off misses the golden answers by \d.\de-03", reason)

    @pytest.mark.parametrize("single", [True, False])
    def test_engine_depends_on_the_batch(self, root, single):
        """Nor does one whose answer depends on the batch size."""

        class Off(OnnxEngine):
            name = "off"

            def step(self, frames, lengths, state):
                probabilities, state = super().step(frames, lengths, state)
                wrong = (len(lengths) == 1) == single
                return probabilities + np.float32(1e-3 * wrong), state

        with loaded(root, Off) as (registry, calls, _):
            assert calls == [False]
            assert not registry.models

    @pytest.mark.parametrize(
        "error", [RuntimeError("no such op"), MemoryError(), KeyError("step")]
    )
    def test_engine_does_not_load(self, root, error):
        """An engine that does not load is reported with its bundle and the reason."""

        def load(exported, settings):
            if exported.metadata.name == "walks":
                raise error
            return OnnxEngine(exported, settings)

        with loaded(root, load) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert str(root / "walks" / "1") in reason
            assert type(error).__name__ in reason
            assert list(registry.models) == ["tags"]

    def test_reason_is_one_line(self, root):
        """A library's message becomes one line of limited length, as log readers need
        it."""

        def load(bundle, settings):
            raise RuntimeError("no\nsuch\r\nop" + " x" * 1000)

        with loaded(root, load) as (registry, _, _):
            for reason in registry.not_ready_reasons():
                assert len(reason.splitlines()) == 1
                assert "no such op x" in reason
                assert len(reason) == 1000

    def test_older_in_another_folder(self, root, bundles):
        """A version in a folder of another name does not take over the name of an existing
        folder, even if it is scanned first."""
        copy_bundle(bundles / "walks" / "1", root / "walks" / "2", version="2")
        shutil.rmtree(root / "walks" / "1")
        copy_bundle(bundles / "walks" / "1", root / "aaa" / "1")
        with loaded(root, skip_broken=True) as (registry, _, _):
            assert registry.models["walks"].metadata.version == "2"
            assert "holds walks, and so does" in registry.broken["aaa"]

    def test_one_name_twice(self, root):
        """Two bundles with the same name are refused."""
        copy_bundle(root / "walks" / "1", root / "again" / "1")
        before = threading.active_count()
        with loaded(root) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert "walks" in reason
            assert "and so does" in reason
        wait(lambda: threading.active_count() == before, "no thread is left")

    def test_one_name_twice_skipped(self, root):
        """With `skip_broken` the one in the folder of that name is served, and the other is
        broken."""
        copy_bundle(root / "walks" / "1", root / "again" / "1")
        with loaded(root, skip_broken=True) as (registry, calls, _):
            assert calls == []
            assert registry.ready
            assert set(registry.models) == {"walks", "tags"}
            assert len(registry.broken) == 1
            assert registry.get("walks").bundle.folder.parent.name == "walks"

    @pytest.mark.parametrize("skip", [False, True])
    @pytest.mark.parametrize("kind", ["empty", "missing", "file", "no-versions"])
    def test_nothing_there(self, tmp_path, kind, skip):
        """Without any bundle the service is never ready, even with `skip_broken`, and the
        reason names the folder."""
        root = tmp_path / "nothing"
        if kind == "file":
            root.write_text("")
        elif kind != "missing":
            root.mkdir()
        if kind == "no-versions":
            (root / "walks" / "latest").mkdir(parents=True)
        with loaded(root, skip_broken=skip) as (registry, calls, _):
            assert not registry.ready
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert f"{root}: no bundle found" in reason

    def test_all_broken_skipped(self, root):
        """Nor is it if every bundle is broken."""
        for name in ("walks", "tags"):
            flip(root / name / "1" / "saved_model.pb")
        with loaded(root, skip_broken=True) as (registry, calls, _):
            assert not registry.ready
            assert calls == [False]
            assert len(registry.not_ready_reasons()) == 2

    def test_unreadable(self, root, monkeypatch):
        """An error of the disk during the scan gives a reason; the service does not stay
        loading."""

        def names(root):
            raise PermissionError(13, "Permission denied", str(root))

        monkeypatch.setattr(bundle, "names", names)
        with loaded(root) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert "Permission denied" in reason


class TestFound:
    def test_highest_version(self, root):
        """The highest version is served, by number and not by letter."""
        for version in ("2", "9", "10"):
            copy_bundle(root / "walks" / "1", root / "walks" / version, version=version)
        (root / "walks" / "latest").mkdir()
        (root / "walks" / ".11").mkdir()
        with loaded(root) as (registry, calls, _):
            assert registry.ready
            assert calls == []
            assert registry.get("walks").metadata.version == "10"
            assert registry.get("walks").bundle.folder == root / "walks" / "10"

    def test_highest_version_is_broken(self, root):
        """A broken highest version is a failure, not replaced silently."""
        copy_bundle(root / "walks" / "1", root / "walks" / "2", version="2")
        flip(root / "walks" / "2" / "saved_model.pb")
        with loaded(root) as (registry, calls, _):
            assert calls == [False]
            assert str(root / "walks" / "2") in registry.not_ready_reasons()[0]

    @pytest.mark.parametrize("part", ["walks", "walks/1"])
    def test_one_bundle(self, root, part):
        """The folder may be a single bundle, or the folder of its versions."""
        with loaded(root / part) as (registry, _, _):
            assert registry.ready
            assert list(registry.models) == ["walks"]

    def test_warm(self, root):
        """Engines have run with small and large sizes before the first request."""
        sizes = []

        class RecordingEngine(OnnxEngine):
            def step(self, frames, lengths, state):
                sizes.append(frames.shape[:2])
                return super().step(frames, lengths, state)

        with loaded(root, RecordingEngine) as (registry, _, _):
            assert registry.ready
            assert {(1, 1), (1, 128), (8, 128)} <= set(sizes)


class TestDefaults:
    @pytest.fixture
    def more(self, root):
        copy_bundle(root / "walks" / "1", root / "also" / "1", name="also")
        return root

    def test_first(self, more):
        """By default the first model of the task, by name, is the default."""
        with loaded(more) as (registry, _, _):
            assert registry.choose(None, "classify").metadata.name == "also"
            assert registry.choose(None, "label").metadata.name == "tags"

    def test_by_setting(self, more):
        """A setting chooses another, for its task only."""
        with loaded(more, default_classify="walks") as (registry, _, _):
            assert registry.choose(None, "classify").metadata.name == "walks"
            assert registry.choose("also", "classify").metadata.name == "also"
            assert registry.choose(None, "label").metadata.name == "tags"

    @pytest.mark.parametrize("task", ["classify", "label"])
    @pytest.mark.parametrize("other", [True, False], ids=["other-task", "nobody"])
    def test_wrong(self, root, task, other):
        """A default of the other task, or without a bundle, is a failure that names the
        setting."""
        name = {"classify": "tags", "label": "walks"}[task] if other else "nobody"
        with loaded(root, **{f"default_{task}": name}) as (registry, calls, _):
            assert calls == [False]
            assert not registry.ready
            (reason,) = registry.not_ready_reasons()
            assert f"UNROLLED_DEFAULT_{task.upper()}" in reason
            assert name in reason

    def test_none_of_the_task(self, root):
        """Without any model of a task its requests are 404."""
        shutil.rmtree(root / "tags")
        with loaded(root) as (registry, _, _):
            assert registry.ready
            with pytest.raises(errors.UnknownModel) as caught:
                registry.choose(None, "label")
            assert "label" in caught.value.detail


class TestStates:
    def test_streamable(self, root, bundles):
        """Streamable models are listed, of one task or both; the error for another model
        names those of its task."""
        copy_bundle(bundles / "both" / "1", root / "both" / "1")
        with loaded(root) as (registry, _, _):
            assert registry.streamable() == ["tags", "walks"]
            assert registry.streamable("label") == ["tags"]
            for name in ("tags", "walks"):
                registry.check_streamable(registry.get(name))
            with pytest.raises(errors.NotStreamable, match=r"label .*: tags$"):
                registry.check_streamable(registry.get("both"))

    def test_none(self, bundles):
        """If there is none, the error says so."""
        with loaded(bundles / "both") as (registry, _, _):
            assert registry.streamable() == []
            with pytest.raises(errors.NotStreamable, match=r"label .*: none$"):
                registry.check_streamable(registry.get("both"))

    @pytest.mark.parametrize("key", ["", "a key of the tests"])
    def test_key(self, root, caplog, key):
        """One key signs for all models; without one there is one warning, which names the
        setting."""
        with loaded(root, state_key=key) as (registry, _, _):
            assert registry.ready
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warnings) == (0 if key else 1)
        assert all("UNROLLED_STATE_KEY" in warning for warning in warnings)

    def test_digest(self, root):
        """Tokens belong to the bundle as it was loaded: a later change on disk does not
        matter."""
        with loaded(root) as (registry, _, _):
            tokens = registry.get("walks").tokens
            state = State(3, bytes(4 * 6))
            token = tokens.sign(state)
            change_metadata(
                root / "walks" / "1", lambda fields: fields.update(dropout=0.25)
            )
            assert tokens.verify(token) == state
            assert (
                registry.get("walks").digest != bundle.read(root / "walks" / "1").digest
            )


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
                assert http.get("/models").json() == {"models": [], "broken": {}}
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

    def test_broken(self, root):
        """A broken bundle makes /readyz fail with the reason, but not /livez."""
        flip(root / "walks" / "1" / "saved_model.pb")
        called = threading.Event()
        settings = Settings(port=0, bundles=root)
        with running(
            settings, ready=False, load_engine=OnnxEngine, on_failure=called.set
        ) as service:
            assert called.wait(SECONDS)
            response = service.http.get("/readyz")
            assert response.status_code == 503
            (reason,) = response.json()["reasons"]
            assert "saved_model.pb" in reason
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

    def test_odd_file_name(self, root):
        """A file whose name is not valid text is reported like any other."""
        with open(bytes(root / "walks" / "1") + b"/\xff", "w"):
            pass
        called = threading.Event()
        settings = Settings(port=0, bundles=root)
        with running(
            settings, ready=False, load_engine=OnnxEngine, on_failure=called.set
        ) as service:
            assert called.wait(SECONDS)
            response = service.http.get("/readyz")
            assert response.status_code == 503
            assert "unexpected file" in response.json()["reasons"][0]

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
        with loaded(root) as (registry, _, _):
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
