"""Which bundles are served, which are not, and what a caller hears of it."""

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
    """A registry that loads, and how often it has called `on_failure`."""
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
    """The same, when it has finished."""
    with loading(root, load_engine, **settings) as (registry, calls, metrics):
        wait(lambda: registry.complete, "the bundles are loaded")
        if registry.failed:
            registry._thread.join(SECONDS)
        else:
            registry.load("none").exception(SECONDS)  # what it does next
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


def remark(folder, change):
    """Change what `bundle.json` says."""
    marker = folder / bundle.MARKER
    said = json.loads(marker.read_text())
    change(said)
    marker.write_text(json.dumps(said))


def reseal(folder):
    """Make the digests fit to files that have been changed."""
    bundle.seal(
        folder,
        bundle.Metadata.model_validate_json((folder / bundle.MARKER).read_text()),
    )


def bend_golden(folder, name, by):
    """Golden answers that no engine gives, with fitting digests."""
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


def broken(id, change, *said):
    return pytest.param(change, said, id=id)


BROKEN = [
    *(broken(f"flipped-{f}", lambda x, f=f: flip(x / f), f, "SHA-256") for f in FILES),
    *(broken(f"missing-{f}", lambda x, f=f: (x / f).unlink(), f) for f in FILES),
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
        lambda x: remark(x, lambda said: said.update(format=2)),
        "assets.extra/bundle.json",
        "format",
    ),
    broken(
        "unknown-member",
        lambda x: remark(x, lambda said: said.update(tomorrow=1)),
        "assets.extra/bundle.json",
        "tomorrow",
    ),
    broken(
        "wrong-state-size",
        lambda x: remark(x, lambda said: said.update(state_size=7)),
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
        lambda x: remark(
            x, lambda said: said["files"].update({"../../../etc/passwd": "0" * 64})
        ),
        "etc/passwd",
    ),
    broken("golden-answers", lambda x: bend_golden(x, "probabilities", 1e-3), "golden"),
    broken("golden-states", lambda x: bend_golden(x, "state", 1e-3), "golden"),
    broken("golden-nan", lambda x: bend_golden(x, "probabilities", np.nan), "golden"),
]


class TestBroken:
    @pytest.mark.parametrize(("change", "said"), BROKEN)
    def test_never_ready(self, root, change, said):
        """A bundle that is not whole, unchanged and right is never served: what is
        wrong is told with the file's name, and failure is called out once."""
        change(root / "walks" / "1")
        with loaded(root) as (registry, calls, metrics):
            assert calls == [False]
            assert registry.failed
            assert not registry.ready
            assert list(registry.broken) == ["walks"]
            (reason,) = registry.not_ready_reasons()
            for part in (str(root / "walks" / "1"), *said):
                assert part in reason
            assert "\n" not in reason
            assert value(metrics.text().decode(), "unrolled_ready") == 0
            with pytest.raises(errors.NotReady):
                registry.get("walks")

    @pytest.mark.parametrize(("change", "said"), BROKEN)
    def test_skipped(self, root, change, said):
        """With `skip_broken` the others serve, and the reason is still told."""
        change(root / "walks" / "1")
        with loaded(root, skip_broken=True) as (registry, calls, metrics):
            assert calls == []
            assert registry.ready
            assert registry.not_ready_reasons() == []
            assert list(registry.models) == ["tags"]
            assert list(registry.broken) == ["walks"]
            for part in said:
                assert part in registry.broken["walks"]
            assert value(metrics.text().decode(), "unrolled_ready") == 1

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

    @pytest.mark.parametrize("alone", [True, False])
    def test_engine_depends_on_the_batch(self, root, alone):
        """Nor does one whose answer depends on how many rows there are."""

        class Off(OnnxEngine):
            name = "off"

            def step(self, frames, lengths, state):
                probabilities, state = super().step(frames, lengths, state)
                wrong = (len(lengths) == 1) == alone
                return probabilities + np.float32(1e-3 * wrong), state

        with loaded(root, Off) as (registry, calls, _):
            assert calls == [False]
            assert not registry.models

    @pytest.mark.parametrize(
        "error", [RuntimeError("no such op"), MemoryError(), KeyError("step")]
    )
    def test_engine_does_not_load(self, root, error):
        """An engine that can't be made is told by the bundle and the reason."""

        def load(found, settings):
            if found.metadata.name == "walks":
                raise error
            return OnnxEngine(found, settings)

        with loaded(root, load) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert str(root / "walks" / "1") in reason
            assert type(error).__name__ in reason
            assert list(registry.models) == ["tags"]

    def test_reason_is_one_line(self, root):
        """A library's long message becomes one line, as log readers need it."""

        def load(found, settings):
            raise RuntimeError("no\nsuch\r\nop")

        with loaded(root, load) as (registry, _, _):
            for reason in registry.not_ready_reasons():
                assert len(reason.splitlines()) == 1

    def test_older_in_another_folder(self, root, bundles):
        """An older version in a folder of another name doesn't take the name from the
        folder that is called so, wherever it stands in the list."""
        copy_bundle(bundles / "walks" / "1", root / "walks" / "2", version="2")
        shutil.rmtree(root / "walks" / "1")
        copy_bundle(bundles / "walks" / "1", root / "aaa" / "1")
        with loaded(root, skip_broken=True) as (registry, _, _):
            assert registry.models["walks"].metadata.version == "2"
            assert "holds walks, and so does" in registry.broken["aaa"]

    def test_one_name_twice(self, root):
        """Two bundles of one name are refused: which would be served?"""
        copy_bundle(root / "walks" / "1", root / "again" / "1")
        before = threading.active_count()
        with loaded(root) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert "walks" in reason
            assert "and so does" in reason
        wait(lambda: threading.active_count() == before, "no thread is left")

    def test_one_name_twice_skipped(self, root):
        """With `skip_broken` the one in the folder of that name serves, and the other is
        told."""
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
        """Without any bundle the service is never ready, whatever is skipped, and
        the folder is named."""
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
        """Nor is it when every bundle is broken."""
        for name in ("walks", "tags"):
            flip(root / name / "1" / "saved_model.pb")
        with loaded(root, skip_broken=True) as (registry, calls, _):
            assert not registry.ready
            assert calls == [False]
            assert len(registry.not_ready_reasons()) == 2

    def test_unreadable(self, root, monkeypatch):
        """Whatever the disk does while bundles are looked for: it ends with a
        reason, not in loading for ever."""

        def names(root):
            raise PermissionError(13, "Permission denied", str(root))

        monkeypatch.setattr(bundle, "names", names)
        with loaded(root) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert "Permission denied" in reason


