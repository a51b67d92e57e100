"""Versions that appear, change and vanish on disk while the service runs."""

import errno
import itertools
import os
import shutil

import pytest

from model.bundle import bundle
from service.registry import versions
from tests.support.servers import wait
from tests.support.versions import (
    GOOD,
    POISON,
    change_golden,
    flip,
    put,
    versioned_service,
)

BROKEN = [
    ("SHA-256", {"spoil": lambda x: flip(x / bundle.GOLDEN)}),
    ("missing", {"spoil": lambda x: (x / bundle.GOLDEN).unlink()}),
    ("more.py", {"spoil": lambda x: (x / "more.py").touch()}),
    ("bundle.json", {"spoil": lambda x: (x / bundle.MARKER).unlink()}),
    ("bundle.json", {"spoil": lambda x: shutil.rmtree(x / bundle.EXTRA)}),
    ("golden", {"spoil": lambda x: change_golden(x, "probabilities", 1)}),
    ("poison", {"weights": POISON}),
    ("holds version 99", {"version": 99}),
    ("another version is named made", {"name": "other"}),
]


def test_new_version(tmp_path):
    """A new version is loaded while the old one answers, which is then dropped."""
    with versioned_service(tmp_path, 1) as service:
        service.gate.clear()
        service.put(2)
        wait(lambda: service.tries[-1] == "2", "it is tried")
        for _ in range(20):
            service.assert_served(1)
        assert service.versions == ["1"]
        assert service.http.get("/readyz").status_code == 200
        service.gate.set()
        service.wait_served(2)
        service.wait_status("made@1", 404)
        assert service.versions == ["2"]
        wait(lambda: service.loaded == [2], "the workers drop it")


