"""Versions and labels that come and go while the service runs."""

import itertools
import os
import shutil

import numpy as np
import pytest

from model.bundle import bundle
from model.bundle.golden import Golden
from service.registry import folder as bundle_folder
from tests.support.servers import wait
from tests.support.streams import NdjsonStream, WebSocketStream
from tests.support.versions import (
    GOOD,
    INFER,
    POISON,
    PREDICT,
    put,
    versioned_service,
    weights_of,
)

# --- references ------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three versions: the first is the default, the last has no label."""
    labels = {"default": 1, "stable": 1, "next": 2}
    folder = tmp_path_factory.mktemp("labelled")
    with versioned_service(folder, 1, 2, 3, labels=labels) as service:
        yield service


def assert_path(service, path, version):
    """Check the version that answers at a path of /v1 or /v2."""
    http = service.http
    if path.startswith("/v1"):
        body = http.post(f"{path}:predict", json=PREDICT).json()
        assert weights_of(body["predictions"][0]) == version
        spec = http.get(f"{path}/metadata").json()["model_spec"]
        assert spec["version"] == str(version)
        statuses = http.get(path).json()["model_version_status"]
        assert str(version) in [status["version"] for status in statuses]
    else:
        body = http.post(f"{path}/infer", json=INFER).json()
        assert body["model_version"] == str(version)
        assert weights_of(body["outputs"][0]["data"]) == version
        (stats,) = http.get(f"{path}/stats").json()["model_stats"]
        assert stats["version"] == str(version)
        assert http.get(f"{path}/ready").status_code == 200
        assert http.get(path).json()["versions"] == ["1", "2", "3"]


class TestReferences:
    def test_everywhere(self, labelled):
        """A name, a version or a label means the same version wherever a model is named:
        in /classify, /models, both streams, /v2 and /v1."""
        for reference, version in (
            ("made", 1),
            ("made@1", 1),
            ("made@2", 2),
            ("made@3", 3),
            ("made@latest", 3),
            ("made@stable", 1),
            ("made@next", 2),
            ("made@default", 1),
        ):
            labelled.assert_served(version, reference)
            about = labelled.about(reference)
            assert (about["name"], about["version"]) == ("made", str(version))
            for kind in (WebSocketStream, NdjsonStream):
                with kind(labelled.url, f"model={reference}") as stream:
                    assert weights_of(stream.ask([[7]])["probabilities"]) == version
            assert_path(labelled, f"/v2/models/{reference}", version)
            assert_path(labelled, f"/v1/models/{reference}", version)

    def test_paths(self, labelled):
        """A version may stand in a path of /v1 and /v2, a label in one of /v1."""
        for path, version in (
            ("made/versions/2", 2),
            ("made/versions/002", 2),
            ("made/labels/next", 2),
            ("made/labels/latest", 3),
            ("made/labels/default", 1),
        ):
            assert_path(labelled, f"/v1/models/{path}", version)
            if "labels" not in path:
                assert_path(labelled, f"/v2/models/{path}", version)

    def test_unknown(self, labelled):
        """A reference to no version is 404 everywhere; the error lists the existing
        versions and labels of the name."""
        http = labelled.http
        for reference in (
            *("made@4", "made@nobody", "made@", "made@@1", "made@1@2", "made@01"),
            *("made@Stable", "made@ 1", "made@1.0", "@1", "other@1", "bundles"),
        ):
            responses = [
                http.post("/classify", json=GOOD | {"model": reference}),
                http.get(f"/models/{reference}"),
                http.post(f"/stream?model={reference}", content=b""),
                http.post(f"/v2/models/{reference}/infer", json=INFER),
                http.get(f"/v2/models/{reference}/ready"),
                http.post(f"/v1/models/{reference}:predict", json=PREDICT),
                http.get(f"/v1/models/{reference}"),
            ]
            statuses = [response.status_code for response in responses]
            assert statuses == [404] * len(responses)
            if reference.startswith("made"):
                detail = responses[0].json()["detail"]
                for known in ("1, 2, 3", "latest", "stable", "next", "default"):
                    assert known in detail

    def test_lists(self, labelled):
        """All protocols list the versions, /v1 the newest first."""
        assert labelled.versions == ["1", "2", "3"]
        response = labelled.http.get("/v1/models/made")
        statuses = response.json()["model_version_status"]
        assert [status["version"] for status in statuses] == ["3", "2", "1"]
        (model,) = labelled.http.get("/models").json()["models"]
        assert (model["version"], model["default"]) == ("1", True)