class TestFound:
    def test_highest_version(self, root):
        """Of several versions the highest number is served, not the last in the
        alphabet."""
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
        """A broken highest version is not passed over in silence."""
        copy_bundle(root / "walks" / "1", root / "walks" / "2", version="2")
        flip(root / "walks" / "2" / "saved_model.pb")
        with loaded(root) as (registry, calls, _):
            assert calls == [False]
            assert str(root / "walks" / "2") in registry.not_ready_reasons()[0]

    @pytest.mark.parametrize("part", ["walks", "walks/1"])
    def test_one_bundle(self, root, part):
        """The folder may be that of one bundle, or of its versions."""
        with loaded(root / part) as (registry, _, _):
            assert registry.ready
            assert list(registry.models) == ["walks"]

    def test_warm(self, root):
        """Engines have run at small and large sizes before the first caller."""
        sizes = []

        class Watched(OnnxEngine):
            def step(self, frames, lengths, state):
                sizes.append(frames.shape[:2])
                return super().step(frames, lengths, state)

        with loaded(root, Watched) as (registry, _, _):
            assert registry.ready
            assert {(1, 1), (1, 128), (8, 128)} <= set(sizes)


class TestDefaults:
    @pytest.fixture
    def more(self, root):
        copy_bundle(root / "walks" / "1", root / "also" / "1", name="also")
        return root

    def test_first(self, more):
        """Without a setting the first by name of the task is the default."""
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
        """A default that is of the other task, or not there, is named by its
        variable before anybody is served by another one."""
        name = {"classify": "tags", "label": "walks"}[task] if other else "nobody"
        with loaded(root, **{f"default_{task}": name}) as (registry, calls, _):
            assert calls == [False]
            assert not registry.ready
            (reason,) = registry.not_ready_reasons()
            assert f"UNROLLED_DEFAULT_{task.upper()}" in reason
            assert name in reason

    def test_none_of_the_task(self, root):
        """Without any model of a task its requests are told so."""
        shutil.rmtree(root / "tags")
        with loaded(root) as (registry, _, _):
            assert registry.ready
            with pytest.raises(errors.UnknownModel) as caught:
                registry.choose(None, "label")
            assert "label" in caught.value.detail


class TestStates:
    def test_streamable(self, root, bundles):
        """The models whose state can be carried are told, of each task and of both;
        for any other the refusal names those of its task."""
        copy_bundle(bundles / "both" / "1", root / "both" / "1")
        with loaded(root) as (registry, _, _):
            assert registry.streamable() == ["tags", "walks"]
            assert registry.streamable("label") == ["tags"]
            for name in ("tags", "walks"):
                registry.check_streamable(registry.get(name))
            with pytest.raises(errors.NotStreamable, match=r"label .*: tags$"):
                registry.check_streamable(registry.get("both"))

    def test_none(self, bundles):
        """Where there is none, that is said."""
        with loaded(bundles / "both") as (registry, _, _):
            assert registry.streamable() == []
            with pytest.raises(errors.NotStreamable, match=r"label .*: none$"):
                registry.check_streamable(registry.get("both"))

    @pytest.mark.parametrize("key", ["", "a key of the tests"])
    def test_key(self, root, caplog, key):
        """One key signs for all models; that none was set is told once, as a warning
        that names the variable."""
        with loaded(root, state_key=key) as (registry, _, _):
            assert registry.ready
        told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(told) == (0 if key else 1)
        assert all("UNROLLED_STATE_KEY" in text for text in told)

    def test_digest(self, root):
        """The tokens of a bundle are those of its files as they were loaded: changed
        afterwards on the disk, it goes on from its own."""
        with loaded(root) as (registry, _, _):
            tokens = registry.get("walks").tokens
            state = State(3, bytes(4 * 6))
            token = tokens.sign(state)
            remark(root / "walks" / "1", lambda said: said.update(dropout=0.25))
            assert tokens.verify(token) == state
            assert (
                registry.get("walks").digest != bundle.read(root / "walks" / "1").digest
            )


