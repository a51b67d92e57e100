"""Bundles that are incomplete, changed or wrong: never served, and reported."""

import json
import re
import shutil
import threading

import numpy as np
import pytest

from model.bundle import bundle
from service import errors
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import value, wait
from tests.support.versions import change_golden, flip, loaded_registry


def change_metadata(folder, **changes):
    """Change members of `bundle.json`."""
    marker = folder / bundle.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | changes))


def add_file_outside(folder):
    """Name a file outside the bundle in `bundle.json`."""
    files = json.loads((folder / bundle.MARKER).read_text())["files"]
    change_metadata(folder, files=files | {"../../../etc/passwd": "0" * 64})


MARKER = "assets.extra/bundle.json"
FILES = [
    "saved_model.pb",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
    "assets.extra/network.onnx",
    "assets.extra/golden.npz",
    "assets.extra/report/card.md",
]
BROKEN = {  # what is changed, and texts in the reason
    **{f"flipped-{f}": (lambda x, f=f: flip(x / f), f, "SHA-256") for f in FILES},
    "missing": (lambda x: (x / FILES[0]).unlink(), FILES[0]),
    "no-marker": (lambda x: (x / MARKER).unlink(), MARKER),
    "empty-marker": (lambda x: (x / MARKER).write_text(""), MARKER),
    "binary-marker": (lambda x: (x / MARKER).write_bytes(bytes(range(256))), MARKER),
    "marker-of-tomorrow": (lambda x: change_metadata(x, format=2), MARKER, "format"),
    "unknown-member": (lambda x: change_metadata(x, tomorrow=1), MARKER, "tomorrow"),
    "wrong-state-size": (lambda x: change_metadata(x, state_size=7), "state_size"),
    "one-file-more": (lambda x: (x / "extra.py").write_text("1"), "extra.py"),
    "one-more-among-variables": (
        lambda x: (x / "variables" / ".hidden").write_text("1"),
        "variables/.hidden",
    ),
    "link": (
        lambda x: (x / "assets.extra/passwd").symlink_to("/etc/passwd"),
        "assets.extra/passwd",
    ),
    "file-outside": (add_file_outside, "etc/passwd"),
    "golden-answers": (lambda x: change_golden(x, "probabilities", 1e-3), "golden"),
    "golden-states": (lambda x: change_golden(x, "state", 1e-3), "golden"),
    "golden-nan": (lambda x: change_golden(x, "probabilities", np.nan), "golden"),
}


class TestBroken:
    @pytest.mark.parametrize("kind", BROKEN)
    def test_skipped(self, root, kind):
        """A bundle that is incomplete, changed or wrong is never served, and the reason
        names its file; with `skip_broken` the others are served."""
        change, *messages = BROKEN[kind]
        change(root / "walks" / "1")
        with loaded_registry(root, skip_broken=True) as (registry, calls, metrics):
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
        with loaded_registry(root) as (registry, calls, metrics):
            assert calls == [False]
            assert registry.failed
            assert not registry.ready
            assert list(registry.broken) == ["walks"]
            (reason,) = registry.not_ready_reasons()
            assert "saved_model.pb" in reason
            assert value(metrics.text().decode(), "unrolled_ready") == 0
            with pytest.raises(errors.NotReady):
                registry.get("walks")

    @pytest.mark.parametrize("wrong", ["probabilities", "state", "alone", "batched"])
    def test_engine_is_off(self, root, wrong):
        """An engine that is off by a thousandth never serves, nor does one whose answer
        depends on the batch size."""

        class Off(OnnxEngine):
            name = "off"

            def step(self, frames, lengths, state):
                probabilities, state = super().step(frames, lengths, state)
                if wrong == "state":
                    return probabilities, state + np.float32(1e-3)
                size = "alone" if len(lengths) == 1 else "batched"
                if wrong in ("probabilities", size):
                    probabilities = probabilities + np.float32(1e-3)
                return probabilities, state

        with loaded_registry(root, Off) as (registry, calls, _):
            assert calls == [False]
            assert not registry.models
            assert len(registry.not_ready_reasons()) == 2
            for reason in registry.not_ready_reasons():
                assert re.search(
                    r"off \(float32\) misses the golden answers by \d.\de-03", reason
                )

    @pytest.mark.parametrize(
        "error", [RuntimeError("no such op"), MemoryError(), KeyError("step")]
    )
    def test_engine_does_not_load(self, root, error):
        """An engine that does not load is reported with its bundle and the reason."""

        def load(exported, settings):
            if exported.metadata.name == "walks":
                raise error
            return OnnxEngine(exported, settings)

        with loaded_registry(root, load) as (registry, calls, _):
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

        with loaded_registry(root, load) as (registry, _, _):
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
        with loaded_registry(root, skip_broken=True) as (registry, _, _):
            assert registry.models["walks"].metadata.version == "2"
            assert "holds walks, and so does" in registry.broken["aaa"]

    def test_one_name_twice(self, root):
        """Two bundles with the same name are refused."""
        copy_bundle(root / "walks" / "1", root / "again" / "1")
        before = threading.active_count()
        with loaded_registry(root) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert "walks" in reason
            assert "and so does" in reason
        wait(lambda: threading.active_count() == before, "no thread is left")

    def test_one_name_twice_skipped(self, root):
        """With `skip_broken` the one in the folder of that name is served, and the other is
        broken."""
        copy_bundle(root / "walks" / "1", root / "again" / "1")
        with loaded_registry(root, skip_broken=True) as (registry, calls, _):
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
        with loaded_registry(root, skip_broken=skip) as (registry, calls, _):
            assert not registry.ready
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert f"{root}: no bundle found" in reason

    def test_all_broken_skipped(self, root):
        """Nor is it if every bundle is broken."""
        for name in ("walks", "tags"):
            flip(root / name / "1" / "saved_model.pb")
        with loaded_registry(root, skip_broken=True) as (registry, calls, _):
            assert not registry.ready
            assert calls == [False]
            assert len(registry.not_ready_reasons()) == 2

    def test_unreadable(self, root, monkeypatch):
        """An error of the disk during the scan gives a reason; the service does not stay
        loading."""

        def names(root):
            raise PermissionError(13, "Permission denied", str(root))

        monkeypatch.setattr(bundle, "names", names)
        with loaded_registry(root) as (registry, calls, _):
            assert calls == [False]
            (reason,) = registry.not_ready_reasons()
            assert "Permission denied" in reason