@pytest.mark.slow
class TestChanges:
    def test_other_features(self, tmp_path):
        """A new version may take other features: requests must fit the version that
        answers."""
        with versioned_service(tmp_path, 1, keep_versions=2) as service:
            service.put(2, features=2)
            service.wait_status("made", 422)
            body = {"sequences": [[[7, 7]]], "model": "made"}
            answer = service.http.post("/classify", json=body)
            assert answer.status_code == 200
            assert answer.json()["version"] == "2"
            service.assert_served(1, "made@1")

    def test_new_name(self, tmp_path):
        """A new name is loaded; the default model stays."""
        with versioned_service(tmp_path, 1) as service:
            folder = put(tmp_path / "else" / "bundles", 4, name="alpha")
            os.rename(folder.parent, service.root / "alpha")
            service.wait_served(4, "alpha@latest")
            service.assert_served(4, "alpha")
            body = service.http.post("/classify", json=GOOD).json()
            assert (body["model"], body["version"]) == ("made", "1")

    def test_rollback(self, tmp_path):
        """Removing the newest folder goes back to an older version."""
        with versioned_service(tmp_path, 1, 2) as service:
            service.remove(2)
            service.wait_served(1)
            service.wait_status("made@2", 404)
            wait(lambda: service.loaded == [1], "the workers drop it")
            service.put(2, weights=22)
            service.wait_served(2, weights=22)

    def test_broken(self, tmp_path):
        """A new version that can't be loaded changes nothing of what is served; the
        reason is reported, and it is loaded once it is repaired."""
        with versioned_service(tmp_path, 1) as service:
            served = 1
            for version, (message, options) in enumerate(BROKEN, 2):
                options = {"version": version} | options
                service.put(options.pop("version"), at=version, **options)
                wait(lambda: service.broken, "it is reported")
                service.wait_scanned()
                ((name, reason),) = service.broken.items()
                assert name == f"made@{version}"
                assert message in reason
                assert str(service.root / "made" / str(version)) in reason
                assert service.http.get("/readyz").status_code == 200
                service.assert_served(served)
                assert service.versions == [str(served)]
                assert service.status(f"made@{version}") == 503
                loads = service.loads
                service.wait_scanned()
                assert service.loads == loads, "it is tried again and again"
                service.put(version)
                service.wait_served(version)
                assert service.broken == {}
                served = version

    def test_tried_again(self, tmp_path, monkeypatch):
        """A version that can't be loaded for want of disk or memory is tried again after a
        pause, though its files are the same; the pauses grow."""
        monkeypatch.setattr(versions, "RETRY_SECONDS", 0.05)
        with versioned_service(tmp_path, 1) as service:
            full = True

            def load(path, keys, read=bundle.read):
                if full and path.name == "2":
                    raise OSError(errno.ENOSPC, "No space left on device")
                return read(path, keys)

            monkeypatch.setattr(bundle, "read", load)
            service.put(2)
            wait(lambda: "made@2" in service.broken, "it is reported")
            assert "No space left" in service.broken["made@2"]
            service.assert_served(1)
            full = False
            service.wait_served(2)
            assert service.broken == {}
        failure = versions.FailedVersion("a", pause=40)
        assert failure.again("a").pause == 80
        assert failure.again("b").pause == versions.RETRY_SECONDS
        assert not failure.waits("b")

    def test_broken_is_removed(self, tmp_path):
        """A broken version is not reported once it is removed, or a later one served."""
        with versioned_service(tmp_path, 1) as service:
            service.put(2, weights=POISON)
            wait(lambda: service.broken, "it is reported")
            service.remove(2)
            wait(lambda: not service.broken, "it is not reported")
            service.put(2, weights=POISON)
            wait(lambda: service.broken, "it is reported")
            service.put(3)
            service.wait_served(3)
            wait(lambda: not service.broken, "it is not reported")
            service.wait_status("made@1", 404)

    def test_half_written(self, tmp_path):
        """A copy that is still being written is not tried before its files settle."""
        with versioned_service(tmp_path, 1) as service:
            part = service.root / "made" / "2"
            complete = put(tmp_path / "else" / "bundles", 2)
            part.mkdir()
            loads, names = service.loads, map(str, itertools.count())
            service.hooks.append(lambda: (part / next(names)).touch())
            service.wait_scanned()
            service.wait_scanned()
            assert service.broken == {}
            assert service.loads == loads
            service.hooks.clear()
            service.wait_scanned()
            shutil.rmtree(part)
            os.rename(complete, part)
            service.wait_served(2)

    def test_touched(self, tmp_path):
        """A bundle that is touched, or replaced by its copy, is not loaded again; later
        changes are still seen."""
        with versioned_service(tmp_path, 1) as service:
            folder, loads = service.root / "made" / "1", service.loads
            model = service.registry.get("made")
            for path in folder.rglob("*"):
                os.utime(path)
            service.wait_scanned()
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            shutil.rmtree(folder)
            os.rename(copy, folder)
            service.wait_scanned()
            assert service.loads == loads
            assert service.registry.get("made") is model
            service.put(1, weights=11)
            service.wait_served(1, weights=11)

    def test_replaced_in_place(self, tmp_path):
        """A bundle that is replaced under its number is loaded with its new digest, and the
        former one is dropped; its state tokens are refused."""
        with versioned_service(tmp_path, 1, 2, keep_versions=2) as service:
            token = service.get_token("made@1")
            digest = service.about("made@1")["digest"]
            service.put(1, weights=11)
            service.wait_served(1, "made@1", weights=11)
            service.assert_served(2)
            assert service.about("made@1")["digest"] != digest
            assert service.versions == ["1", "2"]
            wait(lambda: service.loaded == [2, 11], "the workers drop it")
            assert service.continue_from("made@1", token).status_code == 409
            text = service.metrics()
            assert digest not in text
            assert 'unrolled_waiting_steps{model="made",version="1"}' in text

    @pytest.mark.parametrize("part", ["made", "made/1", ""])
    def test_vanished(self, tmp_path, part):
        """A version that vanishes from disk is still served, and watched again once it is back."""
        with versioned_service(tmp_path, 1) as service:
            away, folder = tmp_path / "away", service.root / part
            os.rename(folder, away)
            service.wait_scanned()
            service.assert_served(1)
            assert service.http.get("/readyz").status_code == 200
            os.rename(away, folder)
            service.put(2)
            service.wait_served(2)

    def test_broken_vanished(self, tmp_path):
        """A name without a loadable version is not reported once it is gone."""
        with versioned_service(tmp_path, 1) as service:
            (service.root / "wrong" / "1").mkdir(parents=True)
            wait(lambda: service.broken, "it is reported")
            shutil.rmtree(service.root / "wrong")
            service.wait_scanned()
            assert service.broken == {}

    @pytest.mark.parametrize("skip", [True, False])
    def test_broken_at_the_start(self, tmp_path, skip):
        """At the start a broken version with a label is reported, and the service is ready
        only with `skip_broken`."""
        root = tmp_path / "bundles"
        put(root, 1, weights=POISON)
        put(root, 2)
        labels = {"stable": 1}
        options = {"root": root, "labels": labels, "skip_broken": skip}
        if skip:
            with versioned_service(tmp_path, **options) as service:
                assert service.broken
        else:
            with pytest.raises(AssertionError), versioned_service(tmp_path, **options):
                pass