class Slow(OnnxEngine):
    """An engine that loads when it is told to."""

    gate: threading.Event

    def __init__(self, found, settings):
        assert self.gate.wait(SECONDS)
        super().__init__(found, settings)


class TestServed:
    def test_before_ready(self, root):
        """Before the models are loaded the process lives, says that it is not ready,
        and asks callers to come again; then it serves."""
        Slow.gate = threading.Event()
        settings = Settings(port=0, bundles=root)
        with running(settings, ready=False, load_engine=Slow) as made:
            try:
                http = made.http
                assert http.get("/livez").status_code == 200
                assert value(made.metrics(), "unrolled_ready") == 0
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
                Slow.gate.set()
            wait(lambda: http.get("/readyz").status_code == 200, "ready")
            assert http.post("/classify", json=GOOD).status_code == 200
            assert value(made.metrics(), "unrolled_ready") == 1

    def test_models_while_loading(self, root):
        """Listing the models, or asking for life, while another one arrives is
        answered as at any other time."""
        Slow.gate = threading.Event()

        def load(found, settings):
            kind = Slow if found.metadata.name == "walks" else OnnxEngine
            return kind(found, settings)

        settings = Settings(port=0, bundles=root)
        with running(settings, ready=False, load_engine=load) as made:
            try:
                wait(lambda: made.registry.models, "the first model is there")
                seen = []
                while seen[-1:] != [["tags", "walks"]]:
                    response = made.http.get("/models")
                    assert response.status_code == 200
                    names = [model["name"] for model in response.json()["models"]]
                    if not seen:
                        assert names == ["tags"]
                        Slow.gate.set()
                    seen.append(names)
                    assert made.http.get("/livez").status_code == 200
            finally:
                Slow.gate.set()

    def test_broken(self, root):
        """A broken bundle makes /readyz fail with the reason, and /livez not."""
        flip(root / "walks" / "1" / "saved_model.pb")
        called = threading.Event()
        settings = Settings(port=0, bundles=root)
        with running(
            settings, ready=False, load_engine=OnnxEngine, on_failure=called.set
        ) as made:
            assert called.wait(SECONDS)
            response = made.http.get("/readyz")
            assert response.status_code == 503
            (reason,) = response.json()["reasons"]
            assert "saved_model.pb" in reason
            response = made.http.post("/classify", json=GOOD | {"model": "walks"})
            assert response.status_code == 503
            assert "broken" in response.json()["detail"]
            assert made.http.get("/livez").status_code == 200

    def test_skip_broken(self, root):
        """With `skip_broken` it is ready, the others answer, and /models lists what
        is broken and why."""
        flip(root / "walks" / "1" / "saved_model.pb")
        settings = Settings(port=0, bundles=root, skip_broken=True)
        with running(settings, load_engine=OnnxEngine) as made:
            http = made.http
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
        """A file whose name is no text is told like any other."""
        with open(bytes(root / "walks" / "1") + b"/\xff", "w"):
            pass
        called = threading.Event()
        settings = Settings(port=0, bundles=root)
        with running(
            settings, ready=False, load_engine=OnnxEngine, on_failure=called.set
        ) as made:
            assert called.wait(SECONDS)
            response = made.http.get("/readyz")
            assert response.status_code == 503
            assert "unexpected file" in response.json()["reasons"][0]

    def test_no_worker_is_left(self, root, monkeypatch):
        """When nothing computes any more, and nothing will, the process says that it
        must be restarted."""
        settings = Settings(port=0, bundles=root)
        with running(settings, load_engine=OnnxEngine) as made:
            assert made.http.get("/livez").status_code == 200
            monkeypatch.setattr(Pool, "alive", False)
            assert made.http.get("/livez").status_code == 503

    def test_stopping(self, root):
        """While it stops it is not ready, and says why."""
        with loaded(root) as (registry, _, _):
            assert registry.ready
            registry.close()
            assert not registry.ready
            assert registry.not_ready_reasons() == ["stopping"]
            assert registry.alive
            for ask in (registry.load, registry.unload):
                with pytest.raises(errors.Stopping):
                    ask("walks")

    def test_stop_while_loading(self, root):
        """A stop while bundles load ends the loading, also of the one under way."""
        Slow.gate = threading.Event()
        with running(
            Settings(port=0, bundles=root), ready=False, load_engine=Slow
        ) as made:
            made.server.stop()
            wait(lambda: made.registry._stop.is_set(), "it stops")
            assert made.registry.not_ready_reasons() == ["stopping"]
            Slow.gate.set()
        assert made.registry.models == {}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{made.url}/livez", timeout=5)