@pytest.mark.slow
class TestLabels:
    def test_change(self, tmp_path):
        """Changed labels take effect: a version is served as long as it has one, and
        `default` keeps the newest from being the default."""
        with versioned_service(tmp_path, 1, 2) as service:
            assert service.versions == ["2"]
            service.label({"stable": 1})
            service.wait_served(1, "made@stable")
            service.assert_served(2)
            service.label({"stable": 2, "default": 1, "old": 1})
            service.wait_served(1)
            service.assert_served(2, "made@stable")
            service.put(3)
            service.wait_served(3, "made@latest")
            service.assert_served(1)
            assert service.versions == ["1", "2", "3"]
            (service.root / "made" / bundle_folder.LABELS).unlink()
            service.wait_status("made@stable", 404)
            service.assert_served(3)
            assert service.versions == ["3"]

    @pytest.mark.parametrize("content", [b"{", b'{"\xff": 1}', {"stable": 9}])
    def test_broken(self, tmp_path, content):
        """Broken labels are reported, and the former ones stay; new versions are loaded
        meanwhile, and repaired labels take effect."""
        with versioned_service(tmp_path, 1, 2, labels={"stable": 1}) as service:
            service.label(content)
            wait(lambda: service.broken, "it is reported")
            ((name, reason),) = service.broken.items()
            assert name == "made/labels.json"
            assert str(service.root / "made" / "labels.json") in reason
            service.assert_served(1, "made@stable")
            assert service.http.get("/readyz").status_code == 200
            service.put(3)
            service.wait_served(3)
            service.assert_served(1, "made@stable")
            service.label({"stable": 3})
            service.wait_served(3, "made@stable")
            wait(lambda: not service.broken, "nothing is broken any more")
            service.wait_status("made@1", 404)

    def test_broken_drops_versions(self, tmp_path):
        """Versions without a label don't pile up while labels are broken."""
        with versioned_service(tmp_path, 1, labels={"stable": 1}) as service:
            service.label(b"{")
            for version in range(2, 6):
                service.put(version)
                service.wait_served(version)
            service.wait_scanned()
            assert service.versions == ["1", "5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("newest", "before", "after"),
    [(0, ["1", "2", "3"], ["1", "2", "3", "7"]), (2, ["2", "3"], ["3", "7"])],
)
def test_keep_versions(tmp_path, newest, before, after):
    """As many of the newest versions are served as the setting says; others are dropped,
    also by the workers."""
    with versioned_service(tmp_path, 1, 2, 3, keep_versions=newest) as service:
        assert service.versions == before
        service.put(7)
        service.wait_served(7)
        wait(lambda: service.versions == after, "the oldest is dropped")
        for version in after:
            service.assert_served(int(version), f"made@{version}")
        wait(lambda: service.loaded == [*map(int, after)], "the workers drop it")


# --- changes on disk -------------------------------------------------------------


def flip(path):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_golden(folder):
    """Golden answers that the engine does not reproduce, with matching digests."""
    golden = Golden.read((folder / bundle.GOLDEN).read_bytes())
    wrong = golden.probabilities + np.float32(1)
    Golden(golden.frames, golden.lengths, wrong, golden.state).save(
        folder / bundle.GOLDEN
    )
    text = (folder / bundle.MARKER).read_text()
    bundle.seal(folder, bundle.Metadata.model_validate_json(text))


BROKEN = [
    ("SHA-256", {"spoil": lambda x: flip(x / bundle.GOLDEN)}),
    ("missing", {"spoil": lambda x: (x / bundle.GOLDEN).unlink()}),
    ("more.py", {"spoil": lambda x: (x / "more.py").touch()}),
    ("bundle.json", {"spoil": lambda x: (x / bundle.MARKER).unlink()}),
    ("bundle.json", {"spoil": lambda x: shutil.rmtree(x / bundle.EXTRA)}),
    ("golden", {"spoil": change_golden}),
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

    def test_only_at_the_start(self, tmp_path):
        """With `reload_seconds` of 0 the folder is scanned once."""
        with versioned_service(tmp_path, 1, reload_seconds=0) as service:
            service.put(2)
            assert service.loads == 1
            service.assert_served(1)
            assert len(service.scans) == 1

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
            token = get_token(service, "made@1")
            digest = service.about("made@1")["digest"]
            service.put(1, weights=11)
            service.wait_served(1, "made@1", weights=11)
            service.assert_served(2)
            assert service.about("made@1")["digest"] != digest
            assert service.versions == ["1", "2"]
            wait(lambda: service.loaded == [2, 11], "the workers drop it")
            assert continue_from(service, "made@1", token).status_code == 409
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


# --- states and defaults ---------------------------------------------------------


def get_token(service, model):
    """A state token after one step of 7."""
    body = GOOD | {"model": model, "return_state": True}
    return service.http.post("/classify", json=body).json()["predictions"][0]["state"]


def continue_from(service, model, token):
    body = GOOD | {"model": model, "states": [token]}
    return service.http.post("/classify", json=body)


@pytest.mark.slow
def test_tokens(tmp_path):
    """A state token belongs to one version: others refuse it, and it is good as long as its
    own is served, by whatever reference."""
    with versioned_service(tmp_path, 1, keep_versions=2) as service:
        token = get_token(service, "made")
        service.put(2)
        service.wait_served(2)
        assert continue_from(service, "made", token).status_code == 409
        assert continue_from(service, "made@2", token).status_code == 409
        response = continue_from(service, "made@1", token)
        assert response.status_code == 200
        answer = response.json()["predictions"][0]["probabilities"]
        assert answer == [2 + 1, 7 + 1, 7 + 2 * 7 + 1]
        service.put(3)
        service.wait_status("made@1", 404)
        response = continue_from(service, "made", token)
        assert response.status_code == 409
        assert response.json()["type"] == "urn:unrolled:error:state-conflict"
        service.label({"old": 1})
        service.wait_served(1, "made@old")
        assert continue_from(service, "made@old", token).status_code == 200


@pytest.mark.slow
class TestDefault:
    @pytest.mark.parametrize("label", ["1", "stable"])
    def test_of_a_version(self, tmp_path, label):
        """The setting of a default may name a version or a label."""
        options = {"labels": {"stable": 1}, "default_classify": f"made@{label}"}
        with versioned_service(tmp_path, 1, 2, **options) as service:
            for _ in range(2):
                body = service.http.post("/classify", json=GOOD).json()
                assert body["version"] == "1"
                service.put(3)
                service.wait_served(3)

    def test_stays(self, tmp_path):
        """The version that the setting names is still served beside newer ones."""
        with versioned_service(tmp_path, 1, default_classify="made@1") as service:
            service.put(2)
            service.wait_served(2)
            service.wait_scanned()
            assert service.http.post("/classify", json=GOOD).status_code == 200


# --- load and unload on request --------------------------------------------------


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
        assert service.http.get("/models").json() == {"models": [], "broken": {}}
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
